"""Decoder rows are pushed apart, more gently within groups and only as fast as the SAE learns.

Latents that fire together or point the same way form groups of a fixed size, found anew every
`update_every` of training by balanced spherical k-means. Between groups the hinge of
fixed_orthogonal has its full weight, within a group `share` of it (the authors' alpha). The total
weight is coef * ramp(progress) * clip((EV - ev_low) / (ev_high - ev_low), 0, 1), with EV the
running explained variance, detached. With share = 1 and adapt_total = False it is fixed_orthogonal.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import ops
from bench.variant import Batch, Step, Variant

EV_ROWS = 512
"""Rows of the batch on which explained variance is measured."""
EV_MEMORY = 0.01
"""Fraction of training over which it is averaged."""
GROUPING_ROWS = 2_048
"""Rows of the batch whose activations group latents by co-activation."""


@dataclass(frozen=True)
class AdaptiveOrthogonalConfig:
    """Settings of the adaptive orthogonality penalty."""

    base: str = "relu"
    """The variant whose objective it is added to."""
    coef: float = 0.1
    """Total weight, in units of the input's variance."""
    tau: float = 0.2
    """Cosine up to which the hinge does not act."""
    n_sample: int = 512
    """Latents per step that are compared with all others."""
    share: float = 0.1
    """Weight within a group over that between groups; the authors' alpha: 0.1, 0.05, 0.01."""
    group_by: Literal["coactivation", "direction"] = "coactivation"
    """What the latents of a group have in common."""
    group_size: int = 32
    """Latents per group, at most d_in / 2."""
    update_every: float = 0.05
    """Fraction of training between two groupings; the authors have 100 and 500 steps."""
    adapt_total: bool = True
    """Let the total weight follow progress and explained variance."""
    ramp: float = 0.1
    """Fraction of training over which the total weight rises from 0."""
    ev_low: float = 0.5
    """Explained variance up to which the total weight is 0."""
    ev_high: float = 0.9
    """Explained variance from which on it is whole."""

    def __post_init__(self):
        if self.coef < 0:
            raise ValueError(f"coef={self.coef} must be at least 0")
        if not -1 <= self.tau < 1:
            raise ValueError(f"tau={self.tau} must be in [-1, 1)")
        for name in ("n_sample", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("share", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")
        if not 0 < self.update_every <= 1:
            raise ValueError(f"update_every={self.update_every} must be above 0 and at most 1")
        if not self.ev_low < self.ev_high:
            raise ValueError(f"ev_low={self.ev_low} must be below ev_high={self.ev_high}")


class AdaptiveOrthogonal(Variant):
    """Orthogonal decoder rows, by groups and as fast as the SAE learns."""

    Config = AdaptiveOrthogonalConfig
    needs_base = True
    input_variance: Tensor
    explained: Tensor
    groups: Tensor

    def __init__(self, d_in: int, d_sae: int, cfg=None, *, generator: torch.Generator):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        if self.cfg.share < 1 and self.cfg.group_size > max(d_in // 2, 1):
            raise ValueError(f"group_size={self.cfg.group_size} exceeds d_in / 2 = {d_in // 2}")
        self.register_buffer("input_variance", torch.ones(()))
        self.register_buffer("explained", torch.zeros(()))
        self.register_buffer("groups", torch.full((d_sae,), -1, dtype=torch.int32))

    def start(self, x: Tensor) -> None:
        super().start(x)
        self.input_variance.copy_(ops.variance(x))

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        terms = super().losses(batch, step)
        if not self.cfg.coef:
            return terms
        weight = self.cfg.coef * self.input_variance
        if self.cfg.adapt_total:
            weight = weight * self.total_share(batch.x, step)
        penalty = self.orthogonality(ops.sampled(self.d_sae, self.cfg.n_sample, step))
        return {**terms, "orthogonality": weight * penalty}

    def after_step(self, batch: Batch, step: Step) -> None:
        super().after_step(batch, step)
        every = self.cfg.update_every
        if self.cfg.share < 1 and (step.number == 0 or step.ends_part(every)):
            self.regroup(batch.x, step)

    def orthogonality(self, rows: Tensor) -> Tensor:
        """The penalty, estimated without bias from some latents. rows [s] int -> []."""
        cfg, D = self.cfg, normalize(self.W_dec, dim=-1)
        if cfg.share == 1:
            return self._hinge(D, rows, ops.nearest_rows(D.detach(), rows)).mean()
        outside, inside = ops.nearest_by_group(D.detach(), rows, self.groups)
        between, within = self._hinge(D, rows, outside), self._hinge(D, rows, inside)
        return torch.maximum(between, cfg.share * within).mean()

    @torch.no_grad()
    def total_share(self, x: Tensor, step: Step) -> Tensor:
        """Share in [0, 1] of the total weight: how far training and explained variance are."""
        x = x[:EV_ROWS]
        now = 1 - ops.unexplained_variance(x, self(x))
        first = step.number == 0
        mean = ops.running(self.explained, now, step.length, EV_MEMORY, is_first=first)
        self.explained.copy_(mean)
        low, high = self.cfg.ev_low, self.cfg.ev_high
        learnt = ((mean - low) / (high - low)).clamp(0, 1)
        return learnt * ops.ramp(step.progress, self.cfg.ramp)

    @torch.no_grad()
    def regroup(self, x: Tensor, step: Step) -> None:
        """Find the groups anew; dead latents are in none. x [n, d_in]."""
        if self.cfg.group_by == "direction":
            vectors = self.W_dec
        else:
            f = self.encode(x[:GROUPING_ROWS])
            vectors = f.T
        # a silent latent has no direction among the activations
        members = ~step.dead & (torch.linalg.vector_norm(vectors, dim=-1) > ops.TINY)
        size, draws = self.cfg.group_size, step.generator("groups")
        self.groups.copy_(ops.balanced_groups(vectors, members, size, draws))

    def _hinge(self, D: Tensor, rows: Tensor, others: Tensor) -> Tensor:
        """relu(C - tau)^2 of each row with one other, 0 where that is -1. [s], [s] -> [s]."""
        cosine = (D[rows] * D[others.clamp_min(0)]).sum(-1)
        return torch.relu(cosine - self.cfg.tau).pow(2) * (others >= 0)
