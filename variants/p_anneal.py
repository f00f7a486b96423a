"""p-annealing: the exponent of the sparsity norm falls from 1 towards 0 while the SAE trains.

Karvonen et al. 2024, arXiv:2408.00113, section 3, and dictionary_learning's PAnnealTrainer: squared
error plus coef * sum_i f_i^p with unit decoder rows. At every fall of p the weight is scaled so
that the penalty keeps its size. A p_end of 0 is refused: the library's L_p norm takes the p-th root
and divides by it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Variant

SMALLEST = 1e-6
"""Activations below are not penalised: the slope of f^p has no bound at 0, and a single one would
otherwise take up the whole of the clipped gradient."""


@dataclass(frozen=True)
class PAnnealConfig:
    """Settings of p-annealing."""

    l1: float = 0.1
    """Weight of the penalty while p = p_start, in units of the squared error."""
    p_start: float = 1.0
    """Exponent before annealing."""
    p_end: float = 0.2
    """Exponent at the end; the paper's 0.2."""
    anneal_from: float = 0.04
    """Fraction of training after which p falls; SAEBench's 10,000 of 244,140 steps."""
    n_updates: int = 10
    """Values of p in all, equally far apart."""
    queue: int = 10
    """Steps over which the penalty is averaged when it is scaled."""
    root: bool = False
    """Take the p-th root of the sum, the library's `Lp` instead of `Lp^p`."""

    def __post_init__(self):
        if self.l1 < 0:
            raise ValueError(f"l1={self.l1} must be at least 0")
        if not 0 < self.p_end <= self.p_start:
            raise ValueError(f"p_end={self.p_end} must be above 0 and at most {self.p_start}")
        if not 0 <= self.anneal_from <= 1:
            raise ValueError(f"anneal_from={self.anneal_from} must be in [0, 1]")
        for name in ("n_updates", "queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class PAnneal(Variant):
    """ReLU SAE whose sparsity norm L_p goes from p = 1 to p = 0.2 (Karvonen et al. 2024)."""

    Config = PAnnealConfig
    knob = Knob("l1", raises_l0=False, native=False)
    coef: Tensor
    recent: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        cfg: PAnnealConfig | None = None,
        *,
        generator: torch.Generator,
    ):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        self.register_buffer("coef", torch.tensor(float(self.cfg.l1)))
        self.register_buffer("recent", torch.full((2, self.cfg.queue), torch.nan))
        self.exponents = torch.linspace(
            self.cfg.p_start, self.cfg.p_end, self.cfg.n_updates, dtype=torch.float64
        ).tolist()

    def start(self, x: Tensor) -> None:
        """The bias starts at the geometric median; the library starts it at 0."""
        with torch.no_grad():
            self.b_dec.copy_(ops.geometric_median(x))

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        f = self.encode(batch.x)
        n_done = self._n_done(step.number, step)
        penalty = self._norm(f, self._p(n_done))
        if n_done:
            self._remember(penalty.detach(), self._norm(f.detach(), self._p(n_done + 1)), step)
        return {
            "reconstruction": ops.squared_error(batch.x, self.decode(f)),
            "sparsity": self.coef * step.sparsity_warmup * penalty,
        }

    def after_backward(self, step: Step) -> None:
        if self.W_dec.grad is not None:
            ops.remove_radial_(self.W_dec.grad, self.W_dec)

    def after_step(self, batch: Batch, step: Step) -> None:
        ops.normalise_rows_(self.W_dec)
        n_done = self._n_done(step.number, step)
        if n_done and self._n_done(step.number + 1, step) > n_done:
            now, later = self.recent.nanmean(1)
            # a new buffer: the old one is part of the graph that was just used
            self.coef = torch.where(later > 0, self.coef * now / later, self.coef)

    def export(self) -> Exported:
        weights = {k: v.detach().clone() for k, v in self.named_parameters()}
        return Exported("standard", {"apply_b_dec_to_input": True}, weights)

    def _n_done(self, index: int, step: Step) -> int:
        """Updates of p before step `index`: at equally spaced steps, the first at `anneal_from`."""
        n_steps = round(1 / step.length)
        first = int(self.cfg.anneal_from * n_steps)
        at = torch.linspace(first, n_steps, self.cfg.n_updates, dtype=torch.int)
        return int((at < index).sum())

    def _p(self, n_done: int) -> float:
        return self.exponents[min(max(n_done - 1, 0), self.cfg.n_updates - 1)]

    def _norm(self, f: Tensor, p: float) -> Tensor:
        """Sum of f^p over latents, mean over the batch. f [n, d_sae] -> []."""
        total = torch.where(f > SMALLEST, f, 0.0).pow(p).sum(-1)
        return (total.pow(1 / p) if self.cfg.root else total).mean()

    @torch.no_grad()
    def _remember(self, now: Tensor, later: Tensor, step: Step) -> None:
        """Keep the penalty at this exponent and at the next one for the coming update."""
        self.recent[:, step.number % self.cfg.queue] = torch.stack([now, later])
