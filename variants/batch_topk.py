"""BatchTopK SAE: the k * n largest pre-activations of a batch of n tokens are kept.

Bussmann et al. 2024, arXiv:2412.06410. A token may have more latents than another; k is the mean.
After training one threshold for all takes the place of the batch, so that no token depends on its
neighbours. It is found anew on the finished SAE: the running mean that SAELens keeps was 10 % off
in short trainings, and the paper's mean of the batches' minima does not give an L0 of k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Stream, Variant

THRESHOLD_MEMORY = 0.01
"""Fraction of training over which the threshold is averaged until the end."""


@dataclass(frozen=True)
class BatchTopKConfig:
    """Settings of the BatchTopK SAE."""

    k: float = 32.0
    """Active latents per token, mean over the batch."""
    auxk_coef: float = 1 / 32
    """Weight of the auxiliary error of dead latents, in units of the squared error."""
    auxk_relu: bool = True
    """Rectify the dead latents in the auxiliary error; SAELens does not."""

    def __post_init__(self):
        if self.k <= 0:
            raise ValueError(f"k={self.k} must be above 0")
        if self.auxk_coef < 0:
            raise ValueError(f"auxk_coef={self.auxk_coef} must be at least 0")


class BatchTopK(Variant):
    """Top-k over the whole batch with AuxK and unit decoder rows (Bussmann et al. 2024)."""

    Config = BatchTopKConfig
    knob = Knob("k", raises_l0=True, native=True)
    threshold: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        cfg: BatchTopKConfig | None = None,
        *,
        generator: torch.Generator,
    ):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        if self.cfg.k > d_sae:
            raise ValueError(f"k={self.cfg.k} exceeds d_sae={d_sae}")
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
        x_hat = self.decode(f)
        return {
            "reconstruction": ops.squared_error(batch.x, x_hat),
            "auxk": self._auxk(batch.x, x_hat, step),
        }

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
