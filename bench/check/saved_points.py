"""Points about the trained variant, and about what is left of it after its way to disk."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench import checkpoint
from bench.check.rehearsal import SCALE, Rehearsal
from bench.check.report import Point, Problem
from bench.fast.core import weight_metrics
from bench.variant import Exported

SAME = 1e-3
"""Largest difference between outputs that should be the same, relative to their size."""
FLICKER = 1e-3
"""Share of feature acts that rounding may switch on or off."""


@torch.no_grad()
def inference_sees_one_token(r: Rehearsal) -> Iterator[Problem]:
    """A token's feature acts do not depend on the tokens beside it."""
    variant, x = r.trained.variant, r.x[:64]
    f = variant.encode(x)
    alone = torch.cat([variant.encode(row[None]) for row in x[:16]])
    half = len(x) // 2
    beside_others = variant.encode(torch.cat([x[:half], 5 * x[half:]]))[:half]
    for beside, found, expected in (
        ("no other token", alone, f[:16]),
        ("larger tokens", beside_others, f[:half]),
    ):
        if _differ(found, expected):
            yield Problem(
                f"a token beside {beside} is encoded otherwise than in its batch, by up to "
                f"{(found - expected).abs().max().item():.3g}"
            )
            return


@torch.no_grad()
def shapes_fit(r: Rehearsal) -> Iterator[Problem]:
    """[n, d_in] and [b, T, d_in] both ways."""
    variant, x = r.trained.variant, r.x[:64]
    f = variant.encode(x)
    if f.shape != (len(x), variant.d_sae):
        yield Problem(f"encode of {list(x.shape)} is {list(f.shape)}, not [64, {variant.d_sae}]")
        return
    x_hat = variant.decode(f)
    if x_hat.shape != x.shape:
        yield Problem(f"decode of {list(f.shape)} is {list(x_hat.shape)}, not {list(x.shape)}")
        return
    folded = variant.encode(x.unflatten(0, (8, 8)))
    if folded.shape != (8, 8, variant.d_sae) or _differ(folded.flatten(0, 1), f):
        yield Problem("encode of [8, 8, d_in] is not that of the same 64 tokens as [64, d_in]")
    elif _differ(variant.decode(folded).flatten(0, 1), x_hat):
        yield Problem("decode of [8, 8, d_sae] is not that of the same 64 tokens as [64, d_sae]")


@torch.no_grad()
def positions_are_optional(r: Rehearsal) -> Iterator[Problem]:
    variant, x = r.trained.variant, r.x[:64]
    placed = variant.encode(x, torch.arange(64))
    if _differ(placed, variant.encode(x)):
        yield Problem(
            "encode depends on positions, which no suite passes and no SAELens SAE has",
            "scores will be those of encode(x) without positions",
            is_warning=True,
        )


def exports(r: Rehearsal) -> Iterator[Problem]:
    """The form of a SAELens inference SAE, weights complete and in the right shapes."""
    exported = r.exported
    if not isinstance(exported, Exported):
        yield Problem(
            f"export returned {type(exported).__name__}",
            "return Exported(architecture, cfg, state)",
        )
        return
    import sae_lens

    have = sorted(sae_lens.registry.SAE_CLASS_REGISTRY)
    if exported.architecture not in have:
        yield Problem(
            f"architecture {exported.architecture!r} is none of SAELens's", f"use {', '.join(have)}"
        )
        return
    d_in, d_sae = r.trained.variant.d_in, r.trained.variant.d_sae
    for name, shape in {"W_dec": (d_sae, d_in), "b_dec": (d_in,)}.items():
        found = exported.state.get(name)
        if found is None or tuple(found.shape) != shape:
            has = "is missing" if found is None else f"has shape {list(found.shape)}"
            yield Problem(f"{name} {has}, needs {list(shape)}: suites read it")
    for name, value in exported.state.items():
        if value.requires_grad:
            yield Problem(f"{name} still belongs to the training", "detach().clone() it")
        elif not value.isfinite().all():
            yield Problem(f"{name} is not finite")


