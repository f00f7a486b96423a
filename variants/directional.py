"""Latents whose directions are alike are kept from firing together.

For each latent the k most similar others form pairs (i, j), the mask M. The penalty is the mean
over M of relu(C_ij) * A_ij: C the cosines of decoder rows, A the cosine of activation patterns,
f^T f / n over the product of root mean squares, with f = encode(x) * ||W_dec_i||. The mean squares
stay in the graph, so that shrinking f gains nothing. A step looks at the pairs among `n_sample`
latents, scaled so that the estimate has no bias; all pairs would cost four times the SAE at 16k.

With `similarity="decoder"` the matrix is symmetric: a mask by rows and one by rows or columns hold
the same unordered pairs. With `"enc_dec"`, <w_enc_i, D_j> / ||w_enc_i||, they differ. Pairs with a
dead latent are in neither.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import ops
from bench.variant import Batch, Step, Variant

BLOCK = 1_024
"""Latents at a time when the mask is refreshed."""
FLOOR = 0.01
"""Of the mean: the least root mean square by which activations are divided."""


@dataclass(frozen=True)
class DirectionalConfig:
    """Settings of the suppression of co-activation."""

    base: str = "relu"
    """The variant whose objective it is added to."""
    coef: float = 0.1
    """Weight of the penalty, in units of the input's variance; the authors also take 0.05, 0.2."""
    k_fraction: float = 0.1
    """Share of the other latents that count as similar; the authors also take 0.05 and 0.2."""
    similarity: Literal["decoder", "enc_dec"] = "decoder"
    """Between decoder rows, or of encoder columns with decoder rows."""
    bidirectional: bool = True
    """Take a pair if either latent is among the k most similar of the other."""
    direction: Literal["signed", "absolute", "none"] = "signed"
    """Weigh pairs by relu(C), |C| or 1."""
    weighting: Literal["magnitude", "binary"] = "magnitude"
    """Weigh pairs by how strongly or by how often they fire together, without a gradient in f."""
    normalise: bool = True
    """Divide by the root mean squares; the authors' second run does not."""
    n_sample: int = 2_048
    """Latents per step whose pairs are looked at."""
    n_rows: int = 1_024
    """Tokens per step on which activations are measured."""
    mask_every: float = 0.01
    """Fraction of training between two refreshes of the mask."""
    reset_every: float = 0.125
    """Fraction of training between two resets of dead latents; 0 = none but the base's own."""
    reset_until: float = 0.5
    """Fraction of training after which none is reset."""
    reset_warmup: float = 0.1
    """Fraction of training before which none is reset, nor by the base; the authors have 1,000
    steps, and 500 and 2,000."""

    def __post_init__(self):
        if self.weighting == "binary" and self.direction == "none":
            raise ValueError("weighting='binary' with direction='none': is a constant, change one")
        if self.coef < 0:
            raise ValueError(f"coef={self.coef} must be at least 0")
        if not 0 < self.k_fraction <= 1:
            raise ValueError(f"k_fraction={self.k_fraction} must be above 0 and at most 1")
        if self.n_sample < 2 or self.n_rows < 1:
            raise ValueError(
                f"n_sample={self.n_sample} must be at least 2 and n_rows={self.n_rows} at least 1"
            )
        if not 0 < self.mask_every <= 1:
            raise ValueError(f"mask_every={self.mask_every} must be above 0 and at most 1")
        for name in ("reset_every", "reset_until", "reset_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")


