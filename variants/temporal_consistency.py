"""Feature acts of neighbouring tokens are kept alike, on several scales of distance.

Within a context, 1 - cosine of f less its running mean is averaged over all pairs of one offset,
then over the offsets of a scale, then over scales: short 1-4, medium 5-16, long 17 and more. A row
without any active latent counts as 1: left out, silencing inconsistent tokens would win. Centring
takes out what is constant, and a norm counts as at least a tenth of the mean one. f is weighed with
decoder norms. Special tokens and padding are left out. Not SAELens's inference-only `temporal`
(arXiv:2511.01836).

An optional gate sees positions: f = relu(pre + P[pos] U) or f * 2 sigmoid(P[pos] U), P fixed and
random, U learnt and of low rank. Optional pruning takes away the latents that persist least, by
(P(fires at t + 1 | fires at t) - p) / (1 - p).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench import ops
from bench.variant import Batch, Exported, Step, Variant

SCALES = ((1, 4), (5, 16), (17, None))
"""First and last offset of each scale, in tokens."""
SHORTEST = 4
"""Largest offset that counts at the start of progressive training."""
FLOOR = 0.1
"""Least norm of a centred row, as a share of the mean one."""
MEMORY = 0.01
"""Fraction of training over which means are averaged."""
COUNTING_MEMORY = 0.05
"""Fraction of training over which firings are counted for pruning."""
PRUNE_EVERY = 0.01
"""Fraction of training between two prunings."""
EV_ROWS = 512
"""Rows of the batch on which explained variance is measured."""


@dataclass(frozen=True)
class TemporalConsistencyConfig:
    """Settings of the consistency between neighbouring tokens."""

    base: str = "relu"
    """The variant whose objective it is added to."""
    coef: float = 0.1
    """Weight of the term, in units of the input's variance."""
    scale_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of the short, medium and long scale among each other."""
    adapt_scales: bool = False
    """Weigh each scale with its running loss too, so that the worst counts most."""
    adapt_total: bool = False
    """Multiply coef by the running explained variance: reconstruction comes first."""
    progressive: bool = True
    """Let the largest offset that counts grow from 4 to the context's length over training."""
    n_contexts: int = 8
    """Contexts per step that the term looks at."""
    gate: Literal["off", "bias", "scale"] = "off"
    """How positions act on latents; other than `off` only on the base `relu`."""
    gate_rank: int = 8
    """Columns of P."""
    n_positions: int = 1_024
    """Rows of P; later positions share the last one."""
    prune_fraction: float = 0.0
    """Share of latents that are taken away in the end."""
    prune_from: float = 0.2
    """Fraction of training after which latents are pruned."""
    prune_until: float = 0.6
    """Fraction of training after which none are."""
    min_firings: int = 100
    """A latent that fired less often recently has no score and stays."""

    def __post_init__(self):
        if self.coef < 0:
            raise ValueError(f"coef={self.coef} must be at least 0")
        if min(self.scale_weights) < 0 or not sum(self.scale_weights):
            raise ValueError(f"scale_weights={self.scale_weights} must be at least 0, not all 0")
        for name in ("n_contexts", "gate_rank", "n_positions", "min_firings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.prune_fraction < 1:
            raise ValueError(f"prune_fraction={self.prune_fraction} must be in [0, 1)")
        if not 0 <= self.prune_from < self.prune_until <= 1:
            raise ValueError(
                f"prune_from={self.prune_from} must be below prune_until={self.prune_until}"
            )
        if self.gate != "off" and self.base != "relu":
            raise ValueError(f"gate={self.gate!r} needs base='relu', not {self.base!r}")


class TemporalConsistency(Variant):
    """Neighbouring tokens get similar features, on several scales."""

    Config = TemporalConsistencyConfig
    needs_base = True
    needs_sequences = True
    input_variance: Tensor
    explained: Tensor
    mean_f: Tensor
    scale_losses: Tensor
    pruned: Tensor
    counts: Tensor
    P: Tensor

    def __init__(self, d_in: int, d_sae: int, cfg=None, *, generator: torch.Generator):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        self.register_buffer("input_variance", torch.ones(()))
        self.register_buffer("explained", torch.zeros(()))
        self.register_buffer("mean_f", torch.zeros(d_sae))
        self.register_buffer("scale_losses", torch.ones(len(SCALES)))
        self.register_buffer("pruned", torch.zeros(d_sae, dtype=torch.bool))
        # decayed counts of: fired, fired with a next token, fired at both; and of tokens
        self.register_buffer("counts", torch.zeros(4, d_sae))
        if self.cfg.gate != "off":
            # own numbers: the base's weights stay those that it has without a gate
            draws = ops.generator(generator.initial_seed(), "positions")
            shape = (self.cfg.n_positions, self.cfg.gate_rank)
            P = torch.randn(shape, generator=draws) / self.cfg.gate_rank**0.5
            self.register_buffer("P", P)
            self.U = nn.Parameter(torch.zeros(self.cfg.gate_rank, d_sae))

    def start(self, x: Tensor) -> None:
        super().start(x)
        self.input_variance.copy_(ops.variance(x))

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """With a gate and without positions it is as if the gate were open."""
        if self.cfg.gate == "off" or positions is None:
            return super().encode(x)
        shift = self.P[positions.clamp_max(self.cfg.n_positions - 1)] @ self.U
        if self.cfg.gate == "bias":
            return torch.relu(x @ self.W_enc + self.b_enc + shift)
        return super().encode(x) * (2 * torch.sigmoid(shift))

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        is_gated = self.cfg.gate != "off"
        terms = self._gated_losses(batch, step) if is_gated else super().losses(batch, step)
        if not self.cfg.coef and not self.cfg.prune_fraction:
            return terms
        x, mask, positions = self._contexts(batch)
        f = self.encode(x, positions) * torch.linalg.vector_norm(self.W_dec, dim=-1)
        if self.cfg.prune_fraction:
            self._count(f.detach() > 0, mask, step)
        if not self.cfg.coef:
            return terms
        self._follow_mean(f.detach(), mask, step)
        weight = self.cfg.coef * self.input_variance
        if self.cfg.adapt_total:
            weight = weight * self._explained(batch.x, step)
        return {**terms, "consistency": weight * self.consistency(f, mask, step)}

    def after_step(self, batch: Batch, step: Step) -> None:
        super().after_step(batch, step)
        if not self.cfg.prune_fraction:
            return
        if step.ends_part(PRUNE_EVERY):
            self.prune(step.progress)
        with torch.no_grad():
            # never above 0, whatever the optimiser or a reset made of it
            self.W_enc.mul_(~self.pruned)
            self.b_enc.copy_(torch.where(self.pruned, -1.0, self.b_enc))

    def export(self) -> Exported:
        """Raises ValueError with a gate: no SAE of SAELens sees positions."""
        if self.cfg.gate != "off":
            raise ValueError(f"gate={self.cfg.gate!r} has no SAELens architecture, set gate='off'")
        return super().export()

    def consistency(self, f: Tensor, mask: Tensor, step: Step) -> Tensor:
        """Weighted mean over scales of 1 - cosine. f [b, T, d_sae], mask [b, T] bool -> []."""
        per_offset, n_pairs = self._per_offset(f, mask)
        largest = self._largest_offset(f.shape[1], step.progress)
        offsets = torch.arange(f.shape[1], device=f.device)
        is_counted = (n_pairs > 0) & (offsets <= largest)
        means, present = [], []
        for first, last in SCALES:
            inside = is_counted & (offsets >= first) & (offsets <= (last or f.shape[1]))
            means.append((per_offset * inside).sum() / inside.sum().clamp_min(1))
            present.append(inside.any())
        losses, has = torch.stack(means), torch.stack(present)  # [scales]
        weights = torch.tensor(self.cfg.scale_weights, device=f.device) * has
        if self.cfg.adapt_scales:
            with torch.no_grad():
                now = torch.where(has, losses, self.scale_losses)
                first = step.number == 0
                mean = ops.running(self.scale_losses, now, step.length, MEMORY, is_first=first)
                self.scale_losses.copy_(mean)
            weights = weights * self.scale_losses
        return (weights * losses).sum() / weights.sum().clamp_min(ops.TINY)

    @torch.no_grad()
    def persistence(self) -> Tensor:
        """(P(fires at t + 1 | fires at t) - p) / (1 - p), inf for too few firings. [d_sae]."""
        fired, had_next, both, tokens = self.counts
        rate = fired / tokens.clamp_min(1)
        again = both / had_next.clamp_min(ops.TINY)
        score = (again - rate) / (1 - rate).clamp_min(ops.TINY)
        return torch.where(fired >= self.cfg.min_firings, score, torch.inf)

    @torch.no_grad()
    def prune(self, progress: float) -> None:
        """Mask the latents that persist least, as many as the cosine schedule wants by now."""
        c = self.cfg
        done = min(max((progress - c.prune_from) / (c.prune_until - c.prune_from), 0.0), 1.0)
        wanted = round(c.prune_fraction * self.d_sae * (1 - math.cos(math.pi * done)) / 2)
        n_new = wanted - int(self.pruned.sum())
        if n_new > 0:
            score = self.persistence().masked_fill(self.pruned, torch.inf)
            lowest = score.topk(n_new, largest=False)
            self.pruned[lowest.indices[lowest.values.isfinite()]] = True

    def _contexts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        assert batch.contexts is not None and batch.mask is not None  # needs_sequences
        n = self.cfg.n_contexts
        positions = None if batch.positions is None else batch.positions[:n]
        return batch.contexts[:n], batch.mask[:n], positions

    def _gated_losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The base's objective on the contexts, as shuffled tokens have no positions."""
        assert batch.contexts is not None and batch.mask is not None  # needs_sequences
        assert batch.positions is not None
        x = batch.contexts[batch.mask]
        f = self.encode(x, batch.positions[batch.mask])
        step.fired(torch.count_nonzero(f.detach(), dim=0))
        norms = torch.linalg.vector_norm(self.W_dec, dim=-1)
        return {
            "reconstruction": ops.squared_error(x, self.decode(f)),
            "sparsity": self.cfg.l1 * step.sparsity_warmup * (f @ norms).mean(),
        }

    def _per_offset(self, f: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and number of pairs at each offset 0 .. T - 1. -> [T], [T]."""
        T = f.shape[1]
        centred = f - self.mean_f
        norms = torch.linalg.vector_norm(centred, dim=-1)  # [b, T]
        least = FLOOR * (norms.detach() * mask).sum() / mask.sum().clamp_min(1)
        unit = centred / norms.maximum(least).clamp_min(ops.TINY)[..., None]
        is_active = (f > 0).any(-1)
        both_active = is_active[:, :, None] & is_active[:, None]
        loss = 1 - torch.where(both_active, unit @ unit.transpose(1, 2), 0.0)  # [b, T, T]
        valid = mask[:, :, None] & mask[:, None]
        place = torch.arange(T, device=f.device)
        offset = (place[None] - place[:, None]).clamp_min(0).flatten()  # 0 is not looked at
        sums, counts = (
            torch.zeros(T, device=f.device).index_add(0, offset, v.sum(0, dtype=f.dtype).flatten())
            for v in (torch.where(valid, loss, 0.0), valid)
        )
        counts[0] = 0
        return sums / counts.clamp_min(1), counts

    def _largest_offset(self, length: int, progress: float) -> float:
        if not self.cfg.progressive:
            return length - 1
        return SHORTEST + progress * max(length - 1 - SHORTEST, 0)

    @torch.no_grad()
    def _follow_mean(self, f: Tensor, mask: Tensor, step: Step) -> None:
        weights = mask[..., None].to(f)
        now = (f * weights).sum((0, 1)) / weights.sum().clamp_min(1)
        first = step.number == 0
        self.mean_f = ops.running(self.mean_f, now, step.length, MEMORY, is_first=first)

    @torch.no_grad()
    def _explained(self, x: Tensor, step: Step) -> Tensor:
        """Running explained variance, in [0, 1]."""
        x = x[:EV_ROWS]
        now = 1 - ops.unexplained_variance(x, self(x))
        first = step.number == 0
        mean = ops.running(self.explained, now, step.length, MEMORY, is_first=first)
        self.explained.copy_(mean)
        return mean.clamp(0, 1)

    @torch.no_grad()
    def _count(self, fires: Tensor, mask: Tensor, step: Step) -> None:
        """Add one step to the decayed counts of firings. fires [b, T, d_sae] bool."""
        fires = fires & mask[..., None]
        has_next = (mask[:, :-1] & mask[:, 1:])[..., None]
        now = [
            fires.sum((0, 1)),
            (fires[:, :-1] & has_next).sum((0, 1)),
            (fires[:, :-1] & fires[:, 1:]).sum((0, 1)),
            mask.sum().expand(self.d_sae),
        ]
        kept = 1 - min(step.length / COUNTING_MEMORY, 1.0)
        self.counts.mul_(kept).add_(torch.stack(now))
