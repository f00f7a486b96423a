"""Small pure functions that variants, controls and the trainer share; nothing here has state."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from bench.kernels import keep_top_k as keep_top_k
from bench.kernels import relu_autoencoder as relu_autoencoder
from bench.kernels import topk_autoencoder as topk_autoencoder
from bench.sparsity import AuxK as AuxK
from bench.sparsity import dead_latents_error as dead_latents_error
from bench.sparsity import heaviside as heaviside
from bench.sparsity import jumprelu as jumprelu
from bench.sparsity import keep_batch_top_k as keep_batch_top_k
from bench.sparsity import threshold_for_l0 as threshold_for_l0
from bench.terms import balanced_groups as balanced_groups
from bench.terms import mean_squared_cosine as mean_squared_cosine
from bench.terms import nearest_by_group as nearest_by_group
from bench.terms import nearest_rows as nearest_rows
from bench.terms import ramp as ramp
from bench.terms import reset_latents as reset_latents
from bench.terms import running as running
from bench.terms import sampled as sampled
from bench.terms import variance as variance
from bench.terms import welch_bound as welch_bound

TINY = 1e-8
"""A norm below this is treated as zero."""


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one use of a seed, so that no two uses share their random numbers."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of 56 bits for one use of `seed`."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Squared error summed over d_in, mean over the batch. x, x_hat [n, d_in] -> []."""
    return (x - x_hat).pow(2).sum(-1).mean()


def norm_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Euclidean norm of the error, not squared, mean over the batch. x, x_hat [n, d_in] -> []."""
    return torch.linalg.vector_norm(x - x_hat, dim=-1).mean()


@torch.no_grad()
def normalise_rows_(W: Tensor) -> None:
    """Scale each row of W to unit norm in place; a row of zeros stays as it is."""
    W.div_(torch.linalg.vector_norm(W, dim=-1, keepdim=True).clamp_min(TINY))


@torch.no_grad()
def remove_radial_(grad: Tensor, W: Tensor) -> None:
    """Take out of each row of `grad` in place what points along the unit row of W.

    A step along it would be undone by the next normalisation, but not in Adam's moments.
    """
    grad.addcmul_(W, (grad * W).sum(-1, keepdim=True), value=-1)


class Folded(NamedTuple):
    """An encoder and decoder with unit rows."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor


def fold_norms(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> Folded:
    """Move the norms of the decoder rows into the encoder; exact for a ReLU, not for a top-k.

    relu(c * pre) = c * relu(pre), so x_hat does not change and f is multiplied by the norm. A row
    of zeros, whose latent does nothing, becomes the first unit vector and its latent never fires.
    """
    norms = torch.linalg.vector_norm(W_dec, dim=-1)  # [d_sae]
    is_zero = norms < TINY
    norms = norms.masked_fill(is_zero, 0.0)
    rows = W_dec / norms.masked_fill(is_zero, 1.0)[:, None]
    rows[is_zero] = 0.0
    rows[is_zero, 0] = 1.0
    return Folded(W_enc * norms, b_enc * norms, rows)


@torch.no_grad()
def geometric_median(x: Tensor, n_iter: int = 50) -> Tensor:
    """The point with the smallest summed distance to the rows of x, by Weiszfeld's algorithm.

    x [n, d_in] -> [d_in].
    """
    point = x.mean(0)
    for _ in range(n_iter):
        weights = 1 / torch.linalg.vector_norm(x - point, dim=-1, keepdim=True).clamp_min(TINY)
        point = (x * weights).sum(0) / weights.sum()
    return point


def unexplained_variance(x: Tensor, x_hat: Tensor) -> Tensor:
    """Squared error over the variance of x, both summed over d_in. x, x_hat [n, d_in] -> []."""
    return (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
