"""A tiny random Gemma-2 pair, SAEs for it and a small nano world, so that suites run in seconds."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from bench.models import ModelSpec

D_MODEL, N_LAYERS, D_SAE = 24, 3, 64
HOOK = "blocks.1.hook_resid_post"


@cache
def folder() -> Path:
    """A folder for this test process."""
    path = Path(tempfile.mkdtemp(prefix="sae-verdict-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def tokenizer() -> Any:
    """The nano world's tokenizer."""
    from bench.nano.tokenizer import make_tokenizer
    from bench.nano.world import make_world

    return make_tokenizer(make_world())


@cache
def pair() -> tuple[ModelSpec, ModelSpec]:
    """A base model called nano and its instruct sibling, both random."""
    base, instruct = folder() / "base", folder() / "instruct"
    save_checkpoint(base, seed=0)
    save_checkpoint(instruct, seed=1)
    return (
        ModelSpec("nano", "nano", str(base), "base", N_LAYERS, D_MODEL, "nano-it"),
        ModelSpec("nano-it", "nano", str(instruct), "instruct", N_LAYERS, D_MODEL),
    )


@cache
def data() -> Path:
    """The nano world's data sets with few rows."""
    from bench.nano.data import DataSizes, write_datasets

    root = folder() / "data"
    write_datasets(root, DataSizes(web=400, retain=60, forget=20, probe_train=40, probe_test=20))
    return root


def save_checkpoint(
    path: Path, *, seed: int = 0, sliding_window: int = 512, n_layers: int = N_LAYERS
) -> None:
    """Write a random checkpoint and the tokenizer to `path`."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=len(tokenizer()),
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=n_layers,
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
    Gemma2ForCausalLM(config).save_pretrained(path)
    tokenizer().save_pretrained(path)


def make_sae(
    *,
    d_in: int = D_MODEL,
    d_sae: int = D_SAE,
    seed: int = 0,
    b_enc: float = 0.0,
    b_dec: float = 0.1,
) -> Any:
    """A random ReLU SAE with unit decoder rows; a very negative `b_enc` never fires."""
    import torch
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    generator = torch.Generator().manual_seed(seed)
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu"))
    rows = torch.randn(d_sae, d_in, generator=generator)
    with torch.no_grad():
        sae.W_dec.copy_(rows / rows.norm(dim=-1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(b_enc)
        sae.b_dec.fill_(b_dec)
    sae.cfg.metadata.hook_name = HOOK
    sae.cfg.metadata.model_name = "nano"
    sae.cfg.metadata.prepend_bos = True
    return sae


def context(tmp_path: Path, hub: Any = None) -> Any:
    """An EvalContext on the pair, with the small world unless `hub` is given."""
    from bench import models
    from bench.context import EvalContext
    from bench.datasets import LocalHub

    base, instruct = pair()
    ctx = EvalContext(
        spec=base,
        hub=hub or LocalHub(data()),
        seed=42,
        work=tmp_path / "scratch",
        artifacts=tmp_path / "artifacts",
    )
    ctx._models.update({"base": _loaded(base), "instruct": _loaded(instruct)})
    assert models.resolve("nano").instruct == instruct.name
    return ctx


def handle(label: str, sae: Any = None, **info: Any) -> Any:
    """An SAE as a suite gets it."""
    from bench.suite import SaeHandle

    return SaeHandle(label, sae or make_sae(), info)


@cache
def _loaded(spec: ModelSpec) -> Any:
    from bench.models import load_model

    return load_model(spec)
