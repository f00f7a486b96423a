"""How hard each loss term pulls at the weights, beside the reconstruction.

"It has no effect" may be said of a term only if its gradient was of a size to have one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

BASE = "reconstruction"
"""The term that the others are held against."""
WEIGHTS = ("W_enc", "W_dec")


def gradient_ratios(
    terms: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradient norm of each term over that of the reconstruction, for each of `weights`.

    `grad_ratio_<term>_<weight>` -> [], 0 where a term does not touch the weight. Empty without a
    reconstruction term. The graph is kept for the step's own backward pass.
    """
    if BASE not in terms:
        return {}
    base = _norms(terms[BASE], weights)
    return {
        f"grad_ratio_{name}_{weight}": norm / base[weight]
        for name, term in terms.items()
        if name != BASE
        for weight, norm in _norms(term, weights).items()
    }


def _norms(term: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    zeros = {name: term.new_zeros(()) for name in weights}
    if not term.requires_grad:
        return zeros
    grads = torch.autograd.grad(term, list(weights.values()), retain_graph=True, allow_unused=True)
    found = zip(weights, grads, strict=True)
    return zeros | {n: torch.linalg.vector_norm(g) for n, g in found if g is not None}
