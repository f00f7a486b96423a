"""A local folder of each family loads with Hugging Face's logits; pickles and code are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UserError
from bench.local_models import FAMILIES, check_folder
from bench.models import ModelSpec, load_model
from tests import tiny

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


CLASSES = {
    "Gemma2": "Gemma2ForCausalLM",
    "Llama": "LlamaForCausalLM",
    "GPTNeoX": "GPTNeoXForCausalLM",
    "GPT2": "GPT2LMHeadModel",
    "Qwen2": "Qwen2ForCausalLM",
}


def config_of(family: str, **changes: Any) -> Any:
    import transformers

    common = {
        "vocab_size": len(tiny.tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": False,
    }
    own = {
        # a window shorter than the text: local and global layers must not be mixed up
        "Gemma2": {"head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 4},
        "Llama": {},
        "GPTNeoX": {"rotary_pct": 0.25},
        "GPT2": {"n_inner": 48},
        "Qwen2": {},
    }[family]
    if family in ("GPTNeoX", "GPT2"):
        del common["num_key_value_heads"]
    if family == "GPT2":
        del common["intermediate_size"]
    return getattr(transformers, f"{family}Config")(**(common | own | changes))


def save(folder: Path, family: str, **changes: Any) -> Any:
    """A random model whose every weight, biases and norms too, takes part; with its tokenizer."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, CLASSES[family])(config_of(family, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "ln_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return model


def spec_of(folder: Path) -> ModelSpec:
    return ModelSpec("tiny", "real", str(folder), "base", 2)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Gemma2", {}),
        ("Gemma2", {"tie_word_embeddings": True, "final_logit_softcapping": 5.0}),
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
        ("Llama", {"head_dim": 16}),
        ("Llama", {"rope_parameters": LLAMA3_ROPE}),
        ("GPTNeoX", {}),
        ("GPTNeoX", {"use_parallel_residual": False}),
        ("GPT2", {}),
        ("GPT2", {"tie_word_embeddings": True, "n_inner": None}),
        ("Qwen2", {}),
        ("Qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_logits_equal_hugging_face(tmp_path, family, changes):
    theirs_model = save(tmp_path, family, **changes)
    tokens = torch.randint(6, 500, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = load_model(spec_of(tmp_path))(tokens), theirs_model(tokens).logits
    assert theirs.std() > 0.3
    assert (ours - theirs).abs().max() < 1e-4


def test_the_hook_sees_hugging_faces_hidden_states(tmp_path):
    theirs = save(tmp_path, "Llama")
    tokens = torch.arange(10, 40)[None]
    with torch.no_grad():
        _, cache = load_model(spec_of(tmp_path)).run_with_cache(tokens)
        hidden = theirs(tokens, output_hidden_states=True).hidden_states
    assert (cache["blocks.0.hook_resid_post"] - hidden[1]).abs().max() < 1e-4


def test_a_folder_of_pickles_is_refused_in_one_line(tmp_path):
    model = save(tmp_path, "Llama")
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle, which is never loaded"):
        load_model(spec_of(tmp_path))


def test_code_that_comes_with_a_checkpoint_is_refused(tmp_path):
    save(tmp_path, "Llama")
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["auto_map"] = {"AutoModelForCausalLM": "modeling.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "modeling.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match="auto_map.*--trust-remote-code"):
        load_model(spec_of(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not a model's config"),
        ("not json", "is not a model's config"),
        ('{"architectures": ["BertForMaskedLM"]}', "unknown architecture 'BertForMaskedLM'"),
        ('{"architectures": ["LlamaForCausalLM"]}', r"has no model\.safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Llama", {"attention_bias": True}, "Llama with biases"),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type"),
        ("GPT2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("Qwen2", {"use_sliding_window": True, "max_window_layers": 0}, "use_sliding_window"),
    ],
)
def test_what_the_converters_would_get_wrong_is_refused(tmp_path, family, changes, message):
    save(tmp_path, family, **changes)
    with pytest.raises(UserError, match=message):
        load_model(spec_of(tmp_path))


def test_every_family_is_tested():
    assert set(CLASSES.values()) == set(FAMILIES)
