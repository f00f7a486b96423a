"""Which engine computes a cell, and that it is part of the cell's key and shown."""

from dataclasses import replace
from typing import Any, cast

import pytest

from bench import plan, precision, worker
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.models import resolve
from bench.overrides import apply
from bench.suite import Failed, Metric, SaeHandle, Scored
from report.leaderboard import render_markdown
from report.summary import summarise
from tests import cells
from tests.test_executor import info, job

CONFIG = RunConfig(
    name="run",
    model="nano",
    hook_name="blocks.2.hook_resid_post",
    train=TrainConfig(d_sae=64, tokens=10_000),
    variants=(VariantConfig("topk", {"k": 8}),),
    suites={"core": {}},
)
WITHOUT_FAST = '''
    """A suite."""
    from dataclasses import dataclass
    from bench.suite import Suite

    class Plain(Suite):
        """Has one engine only."""

        @dataclass(frozen=True)
        class Config:
            n: int = 1

        side = "base"
        metrics = ()

        def run(self, ctx, saes):
            yield from ()
'''


def test_the_command_line_chooses_the_engine():
    assert apply(CONFIG).engine == "fast"
    assert apply(CONFIG, engine="reference").engine == "reference"
    assert apply(replace(CONFIG, engine="reference")).engine == "reference"


@pytest.mark.parametrize("suite", ["core", "sparse_probing"])
def test_suites_with_both_engines_use_the_one_asked_for(suite):
    for engine in ("reference", "fast"):
        assert plan.engine_of(replace(CONFIG, engine=engine), suite) == engine


def test_a_suite_without_a_fast_engine_says_what_it_used(plugins):
    plugins("suites/plain.py", WITHOUT_FAST)
    assert plan.engine_of(replace(CONFIG, engine="fast"), "plain") == "reference"


def test_the_engine_is_part_of_the_key():
    keys = {
        plan._content(replace(CONFIG, engine=engine), resolve("nano"), "revision", "core").key()
        for engine in ("reference", "fast")
    }
    assert len(keys) == 2


def test_the_leaderboard_names_the_engine_of_every_suite():
    saes = [
        cells.cell("core", engine="fast"),
        cells.cell("sparse_probing", engine="fast"),
        cells.cell("absorption", engine="reference"),
    ]
    shown = render_markdown(summarise([cells_run(saes)]))
    assert "- engine: fast (core, sparse_probing); reference (absorption)" in shown.replace(
        "\\", ""
    )


def cells_run(found):
    from bench.result import RunResult

    return RunResult("run", tuple(found))


def test_a_failed_sae_is_a_failed_cell_and_the_suite_goes_on(tmp_path, monkeypatch):
    class Fake:
        hooks = ("hook_resid_post",)
        metrics = (Metric("score", "higher", headline=True),)
        runs = 0

        def run(self, ctx, saes):
            self.runs += 1
            for handle in saes:
                if handle.label == "b":
                    yield Failed("b", ValueError("no such latent"))
                else:
                    yield Scored(handle.label, {"score": 1.0}, [], None)

    monkeypatch.setattr(
        worker, "_handle", lambda job, cell, suite: SaeHandle(cell.sae.label, 0, {})
    )
    one, suite = job(tmp_path), Fake()
    worker.evaluate(one, cast(Any, suite), cast(Any, None))

    assert [cell.state() for cell in one.cells] == ["ok", "failed", "ok"]
    failed = one.cells[1].load()
    assert failed is not None
    assert (failed.sae.label, failed.reason) == ("b", "ValueError: no such latent")
    assert suite.runs == 1
    assert info("a").label == "a"


def test_bfloat16_is_refused_on_a_cpu_without_it(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    assert "use float32" in (precision.problem("cpu", "bfloat16") or "")
    assert precision.problem("cpu", "float32") is None
    assert precision.problem("cuda", "bfloat16") is None
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    assert precision.problem("cpu", "bfloat16") is None
