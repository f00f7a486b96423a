"""The shipped nano pair on a small part of its world, and four kinds of SAE for it."""

from functools import cache
from pathlib import Path
from typing import Any

from tests import tiny

HOOK = "blocks.2.hook_resid_post"
D_IN, D_SAE = 96, 256
KINDS = ("relu", "topk", "jumprelu", "degenerate")


def context(tmp_path: Path, hub: Any = None, **settings: Any) -> Any:
    """An EvalContext on the shipped pair, with the small world unless `hub` is given."""
    from bench.context import EvalContext
    from bench.datasets import LocalHub
    from bench.models import resolve

    ctx = EvalContext(
        spec=resolve("nano"),
        hub=hub or LocalHub(tiny.data()),
        seed=42,
        work=tmp_path / "scratch",
        artifacts=tmp_path / "artifacts",
        **settings,
    )
    ctx._models.update({"base": _loaded("nano"), "instruct": _loaded("nano-it")})
    return ctx


def handles(*kinds: str) -> list[Any]:
    """SAEs of these kinds under their names, all by default."""
    from bench.suite import SaeHandle

    return [SaeHandle(kind, make_sae(kind), {"l0": 5.0}) for kind in kinds or KINDS]


def make_sae(kind: str) -> Any:
    """An SAE whose latents are activations of the model, seen from their mean.

    The degenerate one has the same latent everywhere, which fires on nearly every token.
    """
    import torch
    from sae_lens import saes

    x = _activations()
    rows = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:D_SAE]]
    rows = rows - x.mean(0)
    if kind == "degenerate":
        rows = rows[:1].expand(D_SAE, -1)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    common = {"d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": True}
    sae: Any = {
        "relu": lambda: saes.StandardSAE(saes.StandardSAEConfig(**common)),
        "topk": lambda: saes.TopKSAE(saes.TopKSAEConfig(k=6, **common)),
        "jumprelu": lambda: saes.JumpReLUSAE(saes.JumpReLUSAEConfig(**common)),
        "degenerate": lambda: saes.StandardSAE(saes.StandardSAEConfig(**common)),
        "gated": lambda: saes.GatedSAE(saes.GatedSAEConfig(**common)),
    }[kind]()
    # the value that one in fifty activations of a latent exceeds
    high = ((x - x.mean(0)) @ rows.T).quantile(0.98, dim=0)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_dec.copy_(x.mean(0))
        if kind == "gated":
            sae.b_gate.copy_(-high)
            sae.r_mag.zero_()
            sae.b_mag.copy_(-high / 2)
        else:
            sae.b_enc.zero_()
        if kind == "relu":
            sae.b_enc.copy_(-high)
        elif kind == "jumprelu":
            sae.threshold.copy_(high)
        elif kind == "degenerate":
            sae.b_enc.fill_(5.0)
    sae.cfg.metadata.hook_name = HOOK
    sae.cfg.metadata.model_name = "nano"
    sae.cfg.metadata.prepend_bos = True
    return sae


@cache
def _activations() -> Any:
    """[n, d_in] of the base model reading texts of both corpora."""
    from bench.context import activations_on
    from bench.datasets import LocalHub

    hub = LocalHub(tiny.data())
    forget = hub.load_dataset("bio-forget-corpus", split="train")
    retain = hub.load_dataset("wikitext", "wikitext-2-raw-v1", split="test")
    texts = [row["text"] for rows in (forget, retain) for row in rows.select(range(16))]
    return activations_on(context(tiny.folder(), hub), "base", HOOK, texts)


@cache
def _loaded(name: str) -> Any:
    from bench.models import load_model, resolve

    return load_model(resolve(name))
