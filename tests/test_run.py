"""The whole pipeline on a tiny model, with a real suite process: nothing is computed twice."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bench import datasets, models, rates, registry
from bench.config import ControlConfig, RunConfig, TrainConfig, VariantConfig, load_config
from bench.errors import RunStopped, UserError
from bench.result import CACHE, Cell, load_run
from bench.run import outline, run, save_config
from tests import tiny

SUITE = '''
from bench.suite import Metric, Scored, Suite
from bench.variant import NoConfig

class Rows(Suite):
    """Counts decoder rows; cannot score the mean."""

    Config = NoConfig
    metrics = (Metric("n_rows", "higher", headline=True),)
    side = "base"

    def run(self, ctx, saes):
        for handle in saes:
            if handle.label.startswith("mean"):
                raise ArithmeticError("no mean")
            yield Scored(handle.label, {"n_rows": float(len(handle.sae.W_dec))}, [], None)
'''
CONFIG = RunConfig(
    name="mine",
    model="nano",
    hook_name=tiny.HOOK,
    train=TrainConfig(d_sae=32, tokens=2_000, batch_size=256, context_size=32, heldout_tokens=256),
    variants=(VariantConfig("topk", {"k": 4}),),
    controls=(ControlConfig("random", 4.0),),
    suites={"rows": {}},
)


@pytest.fixture
def go(monkeypatch, tmp_path):
    """Runs CONFIG with changes into one folder; returns the cells and how many were computed."""
    plugin = tmp_path / "rows.py"
    plugin.write_text(SUITE)
    monkeypatch.setenv(registry.PLUGINS_ENV, str(plugin))
    base, instruct = tiny.pair()
    monkeypatch.setattr(models, "MODELS", {"nano": base, "nano-it": instruct})
    monkeypatch.setattr(datasets, "hub_for", lambda *args: datasets.LocalHub(tiny.data()))
    out = tmp_path / "results" / "mine"

    def times() -> dict[Path, int]:
        found = [*out.parent.glob(".store/*/cell.json"), *out.parent.glob("*/failed/*/cell.json")]
        return {path: path.stat().st_mtime_ns for path in found}

    def start(
        out: Path = out, retry_failed=False, skip_unavailable=False, **changes
    ) -> tuple[list[Cell], int]:
        before = times()
        cells = run(
            replace(CONFIG, **changes),
            out,
            lambda *args: None,
            retry_failed=retry_failed,
            skip_unavailable=skip_unavailable,
        )
        return cells, sum(before.get(path) != time for path, time in times().items())

    start.out, start.plugin = out, plugin  # type: ignore[attr-defined]
    return start


def test_every_sae_is_trained_scored_and_reported(go):
    cells, n_computed = go()
    assert [(c.sae.label, c.state, c.metrics[0].value) for c in cells] == [
        ("topk_k4_s0", "ok", 32.0),
        ("random_target4_s0", "ok", 32.0),
    ], [c.detail for c in cells]
    assert n_computed == 2
    assert load_run(go.out).cells == tuple(cells)
    assert rates.set_up_s(go.out.parent / CACHE, "rows", "reference", "nano")
    assert yaml.safe_load((go.out / "config.yaml").read_text())["train"]["d_sae"] == 32


def test_what_is_finished_is_not_computed_again_and_what_changed_is(go):
    assert go()[1] == 2
    assert go()[1] == 0
    assert go(eval_seed=43)[1] == 2
    assert go(controls=(*CONFIG.controls, ControlConfig("mean")))[1] == 1
    go.plugin.write_text(SUITE.replace("Counts", "Still counts"))
    assert go()[1] == 2


def test_a_failure_stays_in_its_cell_and_is_tried_again_when_asked(go):
    controls = (ControlConfig("mean"), ControlConfig("random", 4.0))
    cells, _ = go(controls=controls)
    assert [c.state for c in cells] == ["ok", "failed", "ok"]
    assert cells[1].reason == "ArithmeticError: no mean"
    rows = json.loads((go.out / "ledger.json").read_text())["cells"]
    assert [row["state"] for row in rows] == ["ok", "failed", "ok"]
    again, n_computed = go(controls=controls)
    assert (again, n_computed) == (cells, 0)
    assert go(controls=controls, retry_failed=True)[1] == 1


def test_a_failure_is_not_that_of_another_run_and_is_forgotten_with_its_cause(go):
    controls = (ControlConfig("mean"),)
    assert go(controls=controls)[1] == 2
    cells, n_computed = go(out=go.out.parent / "other", controls=controls)
    assert [c.state for c in cells] == ["ok", "failed"]
    assert n_computed == 1  # the finished one is shared
    go.plugin.write_text(SUITE.replace('raise ArithmeticError("no mean")', "pass"))
    cells, n_computed = go(controls=controls)
    assert ([c.state for c in cells], n_computed) == (["ok", "ok"], 2)


def test_a_suite_that_cannot_run_is_left_out_until_it_can(go, monkeypatch, tmp_path):
    chat = tmp_path / "talk.py"
    chat.write_text(SUITE.replace('side = "base"', 'side = "instruct"'))
    monkeypatch.setenv(registry.PLUGINS_ENV, f"{go.plugin}:{chat}")
    both = models.MODELS
    monkeypatch.setattr(models, "MODELS", {"nano": replace(both["nano"], instruct=None)})
    suites = {"talk": {}, "rows": {}}
    with pytest.raises(UserError, match="the other suites can run: --skip-unavailable"):
        go(suites=suites, controls=())
    cells, _ = go(suites=suites, controls=(), skip_unavailable=True)
    assert {c.suite: c.state for c in cells} == {"rows": "ok", "talk": "skipped"}
    assert "no instruct sibling" in next(c.reason for c in cells if c.suite == "talk")
    assert load_run(go.out).cells == tuple(cells)
    assert list(load_config(go.out / "config.yaml").suites) == ["talk", "rows"]
    monkeypatch.setattr(models, "MODELS", both)
    cells, n_computed = go(suites=suites, controls=())
    assert ({c.suite: c.state for c in cells}, n_computed) == ({"rows": "ok", "talk": "ok"}, 1)


def test_a_folder_out_of_reach_stops_the_run_in_one_line(go, monkeypatch):
    def train(config, spec, hub, out, progress, **others):
        raise PermissionError(errno.EACCES, "Permission denied", str(out / "saes" / "topk"))

    monkeypatch.setattr("bench.train.train_all", train)
    with pytest.raises(RunStopped, match="Permission denied: .*topk'; what is finished is kept"):
        go()


def test_a_relative_run_folder_is_found_by_the_suites(go, tmp_path, monkeypatch):
    """Suites run in working directories of their own."""
    monkeypatch.chdir(tmp_path)
    cells, _ = go(out=Path("results/relative"), controls=())
    assert [cell.state for cell in cells] == ["ok"]


def test_a_saved_config_is_the_config(tmp_path):
    config = load_config(Path(__file__).parents[1] / "configs" / "nano.yaml")
    save_config(config, tmp_path)
    assert load_config(tmp_path / "config.yaml") == config


def test_the_outline_counts_cells():
    lines = outline(replace(CONFIG, seeds=(0, 1), suites={"a": {}, "b": {}}))
    assert lines[-1] == "cells     8"  # 2 SAEs x 2 seeds x 2 suites
