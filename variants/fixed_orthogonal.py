"""Decoder rows are pushed apart with a constant weight.

The penalty is dimensionless and counts in units of the input's variance. `hinge`: mean over
latents of relu(max_{j != i} C_ij - tau)^2, C the cosines of decoder rows. `welch`: mean of C_ij^2
over pairs, less the least that so many rows can have, (m - d) / (d (m - 1)) (Welch 1974); eight
copies of a basis attain it, so it does not see duplicates, which the hinge does.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import ops
from bench.variant import Batch, Step, Variant


@dataclass(frozen=True)
class FixedOrthogonalConfig:
    """Settings of the orthogonality penalty."""

    base: str = "relu"
    """The variant whose objective it is added to."""
    coef: float = 0.1
    """Weight of the penalty, in units of the input's variance."""
    penalty: Literal["hinge", "welch"] = "hinge"
    """`hinge`: the nearest other row of each latent. `welch`: all pairs."""
    tau: float = 0.2
    """Cosine up to which the hinge does not act."""
    n_sample: int = 512
    """Latents per step that are compared with all others."""

    def __post_init__(self):
        if self.coef < 0:
            raise ValueError(f"coef={self.coef} must be at least 0")
        if not -1 <= self.tau < 1:
            raise ValueError(f"tau={self.tau} must be in [-1, 1)")
        if self.n_sample < 1:
            raise ValueError(f"n_sample={self.n_sample} must be at least 1")


class FixedOrthogonal(Variant):
    """Orthogonal decoder rows by a penalty of constant weight."""

    Config = FixedOrthogonalConfig
    needs_base = True
    input_variance: Tensor

    def __init__(self, d_in: int, d_sae: int, cfg=None, *, generator: torch.Generator):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        self.register_buffer("input_variance", torch.ones(()))

    def start(self, x: Tensor) -> None:
        super().start(x)
        self.input_variance.copy_(ops.variance(x))

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        terms = super().losses(batch, step)
        if not self.cfg.coef:
            return terms
        penalty = self.orthogonality(ops.sampled(self.d_sae, self.cfg.n_sample, step))
        return {**terms, "orthogonality": self.cfg.coef * self.input_variance * penalty}

    def orthogonality(self, rows: Tensor) -> Tensor:
        """The penalty, estimated without bias from some latents. rows [s] int -> []."""
        D = normalize(self.W_dec, dim=-1)
        if self.cfg.penalty == "welch":
            return ops.mean_squared_cosine(D, rows) - ops.welch_bound(*D.shape)
        nearest = ops.nearest_rows(D.detach(), rows)
        # only the nearest row has a gradient, so only it is needed with one
        cosine = (D[rows] * D[nearest]).sum(-1)  # [s]
        return torch.relu(cosine - self.cfg.tau).pow(2).mean()
