"""How strongly each latent fires, as quantiles over the tokens where it does.

A latent's activations of a whole corpus do not fit into memory, so they are counted in bins of
equal ratio; a quantile is exact up to half a bin.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PER_OCTAVE = 32
"""Bins per factor of two: a quantile is off by at most a factor of 2 ** (1/64), which is 1.1 %."""
LOWEST, OCTAVES = -12, 28
"""Activations from 2 ** -12 to 2 ** 16 are told apart; smaller and larger ones are at the ends."""
N_BINS = PER_OCTAVE * OCTAVES


class Strengths:
    """Activations above 0 of `d_sae` latents, one batch after the other."""

    def __init__(self, d_sae: int, device: Any = "cpu"):
        import torch

        self._counts = torch.zeros(d_sae * N_BINS, dtype=torch.int32, device=device)
        self._d_sae = d_sae

    def add(self, f: "Tensor") -> None:
        """f [..., d_sae]."""
        import torch

        flat = f.reshape(-1, self._d_sae)
        row, latent = (flat > 0).nonzero(as_tuple=True)
        octave = flat[row, latent].float().log2()
        bins = ((octave - LOWEST) * PER_OCTAVE).long().clamp(0, N_BINS - 1)
        ones = torch.ones_like(bins, dtype=torch.int32)
        self._counts.index_add_(0, latent * N_BINS + bins, ones)

    def quantile(self, q: float) -> "Tensor":
        """[d_sae] the least value that at least the share `q` does not exceed; 0 if never fired."""
        import torch

        counts = self._counts.view(self._d_sae, N_BINS)
        n = counts.sum(1)
        rank = (n * q).ceil().clamp(min=1)
        at = (counts.cumsum(1) < rank[:, None]).sum(1)  # [d_sae]
        middle = torch.exp2((at + 0.5) / PER_OCTAVE + LOWEST)
        return middle * (n > 0)