class Directional(Variant):
    """Suppresses co-activation of latents with similar directions."""

    Config = DirectionalConfig
    needs_base = True
    input_variance: Tensor
    by_row: Tensor
    by_column: Tensor
    n_pairs: Tensor

    def __init__(self, d_in: int, d_sae: int, cfg=None, *, generator: torch.Generator):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        k = max(round(self.cfg.k_fraction * (d_sae - 1)), 1)
        if k >= d_sae:
            raise ValueError(f"k_fraction={self.cfg.k_fraction}: no pairs with d_sae={d_sae}")
        self.register_buffer("input_variance", torch.ones(()))
        # the k most similar of each latent as row and as column; -1 where there are fewer
        table = torch.full((d_sae, k), -1, dtype=torch.int32)
        self.register_buffer("by_row", table)
        self.register_buffer("by_column", table.clone() if self._has_columns else table[:0])
        self.register_buffer("n_pairs", torch.zeros(()))

    def start(self, x: Tensor) -> None:
        super().start(x)
        self.input_variance.copy_(ops.variance(x))
        if self.cfg.coef:
            self.refresh_mask(torch.zeros(self.d_sae, dtype=torch.bool, device=x.device))

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        terms = super().losses(batch, step)
        if not self.cfg.coef:
            return terms
        latents = ops.sampled(self.d_sae, self.cfg.n_sample, step)
        penalty = self.co_activation(batch.x[: self.cfg.n_rows], latents)
        return {**terms, "co_activation": self.cfg.coef * self.input_variance * penalty}

    def after_step(self, batch: Batch, step: Step) -> None:
        if step.progress < self.cfg.reset_warmup:
            super().after_step(batch, step._replace(dead=torch.zeros_like(step.dead), n_dead=0))
        else:
            super().after_step(batch, step)
            every = self.cfg.reset_every
            if every and step.ends_part(every) and step.progress < self.cfg.reset_until:
                self._reset(batch.x, step)
        if self.cfg.coef and step.ends_part(self.cfg.mask_every):
            self.refresh_mask(step.dead)

    def co_activation(self, x: Tensor, latents: Tensor) -> Tensor:
        """The penalty, estimated without bias from the pairs among some latents. -> []."""
        cfg, n = self.cfg, len(latents)
        rows = self.W_dec[latents]
        f = self.encode(x)[:, latents] * torch.linalg.vector_norm(rows, dim=-1)
        if cfg.weighting == "binary":
            f = (f > 0).to(f)
        together = f.T @ f / len(x)  # [n, n]
        if cfg.normalise:
            rms = together.diagonal().clamp_min(ops.TINY**2).sqrt()
            rms = rms.maximum(FLOOR * rms.detach().mean())
            together = together / (rms[:, None] * rms)
        if cfg.direction != "none":
            D = normalize(rows, dim=-1)
            cosines = D @ D.T
            together = together * (cosines.abs() if cfg.direction == "absolute" else cosines.relu())
        total = torch.where(self.mask(latents), together, 0.0).sum()
        # of all ordered pairs, this share is among the sample
        share = n * (n - 1) / (self.d_sae * (self.d_sae - 1))
        return total / share / self.n_pairs.clamp_min(1)

    def mask(self, latents: Tensor) -> Tensor:
        """Which pairs of some latents are in M. [n] -> [n, n] bool."""
        found = self._among(self.by_row, latents)
        if not self.cfg.bidirectional:
            return found
        # a symmetric matrix has the same tables by row and by column
        columns = self.by_column if self._has_columns else self.by_row
        return found | self._among(columns, latents).T

    @torch.no_grad()
    def refresh_mask(self, dead: Tensor) -> None:
        """Find the most similar pairs anew, a block of rows at a time. dead [d_sae] bool."""
        D = normalize(self.W_dec, dim=-1)
        left = D if self.cfg.similarity == "decoder" else normalize(self.W_enc.T, dim=-1)
        self.by_row.copy_(self._most_similar(left, D, dead))
        if self._has_columns:
            self.by_column.copy_(self._most_similar(D, left, dead))
        everyone = torch.arange(self.d_sae, device=D.device)
        if not self.cfg.bidirectional:
            self.n_pairs.copy_((self.by_row >= 0).sum())
            return
        columns = self.by_column if self._has_columns else self.by_row
        n_mutual = sum(self._mutual(columns, rows) for rows in everyone.split(BLOCK))
        self.n_pairs.copy_((self.by_row >= 0).sum() + (columns >= 0).sum() - n_mutual)

    @property
    def _has_columns(self) -> bool:
        return self.cfg.bidirectional and self.cfg.similarity == "enc_dec"

    def _most_similar(self, left: Tensor, right: Tensor, dead: Tensor) -> Tensor:
        """Per row of `left` the k rows of `right` that are most similar. [d_sae, k] int32."""
        found = torch.empty_like(self.by_row)
        for rows in torch.arange(self.d_sae, device=dead.device).split(BLOCK):
            similarity = left[rows] @ right.T  # [block, d_sae]
            if self.cfg.direction == "absolute":
                similarity = similarity.abs()
            similarity[:, dead] = -torch.inf
            similarity[dead[rows]] = -torch.inf
            similarity.scatter_(1, rows[:, None], -torch.inf)
            top = similarity.topk(self.by_row.shape[1], sorted=False)
            found[rows] = top.indices.masked_fill(top.values.isinf(), -1).int()
        return found

    def _among(self, table: Tensor, latents: Tensor) -> Tensor:
        """Which of some latents are in the rows of the table of others. [n] -> [n, n] bool."""
        place = torch.full((self.d_sae + 1,), len(latents), device=latents.device)
        place[latents] = torch.arange(len(latents), device=latents.device)
        places = place[table[latents].long()]  # -1 is the last place, which stands for none
        found = torch.zeros(len(latents), len(latents) + 1, dtype=torch.bool, device=places.device)
        return found.scatter_(1, places, True)[:, :-1]

    def _mutual(self, columns: Tensor, rows: Tensor) -> Tensor:
        """Entries (i, j) with i in `rows` that both tables hold."""
        shape = (len(rows), self.d_sae + 1)
        by_row = torch.zeros(shape, dtype=torch.bool, device=rows.device)
        by_row.scatter_(1, self.by_row[rows].long() % shape[1], True)
        # (i, j) is in the table by columns where i is in the row of j
        inside = (columns >= rows[0]) & (columns <= rows[-1])
        j, place = inside.nonzero(as_tuple=True)
        return by_row[columns[j, place].long() - rows[0], j].sum()

    def _reset(self, x: Tensor, step: Step) -> None:
        with torch.no_grad():
            errors = (x - self(x)).pow(2).sum(-1)
        weights = (self.W_enc, self.b_enc, self.W_dec)
        draws = step.generator("reset")
        reset = ops.reset_latents(*weights, x - self.b_dec, step.dead, draws, errors=errors)
        step.revive(reset)
