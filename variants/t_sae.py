"""T-SAE: the first latents hold what stays the same from one token to the next.

Bhalla et al. 2025, arXiv:2511.05541, and their code: a BatchTopK SAE with two nested groups. The
first fifth of the latents must reconstruct alone, with 0.2 of the weight, and is contrasted: a
token's high-level features belong to those of the token before, not to those of other tokens of the
batch, symmetrically. Their code compares dot products at temperature 1, their text cosines; both
are here. Tokens are reconstructed in the shuffled view, pairs are drawn from the contexts.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Stream, Variant

THRESHOLD_MEMORY = 0.01
"""Fraction of training over which the threshold is averaged until the end."""


@dataclass(frozen=True)
class TSAEConfig:
    """Settings of the temporal SAE."""

    k: float = 32.0
    """Active latents per token, mean over the batch; the authors' 20."""
    high_share: float = 0.2
    """Share of the latents that is high-level, and its weight in the reconstruction."""
    contrast: float = 0.1
    """Weight of the contrastive term in nats; the authors' temp_alpha."""
    contrast_by: Literal["dot", "cosine"] = "dot"
    """How high-level features are compared."""
    contrast_temperature: float = 1.0
    """Similarities are divided by it."""
    n_pairs: int = 256
    """Most pairs of neighbouring tokens per step."""
    auxk_coef: float = 1 / 32
    """Weight of the auxiliary error of dead latents, in units of the squared error."""

    def __post_init__(self):
        for name in ("k", "contrast_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if not 0 < self.high_share < 1:
            raise ValueError(f"high_share={self.high_share} must be above 0 and below 1")
        for name in ("contrast", "auxk_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.n_pairs < 2:
            raise ValueError(f"n_pairs={self.n_pairs} must be at least 2")


class TSAE(Variant):
    """High-level latents persist from token to token, BatchTopK (Bhalla et al. 2025)."""

    Config = TSAEConfig
    knob = Knob("k", raises_l0=True, native=True)
    needs_sequences = True
    threshold: Tensor

    def __init__(
        self, d_in: int, d_sae: int, cfg: TSAEConfig | None = None, *, generator: torch.Generator
    ):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        if self.cfg.k > d_sae:
            raise ValueError(f"k={self.cfg.k} exceeds d_sae={d_sae}")
        self.n_high = max(round(self.cfg.high_share * d_sae), 1)
        """The first latents, which are the high-level ones."""
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
        high = f[:, : self.n_high] @ self.W_dec[: self.n_high] + self.b_dec
        x_hat = high + f[:, self.n_high :] @ self.W_dec[self.n_high :]
        share = self.cfg.high_share
        terms = {
            # their mean over the two groups, hence the halves
            "reconstruction": (1 - share) / 2 * ops.squared_error(batch.x, x_hat),
            "high_level": share / 2 * ops.squared_error(batch.x, high),
            "auxk": self._auxk(batch.x, x_hat, step),
        }
        if self.cfg.contrast:
            terms["contrast"] = self.cfg.contrast * self._contrast(batch, step)
        return terms

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

    def contrast(self, now: Tensor, before: Tensor, is_valid: Tensor) -> Tensor:
        """Cross entropy of finding each token's neighbour, both ways. [n, d], [n, d], [n] -> []."""
        if self.cfg.contrast_by == "cosine":
            now, before = normalize(now, dim=-1), normalize(before, dim=-1)
        logits = now @ before.T / self.cfg.contrast_temperature
        nowhere = ~is_valid[:, None] | ~is_valid
        logits = logits.masked_fill(nowhere, -torch.inf)
        # a row without any entry would give nan: its own entry is put back, at a loss of 0
        logits = torch.where(torch.diag(~is_valid), 0.0, logits)
        places = torch.arange(len(logits), device=logits.device)
        both = (cross_entropy(m, places, reduction="sum") for m in (logits, logits.T))
        return sum(both, logits.new_zeros(())) / (2 * is_valid.sum().clamp_min(1))

    def _contrast(self, batch: Batch, step: Step) -> Tensor:
        """The contrast on random pairs of neighbouring tokens."""
        assert batch.contexts is not None and batch.mask is not None  # needs_sequences
        b, T, _ = batch.contexts.shape
        draws = step.generator("pairs")
        places = torch.randperm(b * (T - 1), generator=draws)[: self.cfg.n_pairs]
        places = (places // (T - 1) * T + places % (T - 1) + 1).to(batch.x.device)  # never first
        tokens, mask = batch.contexts.flatten(0, 1), batch.mask.flatten()
        is_valid = mask[places] & mask[places - 1]
        # special tokens must not take the place of others among the k * n largest
        gone = ~is_valid[:, None]
        now, before = (
            ops.keep_batch_top_k(self._pre(tokens[p]).masked_fill(gone, -1.0), self.cfg.k)
            for p in (places, places - 1)
        )
        return self.contrast(now[:, : self.n_high], before[:, : self.n_high], is_valid)

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
            x, x - x_hat, weights, step.dead, step.n_dead, rectify=True
        )
