"""The nano architecture: Gemma-2, made small, with a start that lets it learn to look things up."""

from typing import TYPE_CHECKING, Any

import torch

from bench.nano.tokenizer import SPECIAL

if TYPE_CHECKING:
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

D_MODEL, D_MLP, N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD = 96, 288, 5, 4, 2, 24
N_CTX = 1024
INIT_STD = 0.05
MATCHING_LAYERS = (1, 2, 3)
MATCH_STD, COPY_STD, MATCH_NOISE = 0.26, 0.12, 0.03


def nano_config(tokenizer: "PreTrainedTokenizerFast") -> "Gemma2Config":
    """Hugging Face's Gemma-2 configuration at nano size, about 740 thousand parameters."""
    from transformers import Gemma2Config

    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS,
        head_dim=D_HEAD,
        query_pre_attn_scalar=D_HEAD,
        max_position_embeddings=N_CTX,
        sliding_window=N_CTX,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<bos>"),
        eos_token_id=SPECIAL.index("<eos>"),
        initializer_range=INIT_STD,
    )
    config._attn_implementation = "eager"  # the others leave out Gemma-2's soft cap
    return config


def new_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "Gemma2ForCausalLM":
    """An untrained nano model with matching heads."""
    from transformers import Gemma2ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma2ForCausalLM(nano_config(tokenizer))
    _add_matching_heads(model, seed)
    return model


@torch.no_grad()
def _add_matching_heads(model: "Gemma2ForCausalLM", seed: int) -> None:
    """Start one key-value head of each matching layer as "attend to your own kind and copy it".

    W_Q = W_K on the low-frequency rotary dimensions and W_O = W_V^T, after Trockman and Kolter
    2023, arXiv:2305.09828 (mimetic initialisation). Without it so small a model does not learn in
    minutes to look a value up in a lettered list; training stays at chance.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = slice((N_KV_HEADS - 1) * D_HEAD, N_KV_HEADS * D_HEAD)
    per_group = N_HEADS // N_KV_HEADS
    quarter = D_HEAD // 4
    for layer in MATCHING_LAYERS:
        attention: Any = model.model.layers[layer].self_attn
        match = torch.randn(D_HEAD, D_MODEL, generator=generator) * MATCH_STD
        match[:quarter] = 0  # the fast-turning rotary dimensions would tie the match to positions
        match[D_HEAD // 2 : D_HEAD // 2 + quarter] = 0
        copy = torch.randn(D_HEAD, D_MODEL, generator=generator) * COPY_STD
        attention.k_proj.weight[rows] = match
        attention.v_proj.weight[rows] = copy
        for head in range(N_HEADS - per_group, N_HEADS):
            own = slice(head * D_HEAD, (head + 1) * D_HEAD)
            noise = torch.randn(D_HEAD, D_MODEL, generator=generator) * MATCH_STD * MATCH_NOISE
            attention.q_proj.weight[own] = match + noise
            attention.o_proj.weight[:, own] = copy.T
