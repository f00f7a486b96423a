"""TopK SAE: only the k largest pre-activations of a token are kept; AuxK keeps latents alive.

Gao et al. 2024, arXiv:2406.04093, sections 2.3 and A.2. The auxiliary error is weighed down while
fewer latents are dead than it may use, as in EleutherAI's sparsify and SAELens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Variant


@dataclass(frozen=True)
class TopKConfig:
    """Settings of the TopK SAE."""

    k: int = 32
    """Active latents per token."""
    auxk_coef: float = 1 / 32
    """Weight of the auxiliary error, in units of the squared error; the paper's alpha."""
    auxk_relu: bool = True
    """Rectify the dead latents in the auxiliary error, as the paper's code; SAELens does not."""

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")
        if self.auxk_coef < 0:
            raise ValueError(f"auxk_coef={self.auxk_coef} must be at least 0")


class TopK(Variant):
    """TopK SAE with AuxK and unit decoder rows (Gao et al. 2024)."""

    Config = TopKConfig
    knob = Knob("k", raises_l0=True, native=True)

    def __init__(
        self, d_in: int, d_sae: int, cfg: TopKConfig | None = None, *, generator: torch.Generator
    ):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        if self.cfg.k > d_sae:
            raise ValueError(f"k={self.cfg.k} exceeds d_sae={d_sae}")

    def start(self, x: Tensor) -> None:
        """The bias starts at the geometric median (section A.1)."""
        with torch.no_grad():
            self.b_dec.copy_(ops.geometric_median(x))

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return ops.keep_top_k((x - self.b_dec) @ self.W_enc + self.b_enc, self.cfg.k)

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        fit = ops.topk_autoencoder(
            batch.x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.cfg.k, origin=self.b_dec
        )
        step.fired(fit.fired)
        return {
            "reconstruction": ops.squared_error(batch.x, fit.x_hat),
            "auxk": self._auxk(batch.x, fit.x_hat, step),
        }

    def after_backward(self, step: Step) -> None:
        if self.W_dec.grad is not None:
            ops.remove_radial_(self.W_dec.grad, self.W_dec)

    def after_step(self, batch: Batch, step: Step) -> None:
        ops.normalise_rows_(self.W_dec)

    def export(self) -> Exported:
        weights = {k: v.detach().clone() for k, v in self.named_parameters()}
        return Exported("topk", {"k": self.cfg.k, "apply_b_dec_to_input": True}, weights)

    def _auxk(self, x: Tensor, x_hat: Tensor, step: Step) -> Tensor:
        """Error of predicting what is left over with the largest dead latents alone."""
        if not (step.n_dead and self.cfg.auxk_coef):
            return x.new_zeros(())
        most = max(self.d_in // 2, 1)
        # unlike nonzero(), this does not wait for the device
        dead = step.dead.int().topk(step.n_dead, sorted=False).indices
        fit = ops.topk_autoencoder(
            x,
            self.W_enc[:, dead],
            self.b_enc[dead],
            self.W_dec[dead],
            torch.zeros_like(self.b_dec),
            min(most, step.n_dead),
            origin=self.b_dec,
            rectify=self.cfg.auxk_relu,
        )
        scale = self.cfg.auxk_coef * min(step.n_dead / most, 1.0)
        return scale * ops.squared_error((x - x_hat).detach(), fit.x_hat)
