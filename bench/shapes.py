"""The sizes of language models, known without loading one.

From the config.json of a local folder, or for the models of the table from what was published.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.models import ModelSpec
from bench.validate import parse_hook

WIDTH_D_MODEL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out")
WIDTH_D_MODEL += ("hook_mlp_out", "hook_normalized")
WIDTH_D_MLP = ("hook_pre", "hook_post", "hook_pre_linear")


@dataclass(frozen=True)
class Shape:
    """What decides the memory that a model takes."""

    d_model: int
    """Width of the residual stream."""
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    """Longest context, in tokens."""
    is_gated: bool
    """Whether the MLP has a third matrix."""
    rotary_dim: int
    """Dimensions of a head that are rotated."""

    @property
    def layer_params(self) -> int:
        """Weights of one layer; biases and norms, less than a thousandth, are left out."""
        attention = self.d_model * self.d_head * 2 * (self.n_heads + self.n_key_value_heads)
        return attention + (3 if self.is_gated else 2) * self.d_model * self.d_mlp

    @property
    def vocab_params(self) -> int:
        """Weights of the embedding, and again of the unembedding."""
        return self.d_model * self.d_vocab

    def width(self, hook_name: str) -> int | None:
        """d_in at a hook; None for a hook that is not known to give one row per token."""
        _, kind = parse_hook(hook_name)
        if kind in WIDTH_D_MODEL:
            return self.d_model
        return self.d_mlp if kind in WIDTH_D_MLP else None


GEMMA_2_2B = Shape(2304, 26, 8, 4, 256, 9216, 256_000, 8192, is_gated=True, rotary_dim=256)
GEMMA_2_9B = Shape(3584, 42, 16, 8, 256, 14_336, 256_000, 8192, is_gated=True, rotary_dim=256)
PYTHIA_70M = Shape(512, 6, 8, 8, 64, 2048, 50_304, 2048, is_gated=False, rotary_dim=16)
LLAMA_8B = Shape(4096, 32, 32, 8, 128, 14_336, 128_256, 2048, is_gated=True, rotary_dim=128)
QWEN_500M = Shape(896, 24, 14, 2, 64, 4864, 151_936, 32_768, is_gated=True, rotary_dim=64)
QWEN_1500M = Shape(1536, 28, 12, 2, 128, 8960, 151_936, 32_768, is_gated=True, rotary_dim=128)
QWEN_7B = Shape(3584, 28, 28, 4, 128, 18_944, 152_064, 131_072, is_gated=True, rotary_dim=128)
PUBLISHED = {
    "google/gemma-2-2b": GEMMA_2_2B,
    "google/gemma-2-2b-it": GEMMA_2_2B,
    "google/gemma-2-9b": GEMMA_2_9B,
    "google/gemma-2-9b-it": GEMMA_2_9B,
    "EleutherAI/pythia-70m-deduped": PYTHIA_70M,
    **dict.fromkeys(("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"), LLAMA_8B),
    **dict.fromkeys(("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"), QWEN_500M),
    **dict.fromkeys(("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"), QWEN_1500M),
    **dict.fromkeys(("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"), QWEN_7B),
}
"""Hub id -> the sizes in its config.json; longest context as TransformerLens caps it."""


def shape_of(spec: ModelSpec) -> Shape | None:
    """The sizes of a model; None where they cannot be known without loading it."""
    if not spec.is_local:
        return PUBLISHED.get(spec.source)
    path = Path(spec.source) / "config.json"
    try:
        return _from_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _from_config(raw: dict[str, Any]) -> Shape:
    """A Hugging Face config of the Gemma, Llama, Qwen or GPT-NeoX family."""
    n_heads = raw["num_attention_heads"]
    d_head = raw.get("head_dim") or raw["hidden_size"] // n_heads
    return Shape(
        d_model=raw["hidden_size"],
        n_layers=raw["num_hidden_layers"],
        n_heads=n_heads,
        n_key_value_heads=raw.get("num_key_value_heads") or n_heads,
        d_head=d_head,
        d_mlp=raw["intermediate_size"],
        d_vocab=raw["vocab_size"],
        n_ctx=int(raw["max_position_embeddings"]),
        is_gated=raw.get("model_type") != "gpt_neox",
        rotary_dim=int(d_head * raw.get("rotary_pct", 1.0)),
    )
