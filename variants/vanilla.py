"""The classic SAE: ReLU, L1 on the feature activations, unit decoder rows, resampling of the dead.

Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features, with the error's norm
instead of its square, as in Marks et al.'s dictionary_learning before its squared version.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Variant

RESAMPLED_ENCODER_NORM = 0.2
"""Of the mean of the living; Bricken et al., "Neuron resampling"."""


@dataclass(frozen=True)
class VanillaConfig:
    """Settings of the classic SAE."""

    l1: float = 0.1
    """Weight of the L1 norm of f, in units of the error's norm."""
    squared: bool = False
    """Square the error, as dictionary_learning's StandardTrainer does since 2024."""
    resample_every: float = 0.125
    """Fraction of training between two resamplings of dead latents; 0 = never."""
    resample_until: float = 0.5
    """Fraction of training after which none is resampled, so that all have time to learn."""

    def __post_init__(self):
        if self.l1 < 0:
            raise ValueError(f"l1={self.l1} must be at least 0")
        for name in ("resample_every", "resample_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")


class Vanilla(Variant):
    """ReLU SAE with L1 on f and unit decoder rows; dead latents are resampled."""

    Config = VanillaConfig
    knob = Knob("l1", raises_l0=False, native=False)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        cfg: VanillaConfig | None = None,
        *,
        generator: torch.Generator,
    ):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        self._generator = generator

    def start(self, x: Tensor) -> None:
        """The bias starts at the median: from 0, latents would first of all learn the mean."""
        with torch.no_grad():
            self.b_dec.copy_(ops.geometric_median(x))

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        fit = ops.relu_autoencoder(
            batch.x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, origin=self.b_dec
        )
        step.fired(fit.fired)
        error = ops.squared_error if self.cfg.squared else ops.norm_error
        weight = self.cfg.l1 * step.sparsity_warmup
        return {
            "reconstruction": error(batch.x, fit.x_hat),
            "sparsity": weight * fit.l1,
        }

    def after_backward(self, step: Step) -> None:
        if self.W_dec.grad is not None:
            ops.remove_radial_(self.W_dec.grad, self.W_dec)

    def after_step(self, batch: Batch, step: Step) -> None:
        ops.normalise_rows_(self.W_dec)
        every = self.cfg.resample_every
        if every and step.ends_part(every) and step.progress < self.cfg.resample_until:
            self.resample(batch.x, step)

    @torch.no_grad()
    def resample(self, x: Tensor, step: Step) -> None:
        """Point dead latents at inputs that are badly reconstructed. x [n, d_in].

        Inputs are drawn in proportion to their squared error and taken relative to b_dec, or on a
        stream with a large mean all new latents would point at the mean.
        """
        dead = step.dead.nonzero().squeeze(1)[: len(x)]
        if len(dead) == 0:
            return
        errors = (x - self(x)).pow(2).sum(-1).cpu()
        rows = torch.multinomial(errors, len(dead), generator=self._generator).to(x.device)
        directions = x[rows] - self.b_dec
        ops.normalise_rows_(directions)
        alive = torch.linalg.vector_norm(self.W_enc, dim=0)[~step.dead]
        norm = alive.mean() if len(alive) else torch.ones((), device=x.device)
        self.W_dec[dead] = directions
        self.W_enc[:, dead] = directions.T * norm * RESAMPLED_ENCODER_NORM
        self.b_enc[dead] = 0.0
        step.revive(torch.zeros_like(step.dead).index_fill(0, dead, True))

    def export(self) -> Exported:
        weights = {k: v.detach().clone() for k, v in self.named_parameters()}
        return Exported("standard", {"apply_b_dec_to_input": True}, weights)
