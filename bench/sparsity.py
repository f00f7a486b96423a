"""Which latents are active: steps with a pseudo-gradient, a top-k over a batch, thresholds, AuxK.

Variants reach these functions through `bench.ops`.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

THRESHOLD_TOKENS = 2**17
"""Tokens on which a threshold is found: an L0 of 32 is then known to about 0.1 %."""


def jumprelu(pre: Tensor, threshold: Tensor, bandwidth: float, *, to_input: bool = False) -> Tensor:
    """pre where it exceeds its threshold, else 0. pre [n, d_sae], threshold [d_sae].

    The threshold's gradient is estimated with a rectangle of width `bandwidth` around it
    (Rajamanoharan et al. 2024, arXiv:2407.14435, eq. 11), and with `to_input` that of `pre` too
    (Anthropic, January 2025 update).
    """
    return _JumpReLU.apply(pre, threshold, bandwidth, to_input)  # type: ignore[no-any-return]


def heaviside(
    pre: Tensor, threshold: Tensor, bandwidth: float, *, to_input: bool = False
) -> Tensor:
    """1 where pre exceeds its threshold, else 0; gradients as in `jumprelu` (eq. 12)."""
    return _Heaviside.apply(pre, threshold, bandwidth, to_input)  # type: ignore[no-any-return]


def keep_batch_top_k(pre: Tensor, k: float) -> Tensor:
    """The k * n largest positive entries of the whole batch, zero elsewhere. pre [n, d_sae].

    Bussmann et al. 2024, arXiv:2412.06410, section 3.
    """
    flat = pre.flatten()
    kept = flat.detach().topk(int(k * len(pre)), sorted=False).indices
    return torch.zeros_like(flat).scatter(0, kept, flat[kept].relu()).view_as(pre)


@torch.no_grad()
def threshold_for_l0(
    acts: Iterable[Tensor], l0: float, *, at_most: int = THRESHOLD_TOKENS
) -> Tensor:
    """The threshold above which rows have `l0` positive entries on average; 0 if they have fewer.

    acts: [m, d_sae] each, of which the first `at_most` rows count -> []. Exact, and never holds
    more than about twice l0 * at_most values and one batch.
    """
    most_wanted = int(l0 * at_most) + 1
    kept: list[Tensor] = []
    n_rows = n_kept = 0
    lowest = 0.0
    for some in acts:
        rows = some[: at_most - n_rows]
        n_rows += len(rows)
        kept.append(rows[rows > lowest])
        n_kept += len(kept[-1])
        if n_kept >= 2 * most_wanted:
            kept = [torch.cat(kept).topk(most_wanted, sorted=False).values]
            n_kept, lowest = most_wanted, kept[0].min().item()
        if n_rows == at_most:
            break
    values = torch.cat(kept)
    wanted = int(l0 * n_rows) + 1
    if n_kept < wanted:
        return values.new_zeros(())
    # half way between the last to be kept and the first to be left out, so that rounding, as in
    # other units of x, changes neither
    return values.topk(wanted).values[-2:].mean()


class AuxK(NamedTuple):
    """What the error of a top-k SAE is predicted with."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


def dead_latents_error(
    x: Tensor, error: Tensor, weights: AuxK, dead: Tensor, n_dead: int, *, rectify: bool
) -> Tensor:
    """Squared error of predicting `error` with the largest dead latents of each row alone.

    Gao et al. 2024, arXiv:2406.04093, section A.2: at most d_in / 2 latents, weighed down while
    fewer are dead, as in EleutherAI's sparsify and SAELens. x, error [n, d_in], dead [d_sae] bool.
    """
    if not n_dead:
        return x.new_zeros(())
    most = max(x.shape[1] // 2, 1)
    # unlike nonzero(), this does not wait for the device
    chosen = dead.int().topk(n_dead, sorted=False).indices
    W_enc, b_enc, W_dec, b_dec = weights
    pre = (x - b_dec) @ W_enc[:, chosen] + b_enc[chosen]  # [n, n_dead]
    top = pre.topk(min(most, n_dead), sorted=False)
    values = top.values.relu() if rectify else top.values
    f = torch.zeros_like(pre).scatter(-1, top.indices, values)
    missed = error.detach() - f @ W_dec[chosen]
    return min(n_dead / most, 1.0) * missed.pow(2).sum(-1).mean()


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool
    ) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.settings = bandwidth, to_input
        return pre * (pre > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        bandwidth, to_input = ctx.settings
        near = _near(pre, threshold, bandwidth) * g * (threshold / bandwidth)
        g_pre = (pre > threshold) * g
        return g_pre + near if to_input else g_pre, -near.sum(0), None, None


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool
    ) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.settings = bandwidth, to_input
        return (pre > threshold).to(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        bandwidth, to_input = ctx.settings
        near = _near(pre, threshold, bandwidth) * g / bandwidth
        return near if to_input else None, -near.sum(0), None, None


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Whether pre lies within half a bandwidth of its threshold. [n, d_sae] bool."""
    return (pre - threshold).abs() < bandwidth / 2
