"""The configs of real models, and true shapes with random weights, as no weights are at hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import memory, registry
from bench.config import RunConfig, load_config
from bench.doctor.machine import ram
from bench.doctor.subject import Subject
from bench.models import resolve
from bench.preflight_stream import problems

ROOT = Path(__file__).parents[1]
GB = 10**9
CARDS = {"gemma-2-2b": 24, "gemma-2-2b-80gb": 80, "pythia-70m": 8}
"""Config -> GB of the card that it is for."""


@pytest.fixture(params=CARDS)
def named(request) -> tuple[str, RunConfig]:
    return request.param, load_config(ROOT / "configs" / f"{request.param}.yaml")


def test_the_recipe_is_saebenchs(named):
    _, config = named
    train = config.train
    n_steps = train.tokens / train.batch_size
    assert (train.tokens, train.batch_size, train.lr) == (500_000_000, 2048, 3e-4)
    assert train.warmup_fraction * n_steps == pytest.approx(1000, rel=0.03)
    assert train.sparsity_warmup_fraction * n_steps == pytest.approx(5000, rel=0.03)
    assert train.decay_from == 0.8
    assert train.context_size == 1024


def test_gemma_is_read_in_its_own_precision_at_layer_12():
    for name in ("gemma-2-2b", "gemma-2-2b-80gb"):
        config = load_config(ROOT / "configs" / f"{name}.yaml")
        assert (config.hook_name, config.train.d_sae) == ("blocks.12.hook_resid_post", 16_384)
        assert (config.dtype, config.device) == ("bfloat16", "cuda")


def test_training_fits_the_card_with_a_tenth_to_spare(named, tmp_path, monkeypatch):
    name, config = named
    monkeypatch.setattr(memory, "available", lambda device: int(0.9 * CARDS[name] * GB))
    assert list(problems(config, resolve(config.model))) == []
    assert ram(Subject(config, tmp_path)).state == "pass"


def test_a_smaller_card_is_refused(named, tmp_path, monkeypatch):
    name, config = named
    monkeypatch.setattr(memory, "available", lambda device: CARDS[name] * GB // 4)
    found = ram(Subject(config, tmp_path))
    assert found.state == "fail"
    assert f"cuda has {CARDS[name] / 4:.1f} GB free" in found.message


def test_unlearning_is_left_out_only_where_there_is_no_instruct_model(named):
    _, config = named
    assert ("unlearning" in config.suites) == (resolve(config.model).instruct is not None)


def test_each_config_says_for_which_card_it_is(named):
    name, _ = named
    assert f"{CARDS[name]} GB" in (ROOT / "configs" / f"{name}.yaml").read_text()[:400]


@pytest.mark.slow
def test_true_shapes_of_gemma_take_the_memory_that_was_estimated():
    """Two layers with random weights, and one step of each variant at 2304 -> 16384."""
    free = memory.available("cpu")
    if free is not None and free < 10 * GB:
        pytest.skip(f"{free / GB:.0f} GB of memory free, needs 10")
    variants = registry.names("variants")
    script = [sys.executable, str(ROOT / "tests" / "true_shapes.py"), "2", *variants]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["loaded"] < found["loading_estimate"]
    need = sum(found["estimate"].values())
    for name, one in found["variants"].items():
        assert (one["stop_reason"], one["n_steps"]) == (None, 1), name
        assert one["peak"] < need < 2 * one["peak"], f"{name}: {one['peak']} of {need} estimated"
