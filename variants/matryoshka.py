"""Matryoshka BatchTopK SAE: the first latents alone must reconstruct too, at several widths.

Bussmann et al. 2025, arXiv:2503.17547: the k * n largest pre-activations of the batch are kept, and
the squared error is summed over nested groups of latents, so that general features stay in the
first ones and are not absorbed. The levels are summed as in the paper and SAELens;
dictionary_learning takes their mean. The threshold of inference is found as for batch_topk.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Stream, Variant

THRESHOLD_MEMORY = 0.01
"""Fraction of training over which the threshold is averaged until the end."""


@dataclass(frozen=True)
class MatryoshkaConfig:
    """Settings of the Matryoshka SAE."""

    k: float = 32.0
    """Active latents per token, mean over the batch."""
    groups: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
    """Shares of d_sae that each level adds, SAEBench's; their sum is 1."""
    auxk_coef: float = 1 / 32
    """Weight of the auxiliary error of dead latents, in units of the squared error."""
    auxk_relu: bool = True
    """Rectify the dead latents in the auxiliary error; SAELens does not."""

    def __post_init__(self):
        if self.k <= 0:
            raise ValueError(f"k={self.k} must be above 0")
        if self.auxk_coef < 0:
            raise ValueError(f"auxk_coef={self.auxk_coef} must be at least 0")
        if not self.groups or min(self.groups) <= 0 or abs(sum(self.groups) - 1) > 1e-6:
            raise ValueError(f"groups={self.groups} must be above 0 and sum to 1")


class Matryoshka(Variant):
    """Nested reconstructions from the first latents, BatchTopK (Bussmann et al. 2025)."""

    Config = MatryoshkaConfig
    knob = Knob("k", raises_l0=True, native=True)
    threshold: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        cfg: MatryoshkaConfig | None = None,
        *,
        generator: torch.Generator,
    ):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        if self.cfg.k > d_sae:
            raise ValueError(f"k={self.cfg.k} exceeds d_sae={d_sae}")
        shares = torch.tensor(self.cfg.groups, dtype=torch.float64).cumsum(0)
        self.widths = [*(shares[:-1] * d_sae).round().long().tolist(), d_sae]
        """Latents of each level, the last one with all."""
        if len(set(self.widths)) < len(self.widths) or self.widths[0] < 1:
            raise ValueError(f"groups={self.cfg.groups}: levels {self.widths} of d_sae={d_sae}")
        self.register_buffer("threshold", torch.zeros(()))

    def start(self, x: Tensor) -> None:
        """The bias starts at the geometric median."""
        with torch.no_grad():
            self.b_dec.copy_(ops.geometric_median(x))

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        f = torch.relu(self._pre(x))
        return f * (f > self.threshold)

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        f = ops.keep_batch_top_k(self._pre(batch.x), self.cfg.k)
        step.fired(torch.count_nonzero(f.detach(), dim=0))
        self._follow(f.detach(), step)
        *inner, x_hat = self._levels(f)
        terms = {"reconstruction": ops.squared_error(batch.x, x_hat)}
        for width, partial in zip(self.widths, inner):
            terms[f"first_{width}"] = ops.squared_error(batch.x, partial)
        return {**terms, "auxk": self._auxk(batch.x, x_hat, step)}

    def after_backward(self, step: Step) -> None:
        if self.W_dec.grad is not None:
            ops.remove_radial_(self.W_dec.grad, self.W_dec)

    def after_step(self, batch: Batch, step: Step) -> None:
        ops.normalise_rows_(self.W_dec)

    def finish(self, stream: Stream) -> None:
        """The threshold with which the first 2^17 tokens of the stream have a mean L0 of k."""
        acts = (torch.relu(self._pre(batch.x)) for batch in stream)
        self.threshold.copy_(ops.threshold_for_l0(acts, self.cfg.k))

    def export(self) -> Exported:
        weights = {k: v.detach().clone() for k, v in self.named_parameters()}
        threshold = self.threshold * torch.ones_like(weights["b_enc"])
        cfg = {"apply_b_dec_to_input": True}
        return Exported("jumprelu", cfg, {**weights, "threshold": threshold})

    def _pre(self, x: Tensor) -> Tensor:
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def _levels(self, f: Tensor) -> Iterator[Tensor]:
        """x_hat [n, d_in] from the first latents, level by level; all of them cost one decoding."""
        x_hat, start = self.b_dec, 0
        for end in self.widths:
            x_hat = f[:, start:end] @ self.W_dec[start:end] + x_hat
            start = end
            yield x_hat

    @torch.no_grad()
    def _follow(self, f: Tensor, step: Step) -> None:
        """Move the threshold towards the smallest activation that the batch has kept."""
        smallest = f.masked_fill(f <= 0, torch.inf).amin()
        smallest = torch.where(smallest.isinf(), self.threshold, smallest)
        rate = 1.0 if step.number == 0 else min(step.length / THRESHOLD_MEMORY, 1.0)
        self.threshold.lerp_(smallest, rate)

    def _auxk(self, x: Tensor, x_hat: Tensor, step: Step) -> Tensor:
        if not self.cfg.auxk_coef:
            return x.new_zeros(())
        weights = ops.AuxK(self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        return self.cfg.auxk_coef * ops.dead_latents_error(
            x, x - x_hat, weights, step.dead, step.n_dead, rectify=self.cfg.auxk_relu
        )
