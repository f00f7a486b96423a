"""A tiny random Gemma-2 pair with the nano tokenizer, and SAEs for it, for tests of bench and suites."""

from pathlib import Path
from typing import Any

D_MODEL, N_LAYERS = 24, 3


def save_checkpoint(folder: Path, tokenizer: Any, *, seed: int = 0, sliding_window: int = 512) -> None:
    """Write a random checkpoint and its tokenizer to `folder`."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        query_pre_attn_scalar=8,
        sliding_window=sliding_window,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
