"""How much of a letter's direction other latents take over, for all its words at once.

The measures are those of sae_bench's FeatureAbsorptionCalculator, which says what each is.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

SILENT = 1e-8
"""Below this a latent does not fire."""


class Absorbed(NamedTuple):
    """Of each word. Both [n]."""

    fraction: "Tensor"
    """Share of the letter's direction that absorbing latents make up for, in [0, 1]."""
    is_full: "Tensor"
    """Whether the letter's latents are silent and one other latent stands in for them."""


def absorbed(
    sae: Any, x: "Tensor", direction: "Tensor", main: list[int], per_call: int
) -> Absorbed:
    """x [n, d_in] words of one letter, direction [d_in] of its probe, `main` its own latents."""
    import torch

    direction = direction / direction.norm()
    cos = torch.nn.functional.cosine_similarity(direction.to(sae.device), sae.W_dec, dim=-1)
    cos = cos.float()  # [d_sae]
    parts = [_absorbed(sae, rows, direction, cos, main) for rows in x.split(per_call)]
    if not parts:
        return Absorbed(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool))
    return Absorbed(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _absorbed(
    sae: Any, x: "Tensor", direction: "Tensor", cos: "Tensor", main: list[int]
) -> Absorbed:
    import torch
    from sae_bench.evals.absorption import feature_absorption as limits

    acts = sae.encode(x)  # [n, d_sae]
    projections = acts * cos
    # ratios in double precision, as sae_bench's are of Python numbers
    whole = (x @ direction.to(acts)).double()
    own = projections[:, main].sum(-1).double()
    may_absorb = cos >= limits.ABSORPTION_FRACTION_PROBE_COS_THRESHOLD
    may_absorb[main] = False
    most = min(limits.ABSORPTION_FRACTION_MAX_ABSORBING_LATENTS, int(may_absorb.sum()))
    # one that pulls the other way does not absorb: it counts as nothing
    others = projections[:, may_absorb].clamp_min(0).topk(most).values.sum(-1).double()
    enough = limits.ABSORPTION_PROBE_PROJECTION_PROPORTION_THRESHOLD
    taken = torch.minimum(others, whole - own)
    fraction = (taken / (taken + own)).clamp(0, 1)
    fraction = torch.where(own <= 0, 1.0, fraction)
    fraction = torch.where((own >= whole) | (others / whole < enough), 0.0, fraction)

    top = projections.argmax(-1, keepdim=True)  # [n, 1]
    top_cos = cos[top].squeeze(-1)
    top_projection = acts.gather(-1, top).squeeze(-1).double() * top_cos.double()
    is_full = (
        (acts[:, main] < SILENT).all(-1)
        & (top_cos.double() >= limits.FULL_ABSORPTION_PROBE_COS_THRESHOLD)
        & (whole >= 0)
        & (top_projection / whole >= enough)
    )
    return Absorbed(fraction.cpu(), is_full.cpu())
