"""OrtSAE: in random chunks of latents, each row is pushed away from the nearest other one.

arXiv:2509.22033: gamma times the mean over latents of the squared largest cosine with another
decoder row of the same chunk, chunks drawn anew in every step, so that the cost grows linearly
with the dictionary; on BatchTopK. As for all added terms here gamma counts in units of the input's
variance. The defaults of `coef` and `chunk_size` were not checked against the paper's own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import ops
from bench.variant import Batch, Step, Variant


@dataclass(frozen=True)
class OrthoSAEConfig:
    """Settings of the chunk-wise orthogonality penalty."""

    base: str = "batch_topk"
    """The variant whose objective it is added to."""
    coef: float = 0.25
    """Weight of the penalty, in units of the input's variance."""
    chunk_size: int = 8_192
    """Latents per chunk; one chunk where there are fewer latents."""

    def __post_init__(self):
        if self.coef < 0:
            raise ValueError(f"coef={self.coef} must be at least 0")
        if self.chunk_size < 2:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 2")


class OrthoSAE(Variant):
    """Squared largest cosine within random chunks of decoder rows (OrtSAE, 2025)."""

    Config = OrthoSAEConfig
    needs_base = True
    input_variance: Tensor

    def __init__(self, d_in: int, d_sae: int, cfg=None, *, generator: torch.Generator):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        self.register_buffer("input_variance", torch.ones(()))

    def start(self, x: Tensor) -> None:
        super().start(x)
        self.input_variance.copy_(ops.variance(x))

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        terms = super().losses(batch, step)
        if not self.cfg.coef:
            return terms
        order = torch.randperm(self.d_sae, generator=step.generator("chunks"))
        penalty = self.orthogonality(order.to(self.W_dec.device))
        return {**terms, "orthogonality": self.cfg.coef * self.input_variance * penalty}

    def orthogonality(self, order: Tensor) -> Tensor:
        """Mean squared largest cosine within chunks of latents taken in this order. -> []."""
        D, found = normalize(self.W_dec, dim=-1), []
        for chunk in order.tensor_split(-(-self.d_sae // self.cfg.chunk_size)):
            rows = D[chunk]
            if len(rows) < 2:
                continue
            nearest = torch.cat(
                [ops.nearest_rows(rows.detach(), some) for some in _blocks(len(rows), rows.device)]
            )
            # only the nearest row has a gradient, so only it is needed with one
            found.append((rows * rows[nearest]).sum(-1).pow(2))
        return torch.cat(found).mean() if found else D.new_zeros(())


def _blocks(n: int, device: torch.device) -> tuple[Tensor, ...]:
    """Places 0 to n - 1, so many at a time that no [n, n] is held."""
    return torch.arange(n, device=device).split(1_024)
