"""ReLU SAE with free decoder norms, which the L1 penalty counts in.

Anthropic, April 2024 update, transformer-circuits.pub/2024/april-update, "How we train SAEs":
squared error plus l1 * sum_i f_i ||W_dec_i||, no bias before the encoder, no resampling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Variant


@dataclass(frozen=True)
class ReLUConfig:
    """Settings of the free-norm ReLU SAE."""

    l1: float = 0.1
    """Weight of the norm-weighted L1 term, in units of the squared error."""
    decoder_init_norm: float = 0.5
    """Norm of each decoder row before training; the update allows 0.05 to 1. SAELens has 0.1, from
    where a training of a few thousand steps leaves latents that fire but do next to nothing."""

    def __post_init__(self):
        if self.l1 < 0:
            raise ValueError(f"l1={self.l1} must be at least 0")
        if self.decoder_init_norm <= 0:
            raise ValueError(f"decoder_init_norm={self.decoder_init_norm} must be above 0")


class ReLU(Variant):
    """ReLU SAE, squared error, L1 weighted by free decoder norms (Anthropic, April 2024)."""

    Config = ReLUConfig
    knob = Knob("l1", raises_l0=False, native=False)

    def __init__(
        self, d_in: int, d_sae: int, cfg: ReLUConfig | None = None, *, generator: torch.Generator
    ):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        with torch.no_grad():
            self.W_dec.mul_(self.cfg.decoder_init_norm)
            self.W_enc.copy_(self.W_dec.T)

    def start(self, x: Tensor) -> None:
        """b_dec starts at the mean, not at 0 as in the update: short trainings are spent less on
        latents that fire for the mean of a stream that is not centred."""
        with torch.no_grad():
            self.b_dec.copy_(x.mean(0))

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return torch.relu(x @ self.W_enc + self.b_enc)

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        norms = torch.linalg.vector_norm(self.W_dec, dim=-1)
        fit = ops.relu_autoencoder(
            batch.x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, price=norms
        )
        step.fired(fit.fired)
        weight = self.cfg.l1 * step.sparsity_warmup
        return {
            "reconstruction": ops.squared_error(batch.x, fit.x_hat),
            "sparsity": weight * fit.l1,
        }

    def export(self) -> Exported:
        w = {k: v.detach().clone() for k, v in self.named_parameters()}
        folded = ops.fold_norms(w["W_enc"], w["b_enc"], w["W_dec"])
        state = {**folded._asdict(), "b_dec": w["b_dec"]}
        return Exported("standard", {"apply_b_dec_to_input": False}, state)
