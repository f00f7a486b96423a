"""A checkpoint: the same SAE after every way of loading it, and nothing broken is ever loaded."""

import json
from dataclasses import replace

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, make

from bench import checkpoint
from bench.checkpoint import (
    Record,
    export_saelens,
    in_units_of_model,
    is_saved,
    load_sae,
    measure,
    read_info,
    read_record,
    save_record,
    save_sae,
)
from bench.errors import UserError
from bench.result import SaeInfo
from bench.train import train_one
from bench.variant import Exported
from variants.relu import ReLU
from variants.topk import TopK
from variants.vanilla import Vanilla

SCALE = 37.5
VARIANTS = {"vanilla": (Vanilla, {"l1": 0.1}), "relu": (ReLU, {}), "topk": (TopK, {"k": 3})}


def record(**fields) -> Record:
    info = SaeInfo(
        label="topk_k3_s0",
        role="trained",
        variant="topk",
        world="nano",
        model="nano",
        hook_name="blocks.2.hook_resid_post",
        d_in=D_IN,
        d_sae=D_SAE,
        train_tokens=1600,
    )
    known = {"key": "k", "source": "s", "dataset": "text", "context_size": 64, "n_steps": 50}
    return Record(info=info, scale=SCALE, **(known | fields))


@pytest.fixture(params=VARIANTS)
def trained(request):
    variant, config = VARIANTS[request.param]
    sae = make(variant, **config)
    train_one(sae, FakeStream())
    return sae


@pytest.fixture
def saved(tmp_path):
    """A folder with a TopK SAE."""
    exported = in_units_of_model(make(TopK, k=3).export(), SCALE)
    save_sae(tmp_path / "sae", record(), exported, SCALE * activations(500))
    return tmp_path / "sae"


def test_the_loaded_sae_is_the_trained_one_in_the_units_of_the_model(trained, tmp_path):
    x = activations(300)
    exported = in_units_of_model(trained.export(), SCALE)
    save_sae(tmp_path, record(), exported, SCALE * x)
    sae = load_sae(tmp_path)
    norms = trained.W_dec.norm(dim=-1) if isinstance(trained, ReLU) else 1.0
    f = trained.encode(x)
    torch.testing.assert_close(sae.encode(SCALE * x), SCALE * norms * f, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sae(SCALE * x), SCALE * trained(x), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    assert read_info(tmp_path).l0 == pytest.approx((f != 0).sum(-1).float().mean().item(), rel=1e-3)


def test_plain_sae_lens_loads_the_export(trained, tmp_path):
    from sae_lens import SAE

    x = SCALE * activations(100)
    save_sae(tmp_path / "ours", record(), in_units_of_model(trained.export(), SCALE), x)
    export_saelens(tmp_path / "ours", tmp_path / "theirs")
    ours, theirs = load_sae(tmp_path / "ours"), SAE.load_from_disk(tmp_path / "theirs")
    assert type(ours) is type(theirs)
    assert torch.equal(ours.encode(x), theirs.encode(x))
    assert torch.equal(ours(x), theirs(x))
    for loaded in (ours, theirs):
        assert loaded.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
        assert loaded.cfg.metadata.model_name == "nano"


def test_sae_bench_accepts_the_loaded_sae(saved):
    from sae_bench.sae_bench_utils.general_utils import check_decoder_norms, load_and_format_sae

    sae = load_sae(saved)
    assert check_decoder_norms(sae.W_dec.data)
    load_and_format_sae("topk_k3_s0", sae, "cpu")
    cfg = sae.cfg
    assert (cfg.hook_layer, cfg.hook_name, cfg.model_name, cfg.context_size, cfg.prepend_bos) == (
        *(2, "blocks.2.hook_resid_post", "nano", 64, True),
    )


def test_measures_equal_sae_lens_and_a_direct_count(saved):
    from sae_lens.evals import ExplainedVarianceCalculator

    sae, x = load_sae(saved), SCALE * activations(500)
    reference = ExplainedVarianceCalculator()
    reference.add_batch(sae(x).detach(), x)
    f = sae.encode(x)
    found = measure(sae, x)
    raw = read_record(saved)
    assert found.explained_variance == pytest.approx(reference.compute(), abs=1e-5)
    assert found.l0 == (f != 0).float().sum(-1).mean().item() == raw["info"]["l0"]
    assert found.n_dead == (f == 0).all(0).sum() == raw["n_dead"]
    assert raw["explained_variance"] == found.explained_variance


def test_a_folder_holds_weights_and_json_only_and_is_the_same_on_a_rerun(saved):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    assert set(before) == {"sae.safetensors", "config.json"}
    exported = in_units_of_model(make(TopK, k=3).export(), SCALE)
    save_sae(saved, record(), exported, SCALE * activations(500))
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_weights_that_are_not_those_of_the_record_are_refused(saved):
    assert is_saved(saved, "k") and not is_saved(saved, "another")
    path = saved / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert not is_saved(saved, "k")
    with pytest.raises(UserError, match="its weights are not those of its config.json"):
        load_sae(saved)


def test_a_failed_write_leaves_the_old_checkpoint(saved, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    exported = in_units_of_model(make(TopK, seed=1, k=3).export(), SCALE)
    with pytest.raises(OSError, match="No space"):
        save_sae(saved, record(key="new"), exported, activations(50))
    assert is_saved(saved, "k") and load_sae(saved)
    assert len(list(saved.iterdir())) == 2


def test_an_sae_that_was_stopped_says_why_when_it_is_loaded(tmp_path):
    save_record(tmp_path, record(stop_reason="loss is nan at step 7 of 50"))
    assert read_info(tmp_path).l0 is None
    assert not is_saved(tmp_path, "k")
    with pytest.raises(UserError, match="'topk_k3_s0' was not trained to its end: loss is nan"):
        load_sae(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"schema": 2}', '{"schema": 1, "extra": 0}'])
def test_a_broken_record_is_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_info(tmp_path)
    assert "\n" not in str(error.value)
    assert not is_saved(tmp_path, "k")


def test_thresholds_grow_with_the_input_and_unknown_weights_are_refused():
    state = {"threshold": torch.ones(2), "W_enc": torch.ones(3, 2)}
    scaled = in_units_of_model(Exported("jumprelu", {}, state), 5.0).state
    assert scaled["threshold"].tolist() == [5, 5] and torch.equal(scaled["W_enc"], state["W_enc"])
    with pytest.raises(ValueError, match="do not know how U changes"):
        in_units_of_model(Exported("gated", {}, {"U": torch.ones(2)}), 5.0)


def test_a_record_that_was_edited_is_refused(saved, tmp_path):
    path = tmp_path / checkpoint.RECORD_FILE
    text = (saved / checkpoint.RECORD_FILE).read_text()
    path.write_text(text.replace('"n_steps": 5', '"n_steps": 6'))
    assert path.read_text() != text
    with pytest.raises(UserError, match="is damaged"):
        read_record(tmp_path)


def test_a_record_survives_json(saved):
    raw = json.loads((saved / checkpoint.RECORD_FILE).read_text())
    assert len(raw.pop("checksum")) == 24
    assert raw == read_record(saved)
    assert raw["cfg"] == {"k": 3, "apply_b_dec_to_input": True}
    assert replace(record(), info=read_info(saved)).info.l0 == raw["info"]["l0"]
