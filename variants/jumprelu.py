"""JumpReLU SAE: each latent has its own threshold, and the penalty is on L0 itself.

Rajamanoharan et al. 2024, arXiv:2407.14435: squared error plus l0_coef * L0, where thresholds learn
through a pseudo-gradient of width `bandwidth`, which presumes inputs of unit mean squared norm, as
ours are. The step of the penalty is applied to the pre-activations as in the paper and SAELens;
dictionary_learning applies it to f. The threshold itself is the parameter, as in both libraries,
and not its logarithm.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Variant


@dataclass(frozen=True)
class JumpReLUConfig:
    """Settings of the JumpReLU SAE."""

    l0_coef: float = 1e-3
    """Weight of the penalty, in units of the squared error per active latent."""
    sparsity_loss: Literal["step", "tanh", "quadratic"] = "step"
    """`step`: L0. `tanh`: of tanh(4 f), Anthropic's January 2025 update. `quadratic`: of
    2 / l0_aim * (L0 - l0_aim)^2, Gemma Scope 2."""
    l0_aim: float = 32.0
    """Where the quadratic penalty is 0."""
    bandwidth: float = 1e-3
    """Width around a threshold in which a pre-activation moves it; the paper's epsilon. SAELens has
    0.05."""
    initial_threshold: float = 1e-3
    """Threshold of every latent before training, as in the paper. SAELens has 0.01."""
    ste_to_input: bool = False
    """Let the pseudo-gradient reach the encoder too, as Anthropic does."""
    pre_act_coef: float = 0.0
    """Weight of pulling dead latents towards their threshold; Anthropic has 3e-6."""

    def __post_init__(self):
        for name in ("bandwidth", "l0_aim"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("l0_coef", "initial_threshold", "pre_act_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")


TANH_SCALE = 4.0
"""Anthropic's constant c."""


class JumpReLU(Variant):
    """One learnt threshold per latent, penalty on L0 (Rajamanoharan et al. 2024)."""

    Config = JumpReLUConfig
    knob = Knob("l0_coef", raises_l0=False, native=False)
    latent_axis = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "threshold": 0}

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        cfg: JumpReLUConfig | None = None,
        *,
        generator: torch.Generator,
    ):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        if self.cfg.sparsity_loss == "quadratic" and self.cfg.l0_aim > d_sae:
            raise ValueError(f"l0_aim={self.cfg.l0_aim} exceeds d_sae={d_sae}")
        self.threshold = nn.Parameter(torch.full((d_sae,), self.cfg.initial_threshold))

    def start(self, x: Tensor) -> None:
        """b_dec starts at the mean, so that no latent is spent on it."""
        with torch.no_grad():
            self.b_dec.copy_(x.mean(0))

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        pre = x @ self.W_enc + self.b_enc
        return pre * (pre > self.threshold)

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        cfg, pre = self.cfg, batch.x @ self.W_enc + self.b_enc
        f = ops.jumprelu(pre, self.threshold, cfg.bandwidth, to_input=cfg.ste_to_input)
        step.fired(torch.count_nonzero(f.detach(), dim=0))
        terms = {
            "reconstruction": ops.squared_error(batch.x, self.decode(f)),
            "sparsity": cfg.l0_coef * step.sparsity_warmup * self._penalty(pre, f),
        }
        if cfg.pre_act_coef:
            missing = torch.relu(self.threshold - pre) * step.dead
            norms = torch.linalg.vector_norm(self.W_dec, dim=-1)
            terms["pre_act"] = cfg.pre_act_coef * (missing @ norms).mean()
        return terms

    def after_backward(self, step: Step) -> None:
        if self.W_dec.grad is not None:
            ops.remove_radial_(self.W_dec.grad, self.W_dec)

    def after_step(self, batch: Batch, step: Step) -> None:
        ops.normalise_rows_(self.W_dec)
        with torch.no_grad():
            # below 0 negative pre-activations would pass
            self.threshold.clamp_(min=0.0)

    def export(self) -> Exported:
        weights = {k: v.detach().clone() for k, v in self.named_parameters()}
        return Exported("jumprelu", {"apply_b_dec_to_input": False}, weights)

    def _penalty(self, pre: Tensor, f: Tensor) -> Tensor:
        cfg = self.cfg
        if cfg.sparsity_loss == "tanh":
            norms = torch.linalg.vector_norm(self.W_dec, dim=-1)
            return torch.tanh(TANH_SCALE * f * norms).sum(-1).mean()
        active = ops.heaviside(pre, self.threshold, cfg.bandwidth, to_input=cfg.ste_to_input)
        l0 = active.sum(-1)
        return (
            2 / cfg.l0_aim * (l0 - cfg.l0_aim) ** 2 if cfg.sparsity_loss == "quadratic" else l0
        ).mean()
