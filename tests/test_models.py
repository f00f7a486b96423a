"""Loading equals Hugging Face; pairs are declared, never guessed."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from bench import models
from bench.errors import UserError
from tests import tiny


def test_logits_equal_hugging_face(tmp_path):
    import torch
    from transformers import Gemma2ForCausalLM

    # a window shorter than the text: local and global layers must not be mixed up
    tiny.save_checkpoint(tmp_path, sliding_window=4)
    spec = models.ModelSpec("tiny", "nano", str(tmp_path), "base", tiny.N_LAYERS)
    tokens = torch.randint(6, 500, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = models.load_model(spec)(tokens)
        theirs = Gemma2ForCausalLM.from_pretrained(tmp_path).eval()(tokens).logits
    assert theirs.abs().max() > 1
    assert (ours - theirs).abs().max() < 1e-4


def test_a_model_carries_the_name_of_its_spec_and_one_bos():
    spec, _ = tiny.pair()
    model = models.load_model(spec)
    assert model.cfg.model_name == "nano"
    assert not model.training
    tokens = model.to_tokens("<bos><start_of_turn>user\nA", prepend_bos=False)
    assert (tokens == model.tokenizer.bos_token_id).sum() == 1
    assert (model.to_tokens(" river") == model.tokenizer.bos_token_id).sum() == 1


def test_an_unknown_name_gets_the_nearest_match():
    with pytest.raises(UserError, match=r"unknown model 'gemma-2-2': did you mean 'gemma-2-2b'\?"):
        models.resolve("gemma-2-2")


def test_every_declared_sibling_exists_and_is_instruct():
    for name in models.names():
        sibling = models.resolve(name).instruct
        assert sibling is None or models.resolve(sibling).kind == "instruct"


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("nano", "base", "nano"),
        ("nano", "instruct", "nano-it"),
        ("nano-it", "instruct", "nano-it"),
        ("gemma-2-9b", "instruct", "gemma-2-9b-it"),
    ],
)
def test_the_sibling_comes_from_the_table(name, side, expected):
    assert models.on_side(models.resolve(name), side).name == expected


def test_a_model_without_sibling_is_refused_on_the_instruct_side():
    with pytest.raises(UserError, match="'pythia-70m-deduped': has no instruct sibling"):
        models.on_side(models.resolve("pythia-70m-deduped"), "instruct")


@pytest.mark.parametrize("name", ["nano", "nano-it"])
def test_the_table_agrees_with_the_shipped_checkpoint(name):
    spec = models.resolve(name)
    config = models.NANO_WEIGHTS / ("base" if name == "nano" else "instruct") / "config.json"
    if not config.is_file():
        pytest.skip("the nano weights are not built")
    shipped = json.loads(config.read_text())
    assert (spec.n_layers, spec.d_model) == (shipped["num_hidden_layers"], shipped["hidden_size"])


def test_a_missing_checkpoint_names_the_fix(tmp_path):
    base, instruct = tiny.pair()
    with pytest.raises(UserError, match="nano build"):
        models.check_pair(replace(base, source=str(tmp_path / "none")), instruct)


def test_a_good_pair_passes():
    models.check_pair(*tiny.pair(), hook_name="blocks.2.hook_resid_post")


@pytest.mark.parametrize("hook", ["blocks.3.hook_resid_post", "resid_post"])
def test_a_hook_outside_the_models_is_refused(hook):
    with pytest.raises(UserError, match=f"hook_name='{hook}'"):
        models.check_pair(*tiny.pair(), hook_name=hook)


def test_instruct_is_a_declared_kind_not_a_name():
    base, instruct = tiny.pair()
    with pytest.raises(UserError, match="'nano-it' is declared 'base'"):
        models.check_pair(base, replace(instruct, kind="base"))


def test_siblings_of_other_depth_are_refused(tmp_path):
    base, instruct = tiny.pair()
    tiny.save_checkpoint(tmp_path, n_layers=2)
    with pytest.raises(UserError, match="n_layers differs, 3 and 2"):
        models.check_pair(base, replace(instruct, source=str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", "vocabulary", "map tokens to different ids"),
        ("chat_template.jinja", "remove", "no chat template"),
    ],
)
def test_siblings_with_other_tokenizers_are_refused(tmp_path, file, change, message):
    base, instruct = tiny.pair()
    tiny.save_checkpoint(tmp_path)
    if change == "remove":
        (tmp_path / file).unlink()
    else:
        raw = json.loads((tmp_path / file).read_text())
        vocabulary = raw["model"]["vocab"]
        first, second = list(vocabulary)[10:12]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        (tmp_path / file).write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message):
        models.check_pair(base, replace(instruct, source=str(tmp_path)))


def test_naming_models_imports_nothing_heavy():
    code = (
        "import sys, bench.models as m; m.resolve(m.names()[0]);"
        "assert not {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