@torch.no_grad()
def saving_changes_nothing(r: Rehearsal) -> Iterator[Problem]:
    """The reloaded SAE fires where the variant fires and reconstructs what it reconstructs."""
    from sae_lens import SAE

    variant, sae = r.trained.variant, r.saved.sae
    f, f_saved = variant.encode(r.x), sae.encode(SCALE * r.x)
    flickers = ((f != 0) != (f_saved != 0)).float().mean().item()
    if flickers > FLICKER:
        yield Problem(
            f"{flickers:.1%} of the feature acts are on before saving and off after, or the "
            f"other way; L0 {_l0(f):.3g} becomes {_l0(f_saved):.3g}"
        )
    folder = r.work / "exported"
    checkpoint.export_saelens(r.saved.folder, folder)
    if _differ(SAE.load_from_disk(folder).encode(SCALE * r.x), f_saved):
        yield Problem("SAE.load_from_disk of plain sae_lens gives other feature acts")
    x_hat, x_hat_saved = SCALE * variant.decode(f), sae.decode(f_saved)
    off = (x_hat - x_hat_saved).norm() / x_hat.norm().clamp_min(1e-12)
    if not off <= SAME:
        yield Problem(f"the reconstruction after saving is off by {off.item():.2g} of its size")


def rows_are_unit(r: Rehearsal) -> Iterator[Problem]:
    norms = r.exported.state["W_dec"].norm(dim=-1)
    if (norms - 1).abs().max() > SAME:
        yield Problem(
            f"decoder rows have norms from {norms.min().item():.3g} to {norms.max().item():.3g}: "
            "absorption takes act x cosine for the effect of a latent, and unlearning clamps to "
            "absolute values, so both would misread it"
        )


@torch.no_grad()
def suites_can_read_it(r: Rehearsal) -> Iterator[Problem]:
    """What suites do with an SAE, done once."""
    sae, x = r.saved.sae, SCALE * r.x[:64]
    f = sae.encode(x)
    if (lowest := f.min().item()) < 0:
        yield Problem(
            f"feature acts go down to {lowest:.3g}, but all suites ask for act > 0",
            "end encode with a ReLU; for signed acts export [D, -D]",
        )
    if _differ(sae.encode(x.unflatten(0, (8, 8))).flatten(0, 1), f):
        yield Problem("absorption passes [n, d_in], the other suites [b, T, d_in]: they differ")
    if _differ(sae.decode(f), f @ sae.W_dec + sae.b_dec):
        yield Problem("decode(f) is not f @ W_dec + b_dec, which unlearning and core rely on")
    if not isinstance(getattr(sae, "W_enc", None), Tensor):
        yield Problem("the SAE has no W_enc, which core and absorption read")
        return
    for name, values in weight_metrics(sae).items():
        if not torch.tensor(values).isfinite().all():
            yield Problem(f"{name}, which core takes from the weights, is not finite")
    half = sae.to(torch.bfloat16).encode(x.bfloat16())
    sae.to(torch.float32)
    if not half.isfinite().all():
        yield Problem("feature acts are not finite in bfloat16, which runs on GPUs use")


def _differ(a: Tensor, b: Tensor) -> bool:
    size = b.abs().max().item() if b.numel() else 0.0
    return not torch.allclose(a, b, rtol=SAME, atol=SAME * size + 1e-7)


def _l0(f: Tensor) -> float:
    return (f != 0).sum().item() / len(f)


POINTS: tuple[Point[Rehearsal], ...] = (
    Point(
        "inference",
        "a token's feature acts do not depend on the tokens beside it",
        inference_sees_one_token,
        "put what depends on the batch into losses; set a threshold for inference in finish",
        needs=("trains",),
    ),
    Point(
        "shapes",
        "encode and decode take [n, d] and [b, T, d]",
        shapes_fit,
        "work on the last dimension only, as x @ W does",
        needs=("trains", "inference"),
    ),
    Point(
        "positions",
        "encode does not need positions",
        positions_are_optional,
        "accept positions=None",
        needs=("trains", "shapes"),
    ),
    Point(
        "export",
        "export gives a SAELens inference SAE",
        exports,
        "return Exported(architecture, cfg, state); see topk.py in variants/ for an example",
        needs=("trains",),
    ),
    Point(
        "save",
        "what is saved and loaded, also by plain sae_lens, gives the same output",
        saving_changes_nothing,
        "export the architecture, settings and weights that encode and decode use",
        needs=("export", "shapes"),
    ),
    Point(
        "norms",
        "exported decoder rows have unit norm",
        rows_are_unit,
        "fold the norms with ops.fold_norms (ReLU), or keep rows unit with ops.normalise_rows_ in "
        "after_step (top-k)",
        needs=("export",),
    ),
    Point(
        "suites",
        "what the suites take for granted holds",
        suites_can_read_it,
        "export an architecture whose decode is f @ W_dec + b_dec",
        needs=("save",),
    ),
)
