"""What suites keep on disk for all SAEs follows everything that decides it, damaged or not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import context
from bench.suite import Scored
from suites.core import CoreSuite
from tests import tiny

SETTINGS = CoreSuite.Config(
    batch_size_prompts=2,
    n_eval_reconstruction_batches=1,
    n_eval_sparsity_variance_batches=1,
    context_size=16,
)


@pytest.fixture
def ctx(tmp_path):
    return tiny.context(tmp_path)


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "made_by.py"
    path.write_text("x = 1\n")
    return path


def key(ctx, code, **settings):
    return ctx.content("base", str(code), **settings)


def other_weights(ctx, code, tmp_path, monkeypatch):
    tiny.save_checkpoint(tmp_path / "other", seed=5)
    ctx.spec = replace(ctx.spec, source=str(tmp_path / "other"))


def other_data(ctx, code, tmp_path, monkeypatch):
    ctx.hub = SimpleNamespace(revision="another")
    vars(ctx).pop("data_revision", None)


def other_precision(ctx, code, tmp_path, monkeypatch):
    ctx.dtype = "bfloat16"


def other_device(ctx, code, tmp_path, monkeypatch):
    ctx.device = "cuda"


def other_packages(ctx, code, tmp_path, monkeypatch):
    monkeypatch.setattr(context, "versions", lambda: {"torch": "0"})


def other_code(ctx, code, tmp_path, monkeypatch):
    code.write_text("x = 2\n")


CHANGES = (
    other_weights,
    other_data,
    other_precision,
    other_device,
    other_packages,
    other_code,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_decides_it_is_in_the_key(ctx, code, tmp_path, monkeypatch, change):
    before = key(ctx, code)
    assert key(ctx, code) == before
    change(ctx, code, tmp_path, monkeypatch)
    assert key(ctx, code) != before


def test_settings_are_in_the_key(ctx, code):
    assert key(ctx, code, hook="a") != key(ctx, code, hook="b") != key(ctx, code)


def test_damage_on_disk_changes_no_result(ctx, caplog):
    def run() -> Scored:
        ctx.engine, ctx.cache_gb = "fast", 1.0
        vars(ctx).pop("cache", None)
        (scored,) = CoreSuite(SETTINGS).run(ctx, [tiny.handle("a")])
        assert isinstance(scored, Scored)
        return scored

    first = run()
    files = list((ctx.artifacts / "shared").iterdir())
    assert files
    for file in files:
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1  # the last token
        file.write_bytes(raw)
    assert run().metrics == first.metrics
    assert "is damaged and is made anew" in caplog.text
    caplog.clear()
    assert run().metrics == first.metrics
    assert not caplog.text


def test_a_worker_computes_on_one_thread_and_keeps_freed_memory(tmp_path, monkeypatch):
    """For both engines alike, so that no comparison of them is one of settings."""
    from bench import worker
    from bench.executor import SuiteJob

    called = []
    monkeypatch.setattr(torch, "set_num_threads", lambda n: called.append(("threads", n)))
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: called.append(("keeps", 1)))
    monkeypatch.setattr("bench.datasets.hub_for", lambda *args, **kwargs: ctx)
    for engine in ("reference", "fast"):
        job = SuiteJob(
            suite="core",
            config={},
            model="nano",
            cells=(),
            work=tmp_path,
            cache_dir=tmp_path,
            seed=0,
            data_revision="",
            engine=engine,
        )
        assert worker._context(job).engine == engine
        assert called == [("threads", 1), ("keeps", 1)]
        called.clear()
