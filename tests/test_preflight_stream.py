"""Training that could not start is refused in seconds, in one line with both numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import HOOK, pair

from bench import preflight
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.models import ModelSpec
from bench.pilot import FACTORS
from bench.preflight_stream import at_once, problems


def config(**changes) -> RunConfig:
    train = {"d_sae": 64, "tokens": 10_000} | changes.pop("train", {})
    known = {
        "name": "mine",
        "model": "nano",
        "hook_name": HOOK,
        "train": TrainConfig(**train),
        "variants": (VariantConfig("topk", {"k": 4}),),
    }
    return RunConfig(**(known | changes))


def complaints(spec: ModelSpec | None = None, **changes) -> list[str]:
    found = list(problems(config(**changes), spec or pair()[0]))
    assert not any("\n" in problem for problem in found)
    return found


def test_a_run_that_can_start_is_let_through():
    assert complaints() == []
    assert complaints(d_in=24) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"context_size": 513}}, "train.context_size=513: exceeds the 512 of model"),
        ({"d_in": 25}, f"d_in=25: {HOOK} of model 'nano' is 24 wide"),
        ({"hook_name": "blocks.1.hook_nothing"}, "'blocks.1.hook_nothing': is no hook of model"),
        ({"hook_name": "blocks.1.attn.hook_z"}, "with one row per token; take hook_resid_post"),
        ({"train": {"dataset": "gone.jsonl"}}, "'gone.jsonl': there is no such file"),
    ],
)
def test_what_does_not_fit_the_model_or_the_data_is_refused(changes, message):
    (found,) = complaints(**changes)
    assert message in found


@pytest.mark.parametrize("content", ["", "too few words\n"])
def test_a_file_without_enough_text_is_refused_with_both_numbers(tmp_path, content):
    path = tmp_path / "small.txt"
    path.write_text(content)
    (found,) = complaints(train={"dataset": str(path)})
    assert f"has {len(content)} bytes for the {10_000 + 16_384} tokens" in found


def test_the_most_saes_at_once_are_those_of_the_run_or_its_pilots():
    topk = [VariantConfig("topk", {"k": k}) for k in (1, 2, 3)]
    relu = [VariantConfig("relu", target_l0=float(t)) for t in (4, 8)]
    assert at_once(config(variants=tuple(topk))) == 3
    assert at_once(config(variants=tuple(topk), seeds=(0, 1, 2))) == 9
    # one search serves both targets
    assert at_once(config(variants=tuple(relu))) == len(FACTORS)
    assert at_once(config(variants=(*topk, *relu))) == 5


def test_the_checks_are_part_of_preflight(tmp_path: Path, monkeypatch):
    from bench import models
    from bench.errors import UserError

    specs = {s.name: s for s in pair()}
    monkeypatch.setattr(models, "MODELS", specs)
    preflight.check(config(), tmp_path)
    with pytest.raises(UserError, match="d_in=7: .* is 24 wide"):
        preflight.check(replace(config(), d_in=7), tmp_path)
