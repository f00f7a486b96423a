"""Whole runs on the stream: variants that need contexts beside others, files, sinks, the cache."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import HOOK, data, pair

from bench import registry
from bench.checkpoint import load_sae, read_record
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.datasets import LocalHub
from bench.errors import UserError
from bench.train import train_all
from variants.topk import TopK

TOPK, ORDERED = VariantConfig("topk", {"k": 4}), VariantConfig("ordered", {"k": 4})


class Ordered(TopK):
    """Also wants neighbours in a context to have the same features."""

    needs_sequences = True
    seen: list[tuple[int, int]] = []
    """(tokens, contexts) of each step."""

    def losses(self, batch, step):
        assert batch.contexts is not None and batch.mask is not None
        type(self).seen.append((len(batch.x), len(batch.contexts)))
        f = self.encode(batch.contexts)  # [b, T, d_sae]
        both = batch.mask[:, 1:] & batch.mask[:, :-1]
        change = (f[:, 1:] - f[:, :-1]).pow(2).sum(-1)[both].mean()
        return super().losses(batch, step) | {"change": 0.1 * change}


@pytest.fixture(autouse=True)
def ordered(monkeypatch):
    """A variant called `ordered`, as if it were a file."""
    load, describe = registry.load, registry.describe
    Ordered.seen.clear()
    monkeypatch.setattr(
        registry,
        "load",
        lambda kind, name, *config: Ordered if name == "ordered" else load(kind, name, *config),
    )
    monkeypatch.setattr(
        registry,
        "describe",
        lambda kind, name, *rest: describe(kind, "topk" if name == "ordered" else name, *rest),
    )


def run(out: Path, *variants: VariantConfig, cache_gb: float = 0.0, **train: Any):
    known = {"d_sae": 48, "tokens": 3000, "batch_size": 100, "context_size": 32}
    config = RunConfig(
        name="test",
        model="nano",
        hook_name=HOOK,
        train=TrainConfig(**(known | {"heldout_tokens": 500} | train)),
        variants=variants,
        activation_cache_gb=cache_gb,
    )
    folders = train_all(config, pair()[0], LocalHub(data()), out, lambda *args: None)
    return {folder.name: folder for folder in folders}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run with topk alone."""
    return run(tmp_path_factory.mktemp("alone"), TOPK)["topk_k4_s0"]


@pytest.mark.parametrize("variants", [(TOPK, ORDERED), (ORDERED, TOPK)])
def test_a_variant_of_contexts_changes_no_bit_of_the_others(alone, tmp_path, variants):
    folders = run(tmp_path, *variants)
    assert contents(folders["topk_k4_s0"]) == contents(alone)
    assert load_sae(folders["ordered_k4_s0"]).cfg.d_sae == 48
    assert len(Ordered.seen) == 30
    assert all(n == 100 and b >= 2 for n, b in Ordered.seen)


def test_its_training_uses_the_contexts(alone, tmp_path):
    mine = run(tmp_path, ORDERED)["ordered_k4_s0"]
    assert contents(mine)["sae.safetensors"] != contents(alone)["sae.safetensors"]


def test_steps_without_room_for_two_contexts_are_refused_before_work(tmp_path):
    with pytest.raises(
        UserError, match=r"variants\[1\].name='ordered': .* at least 62 with .*=32, not 50"
    ):
        run(tmp_path, TOPK, ORDERED, batch_size=50)
    assert not list(tmp_path.iterdir())


def test_sinks_left_out_are_in_the_record(alone, tmp_path):
    strict = read_record(run(tmp_path, TOPK, sink_norm=1.05)["topk_k4_s0"])
    plain = read_record(alone)
    assert (plain["sink_norm"], plain["sink_fraction"]) == (None, 0.0)
    assert strict["sink_norm"] == 1.05 and 0 < strict["sink_fraction"] < 0.5
    assert strict["key"] != plain["key"]


def test_a_variant_that_is_added_later_needs_no_pass_of_the_model(alone, tmp_path, monkeypatch):
    from bench import reader

    out = tmp_path / "results" / "mine"
    first = run(out, TOPK, cache_gb=0.1)
    assert contents(first["topk_k4_s0"]) == contents(alone)
    assert list((out.parent / ".cache" / "activations").iterdir())
    monkeypatch.setattr(reader, "_seen", None)
    again = run(out, TOPK, ORDERED, cache_gb=0.1)
    monkeypatch.undo()
    assert load_sae(again["ordered_k4_s0"]).cfg.d_sae == 48


def test_a_local_file_is_trained_on_and_its_bytes_are_part_of_the_key(tmp_path):
    path = tmp_path / "mine.jsonl"
    source = LocalHub(data()).file("Skylion007/openwebtext", "train")
    path.write_bytes(source.read_bytes())
    before = read_record(run(tmp_path / "run", TOPK, dataset=str(path))["topk_k4_s0"])
    path.write_bytes(source.read_bytes() + b'{"text": "one more"}\n')
    after = read_record(run(tmp_path / "run", TOPK, dataset=str(path))["topk_k4_s0"])
    assert before["dataset"] == after["dataset"] == str(path)
    assert before["key"] != after["key"] and before["weights"] == after["weights"]


def test_records_of_before_there_were_sinks_are_still_read(alone, tmp_path):
    raw = json.loads((alone / "config.json").read_text())
    del raw["sink_norm"], raw["sink_fraction"], raw["checksum"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_record(tmp_path) == read_record(alone)
