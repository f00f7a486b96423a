"""Gated SAE: one path decides which latents are active, the other how strongly.

Rajamanoharan et al. 2024, arXiv:2404.16014. The paths share W_enc up to a factor exp(r_mag) per
latent. L1 acts on the gate alone, which an auxiliary reconstruction from the gate keeps meaningful;
its decoder is frozen as in the paper and dictionary_learning, SAELens lets its gradient through.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Variant


@dataclass(frozen=True)
class GatedConfig:
    """Settings of the gated SAE."""

    l1: float = 0.1
    """Weight of the L1 norm of the rectified gate, in units of the squared error."""
    freeze_aux_decoder: bool = True
    """Keep the gradient of the auxiliary reconstruction from W_dec and b_dec."""

    def __post_init__(self):
        if self.l1 < 0:
            raise ValueError(f"l1={self.l1} must be at least 0")


class Gated(Variant):
    """Separate gate and magnitude, L1 on the gate alone (Rajamanoharan et al. 2024)."""

    Config = GatedConfig
    knob = Knob("l1", raises_l0=False, native=False)
    latent_axis = {"W_enc": 1, "b_enc": 0, "b_mag": 0, "r_mag": 0, "W_dec": 0}

    def __init__(
        self, d_in: int, d_sae: int, cfg: GatedConfig | None = None, *, generator: torch.Generator
    ):
        """`b_enc` is the bias of the gate, b_gate in the paper."""
        super().__init__(d_in, d_sae, cfg, generator=generator)
        self.b_mag = nn.Parameter(torch.zeros(d_sae))
        self.r_mag = nn.Parameter(torch.zeros(d_sae))

    def start(self, x: Tensor) -> None:
        """b_dec starts at the mean, so that no latent is spent on it."""
        with torch.no_grad():
            self.b_dec.copy_(x.mean(0))

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return self._both(x)[0]

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        f, gate = self._both(batch.x)
        step.fired(torch.count_nonzero(f.detach(), dim=0))
        W_dec, b_dec = self.W_dec, self.b_dec
        if self.cfg.freeze_aux_decoder:
            W_dec, b_dec = W_dec.detach(), b_dec.detach()
        weight = self.cfg.l1 * step.sparsity_warmup
        return {
            "reconstruction": ops.squared_error(batch.x, self.decode(f)),
            "sparsity": weight * gate.sum(-1).mean(),
            "auxiliary": ops.squared_error(batch.x, gate @ W_dec + b_dec),
        }

    def after_backward(self, step: Step) -> None:
        if self.W_dec.grad is not None:
            ops.remove_radial_(self.W_dec.grad, self.W_dec)

    def after_step(self, batch: Batch, step: Step) -> None:
        ops.normalise_rows_(self.W_dec)

    def export(self) -> Exported:
        weights = {k: v.detach().clone() for k, v in self.named_parameters()}
        weights["b_gate"] = weights.pop("b_enc")
        return Exported("gated", {"apply_b_dec_to_input": True}, weights)

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Feature acts and rectified gate, [n, d_sae] each, from one product with W_enc."""
        shared = (x - self.b_dec) @ self.W_enc
        gate = shared + self.b_enc
        f = torch.relu(shared * self.r_mag.exp() + self.b_mag) * (gate > 0)
        return f, torch.relu(gate)
