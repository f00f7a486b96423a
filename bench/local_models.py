"""A Hugging Face checkpoint in a local folder as a HookedTransformer, without any network.

TransformerLens loads hub ids only, so the config is written here as it writes it for the hub's
models (transformer_lens/loading_from_pretrained.py, 3.9), and its own converters move the weights.
Families: Gemma-2, Llama, GPT-NeoX (Pythia), GPT-2, Qwen2. Weights are safetensors; nothing is
unpickled.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.strict import unknown

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

CONFIG_FILE = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TRUST_FLAG = "--trust-remote-code"


def check_folder(folder: Path) -> str:
    """The architecture of the checkpoint in `folder`. Raises UserError for what we do not load:

    no config, another architecture, pickled weights, or code that comes with the checkpoint.
    """
    where = f"model folder {str(folder)!r}"
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{where}: has no {CONFIG_FILE}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        (architecture,) = config["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: {CONFIG_FILE} is not a model's config: {error!r}") from error
    if "auto_map" in config:
        raise UserError(
            f"{where}: {CONFIG_FILE} asks to run code of its own (auto_map), which is never run "
            f"for a local folder, not even with {TRUST_FLAG}; remove auto_map if it is one of "
            f"{', '.join(FAMILIES)}"
        )
    if architecture not in FAMILIES:
        raise UserError(f"{where}: {unknown('architecture', architecture, FAMILIES)}")
    _check_weights(folder, where)
    return architecture


def _check_weights(folder: Path, where: str) -> None:
    if any((folder / name).is_file() for name in WEIGHTS):
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    hint = f"; {pickles[0]} is a pickle, which is never loaded" if pickles else ""
    raise UserError(
        f"{where}: has no {WEIGHTS[0]}{hint}; write one with "
        "save_pretrained(..., safe_serialization=True) on a machine that you trust it on"
    )


def load_folder(folder: Path, device: str, dtype: Any) -> "HookedTransformer":
    """The model with its tokenizer, nothing folded or centred; `dtype` is a torch.dtype.

    Raises UserError for what `check_folder` refuses.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    family = FAMILIES[check_folder(folder)]
    hf_model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    cfg = HookedTransformerConfig(
        **family(hf_model.config),
        original_architecture=type(hf_model).__name__,
        init_weights=False,
        device=device,
        dtype=dtype,
    )
    model = HookedTransformer(cfg, tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        _converter(type(hf_model).__name__)(hf_model, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    model.move_model_modules_to_device()
    return model


def _converter(architecture: str) -> Callable[[Any, Any], dict[str, Any]]:
    from transformer_lens.pretrained.weight_conversions import gemma, gpt2, llama, neox, qwen2

    return {
        "Gemma2ForCausalLM": gemma.convert_gemma_weights,
        "LlamaForCausalLM": llama.convert_llama_weights,
        "GPTNeoXForCausalLM": neox.convert_neox_weights,
        "GPT2LMHeadModel": gpt2.convert_gpt2_weights,
        "Qwen2ForCausalLM": qwen2.convert_qwen2_weights,
    }[architecture]


def _gemma2(hf: Any) -> dict[str, Any]:
    return _sizes(hf) | {
        "d_head": hf.head_dim,
        "n_key_value_heads": hf.num_key_value_heads,
        "eps": hf.rms_norm_eps,
        "act_fn": "gelu_pytorch_tanh",
        "normalization_type": "RMS",
        "rotary_dim": hf.head_dim,
        "rotary_base": hf.rope_parameters["rope_theta"],
        "use_attn_scale": True,
        "attn_scale": hf.query_pre_attn_scalar**0.5,
        "use_local_attn": True,
        "window_size": hf.sliding_window,
        "attn_types": ["local" if t == "sliding_attention" else "global" for t in hf.layer_types],
        "attn_scores_soft_cap": hf.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": hf.final_logit_softcapping or -1.0,
        "gated_mlp": True,
        "final_rms": True,
        "use_normalization_before_and_after": True,
        "default_prepend_bos": True,
    }


def _llama(hf: Any) -> dict[str, Any]:
    if hf.attention_bias or hf.mlp_bias:
        raise UserError("model: Llama with biases (attention_bias, mlp_bias) cannot be converted")
    heads = hf.num_key_value_heads
    return (
        _sizes(hf)
        | {
            "d_head": hf.head_dim,
            # equal numbers mean no grouping, which TransformerLens writes as None
            "n_key_value_heads": heads if heads != hf.num_attention_heads else None,
            "eps": hf.rms_norm_eps,
            "act_fn": hf.hidden_act,
            "normalization_type": "RMS",
            "rotary_dim": hf.head_dim,
            "rotary_adjacent_pairs": False,
            "final_rms": True,
            "gated_mlp": True,
        }
        | _rope(hf)
    )


def _rope(hf: Any) -> dict[str, Any]:
    """Base and, for Llama 3.1 and later, scaling of the rotary embedding."""
    rope = hf.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return {"rotary_base": rope["rope_theta"]}
    if kind != "llama3":
        raise UserError(f"model: rope_type={kind!r} cannot be converted, only default and llama3")
    return {
        "rotary_base": rope["rope_theta"],
        "use_NTK_by_parts_rope": True,
        "NTK_original_ctx_len": rope["original_max_position_embeddings"],
        "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
        "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
        "NTK_by_parts_factor": rope["factor"],
    }


def _neox(hf: Any) -> dict[str, Any]:
    d_head = hf.hidden_size // hf.num_attention_heads
    rope = hf.rope_parameters
    return _sizes(hf) | {
        "d_head": d_head,
        "eps": hf.layer_norm_eps,
        "act_fn": hf.hidden_act,
        "normalization_type": "LN",
        "rotary_dim": int(rope.get("partial_rotary_factor", 1.0) * d_head),
        "rotary_base": rope["rope_theta"],
        "rotary_adjacent_pairs": False,
        "parallel_attn_mlp": hf.use_parallel_residual,
        "use_attn_scale": True,
        "use_local_attn": False,
        "default_prepend_bos": False,
    }


def _gpt2(hf: Any) -> dict[str, Any]:
    if hf.scale_attn_by_inverse_layer_idx:
        raise UserError("model: GPT-2 with scale_attn_by_inverse_layer_idx cannot be converted")
    return {
        "d_model": hf.n_embd,
        "d_head": hf.n_embd // hf.n_head,
        "n_heads": hf.n_head,
        "n_layers": hf.n_layer,
        "d_mlp": hf.n_inner or 4 * hf.n_embd,
        "n_ctx": hf.n_positions,
        "d_vocab": hf.vocab_size,
        "eps": hf.layer_norm_epsilon,
        "act_fn": hf.activation_function,
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "use_attn_scale": hf.scale_attn_weights,
        "use_local_attn": False,
        "default_prepend_bos": True,
    }


def _qwen2(hf: Any) -> dict[str, Any]:
    if hf.use_sliding_window:
        raise UserError("model: Qwen2 with use_sliding_window cannot be converted")
    d_head = hf.hidden_size // hf.num_attention_heads
    return (
        _sizes(hf)
        | {
            "d_head": d_head,
            "n_key_value_heads": hf.num_key_value_heads,
            "eps": hf.rms_norm_eps,
            "act_fn": hf.hidden_act,
            "normalization_type": "RMS",
            "rotary_dim": d_head,
            "rotary_adjacent_pairs": False,
            "use_attn_scale": True,
            "final_rms": True,
            "gated_mlp": True,
            "default_prepend_bos": False,
        }
        | _rope(hf)
    )


def _sizes(hf: Any) -> dict[str, Any]:
    return {
        "d_model": hf.hidden_size,
        "n_heads": hf.num_attention_heads,
        "n_layers": hf.num_hidden_layers,
        "d_mlp": hf.intermediate_size,
        "n_ctx": hf.max_position_embeddings,
        "d_vocab": hf.vocab_size,
        "positional_embedding_type": "rotary",
    }


FAMILIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Gemma2ForCausalLM": _gemma2,
    "LlamaForCausalLM": _llama,
    "GPTNeoXForCausalLM": _neox,
    "GPT2LMHeadModel": _gpt2,
    "Qwen2ForCausalLM": _qwen2,
}
"""Architecture -> the HookedTransformerConfig of one of its configs."""
