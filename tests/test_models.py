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


def test_any_local_folder_is_a_base_model_until_the_config_declares(tmp_path):
    folder = tmp_path / "granite-base-it"
    tiny.save_checkpoint(folder)
    spec = models.resolve(str(folder))
    assert (spec.name, spec.kind, spec.n_layers) == ("granite-base-it", "base", tiny.N_LAYERS)
    assert spec.is_local and spec.d_model == tiny.D_MODEL
    with pytest.raises(UserError, match="has no instruct sibling"):
        models.on_side(spec, "instruct")
    declared = models.resolve(str(folder), str(folder))
    assert declared.kind == "instruct" and models.on_side(declared, "instruct") == declared


def test_the_config_declares_the_sibling_of_a_folder(tmp_path):
    base, other = tmp_path / "mine", tmp_path / "talks"
    tiny.save_checkpoint(base)
    tiny.save_checkpoint(other, seed=1)
    spec = models.resolve(str(base), str(other))
    sibling = models.on_side(spec, "instruct")
    assert (sibling.name, sibling.kind) == ("talks", "instruct")
    models.check_pair(spec, sibling, hook_name="blocks.2.hook_resid_post")


@pytest.mark.parametrize("name", ["Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"])
def test_instruct_models_need_no_it_in_their_name(name):
    spec = models.resolve(name)
    assert spec.kind == "instruct" and models.on_side(spec, "instruct") == spec


def test_a_sibling_in_the_config_goes_before_the_table():
    spec = models.resolve("gemma-2-2b", "someone/gemma-2-2b-chat")
    sibling = models.on_side(spec, "instruct")
    assert (sibling.source, sibling.kind) == ("someone/gemma-2-2b-chat", "instruct")


def test_a_base_model_of_the_table_is_no_sibling():
    for name in ("gemma-2-2b", "google/gemma-2-2b", "gemma-2-9b"):
        with pytest.raises(UserError, match=f"instruct='{name}': is a base model; its sibling"):
            models.resolve("gemma-2-2b", name)
    with pytest.raises(UserError, match="instruct='pythia-70m-deduped': is a base model; name"):
        models.resolve("nano", "pythia-70m-deduped")


def test_an_sae_is_evaluated_on_its_model_and_the_sibling_only():
    from bench.pair import check_trained_on
    from tests import cells

    gemma = {"d_in": 2304, "hook_name": "blocks.12.hook_resid_post"}
    for name in ("gemma-2-2b", "gemma-2-2b-it"):
        check_trained_on(cells.sae(model=name, **gemma), models.resolve("gemma-2-2b"))
        check_trained_on(cells.sae(model=name, **gemma), models.resolve("gemma-2-2b-it"))
    wrong = [
        ("was trained on 'gemma-2-9b'", gemma | {"model": "gemma-2-9b"}),
        ("have layers 0 to 25", gemma | {"hook_name": "blocks.26.hook_resid_post"}),
        ("is 2048 wide, .* is 2304", gemma | {"d_in": 2048}),
    ]
    for message, changed in wrong:
        with pytest.raises(UserError, match=message):
            check_trained_on(
                cells.sae(**({"model": "gemma-2-2b"} | changed)), models.resolve("gemma-2-2b")
            )
