"""Autoencoders with a backward pass by hand: the values and gradients of autograd, but faster.

Autograd on the literal formulas takes six matrix products and some fifteen passes over [n, d_sae].
Here a ReLU takes the five products that are needed, as the gradient of `origin` is that of b_enc
times W_enc, and works on blocks of rows that stay in the cache. A top-k takes one product: all that
follows touches the k kept latents only.

Variants reach these functions through `bench.ops`. A variant's `encode` and `decode` stay the
literal definition, and tests hold the two together.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

BLOCK = 1_024
"""Rows that a CPU handles at a time."""
DENSE_FROM = 0.2
"""Share of kept latents from which dense products are faster than sparse ones (measured)."""


class ReLUFit(NamedTuple):
    """What a ReLU autoencoder makes of a batch."""

    x_hat: Tensor
    """[n, d_in]."""
    l1: Tensor
    """[] sum of f, weighted by the price where there is one; mean over the batch."""
    fired: Tensor
    """[d_sae] int: in how many rows each latent is active."""


class TopKFit(NamedTuple):
    """What a top-k autoencoder makes of a batch."""

    x_hat: Tensor
    """[n, d_in]."""
    fired: Tensor
    """[d_sae] int: in how many rows each latent is active."""


def relu_autoencoder(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    *,
    origin: Tensor | None = None,
    price: Tensor | None = None,
) -> ReLUFit:
    """f = relu((x - origin) @ W_enc + b_enc), x_hat = f @ W_dec + b_dec, l1 = mean of f @ price.

    x [n, d_in], W_enc [d_in, d_sae], W_dec [d_sae, d_in], origin [d_in], price [d_sae]. Has no
    second derivative.
    """
    origin = torch.zeros_like(b_dec) if origin is None else origin
    price = torch.ones_like(b_enc) if price is None else price
    return ReLUFit(*_ReLU.apply(x, W_enc, b_enc, W_dec, b_dec, origin, price))


def topk_autoencoder(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    k: int,
    *,
    origin: Tensor | None = None,
    rectify: bool = True,
) -> TopKFit:
    """f = keep_top_k((x - origin) @ W_enc + b_enc, k), x_hat = f @ W_dec + b_dec.

    Shapes as for `relu_autoencoder`. The sparse way was measured on CPUs only, and other devices
    go the dense way.
    """
    origin = torch.zeros_like(b_dec) if origin is None else origin
    if x.device.type == "cpu" and k < DENSE_FROM * len(b_enc):
        return TopKFit(*_TopK.apply(x, W_enc, b_enc, W_dec, b_dec, origin, k, rectify))
    f = keep_top_k((x - origin) @ W_enc + b_enc, k, rectify=rectify)
    return TopKFit(f @ W_dec + b_dec, torch.count_nonzero(f.detach(), dim=0))


def keep_top_k(pre: Tensor, k: int, *, rectify: bool = True) -> Tensor:
    """The k largest entries of each row, zero elsewhere and where negative. pre [..., d_sae].

    With `rectify=False` negative ones are kept too.
    """
    latents = largest(pre.detach(), k)
    values = pre.gather(-1, latents)
    return torch.zeros_like(pre).scatter(-1, latents, values.relu() if rectify else values)


def largest(pre: Tensor, k: int) -> Tensor:
    """Indices of the k largest entries of each row, in any order. pre [..., d_sae] -> [..., k].

    A CPU first finds the k groups with the largest maxima, which hold the k largest entries: two
    short searches take less than a long one.
    """
    n_latents = pre.shape[-1]
    size = 1 << (math.isqrt(max(n_latents // k, 1)).bit_length() - 1)  # makes both equally long
    if pre.device.type != "cpu" or size == 1 or n_latents % size:
        return pre.topk(k, dim=-1, sorted=False).indices
    members = pre.unflatten(-1, (size, -1))  # [..., size, n_groups]: a group is a column
    groups = members.amax(-2).topk(k, dim=-1, sorted=False).indices  # [..., k]
    columns = groups.unsqueeze(-2).expand(*groups.shape[:-1], size, k)
    best = members.gather(-1, columns).flatten(-2).topk(k, dim=-1, sorted=False).indices
    return best // k * (n_latents // size) + groups.gather(-1, best % k)


def _blocks(n: int, device: torch.device) -> list[slice]:
    size = BLOCK if device.type == "cpu" else n
    return [slice(i, i + size) for i in range(0, n, max(size, 1))]


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        origin: Tensor,
        price: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred = x - origin
        f = x.new_empty(len(x), len(b_enc))
        x_hat = torch.empty_like(x)
        sums, fired = torch.zeros_like(b_enc), torch.zeros_like(b_enc)  # [d_sae]
        ones = x.new_ones(len(x))
        for rows in _blocks(len(x), x.device):
            torch.addmm(b_enc, centred[rows], W_enc, out=f[rows])
            f[rows].relu_()
            torch.addmm(b_dec, f[rows], W_dec, out=x_hat[rows])
            # a product with ones is twice as fast as a sum over rows
            sums += ones[rows] @ f[rows]
            fired += ones[rows] @ f[rows].sign()
        counts = fired.long()
        ctx.save_for_backward(centred, W_enc, W_dec, f, sums, price)
        ctx.mark_non_differentiable(counts)
        return x_hat, (sums @ price) / len(x), counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_x_hat: Tensor, g_l1: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, W_enc, W_dec, f, sums, price = ctx.saved_tensors
        g_l1 = g_l1 / len(f)
        g_W_enc, g_W_dec = torch.zeros_like(W_enc), torch.zeros_like(W_dec)
        g_b_enc = torch.zeros_like(price)
        g_x = torch.empty_like(centred) if ctx.needs_input_grad[0] else None
        ones = f.new_ones(len(f))
        for rows in _blocks(len(f), f.device):
            g_f = torch.addmm(price * g_l1, g_x_hat[rows], W_dec.T)
            g_pre = torch.ops.aten.threshold_backward(g_f, f[rows], 0)
            g_W_dec.addmm_(f[rows].T, g_x_hat[rows])
            g_W_enc.addmm_(centred[rows].T, g_pre)
            g_b_enc += ones[rows] @ g_pre
            if g_x is not None:
                torch.mm(g_pre, W_enc.T, out=g_x[rows])
        g_origin = -(W_enc @ g_b_enc)
        return g_x, g_W_enc, g_b_enc, g_W_dec, g_x_hat.sum(0), g_origin, sums * g_l1


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        origin: Tensor,
        k: int,
        rectify: bool,
    ) -> tuple[Tensor, Tensor]:
        centred = x - origin
        values = x.new_empty(len(x), k)
        latents = torch.empty(len(x), k, dtype=torch.long, device=x.device)
        for rows in _blocks(len(x), x.device):
            pre = torch.addmm(b_enc, centred[rows], W_enc)
            latents[rows] = largest(pre, k)
            torch.gather(pre, -1, latents[rows], out=values[rows])
        if rectify:
            values.relu_()
        is_active = values != 0
        fired = torch.zeros_like(b_enc, dtype=torch.long)
        fired.index_add_(0, latents.flatten(), is_active.flatten().long())
        ctx.save_for_backward(centred, W_enc, W_dec, values, latents)
        ctx.rectify = rectify
        ctx.mark_non_differentiable(fired)
        return _decode(values, latents, W_dec) + b_dec, fired

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_x_hat: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, W_enc, W_dec, values, latents = ctx.saved_tensors
        with torch.enable_grad():
            f = values.detach().requires_grad_()
            (g_f,) = torch.autograd.grad(_decode(f, latents, W_dec.detach()), f, g_x_hat)
        g_pre = g_f * (values > 0) if ctx.rectify else g_f  # [n, k]
        by_latent = _ByLatent(latents, len(W_dec))
        g_W_dec = by_latent.sum(values, g_x_hat)
        g_W_enc = by_latent.sum(g_pre, centred).T
        g_b_enc = by_latent.sum(g_pre, torch.ones_like(centred[:, :1])).squeeze(1)
        g_x = _decode(g_pre, latents, W_enc.T) if ctx.needs_input_grad[0] else None
        g_origin = -(W_enc @ g_b_enc)
        return g_x, g_W_enc, g_b_enc, g_W_dec, g_x_hat.sum(0), g_origin, None, None


def _decode(values: Tensor, latents: Tensor, W: Tensor) -> Tensor:
    """Row i is the sum over j of values[i, j] * W[latents[i, j]].

    values, latents [n, k], W [d_sae, d_in] -> [n, d_in].
    """
    return embedding_bag(latents, W, per_sample_weights=values, mode="sum")


class _ByLatent:
    """The entries of [n, k] in the order of their latents, to sum over the rows of each."""

    def __init__(self, latents: Tensor, n_latents: int):
        in_order = latents.flatten().sort(stable=True)  # stable: the same sums in every run
        self._order = in_order.indices
        self._rows = self._order // latents.shape[1]
        everyone = torch.arange(n_latents, device=latents.device)
        self._starts = torch.searchsorted(in_order.values, everyone)

    def sum(self, values: Tensor, vectors: Tensor) -> Tensor:
        """For each latent the sum of values[i, j] * vectors[i] over the entries that are its own.

        values [n, k], vectors [n, d] -> [n_latents, d].
        """
        weights = values.flatten()[self._order]
        return embedding_bag(
            self._rows, vectors, self._starts, per_sample_weights=weights, mode="sum"
        )
