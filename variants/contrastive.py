"""Contrastive learning on feature acts: tokens of one context belong together, others do not.

InfoNCE on the cosine similarity of f, weighed with decoder norms, over its value at chance,
log(number of negatives + 1). Positives are two positions of the same context, or the pooled
features of two paraphrases. Negatives are up to 256 positions of *other* contexts, plus hard ones
by mixing: of the anchor a part of the active latents is kept, and at least `mix_fraction` of its
squared norm replaced by another context's features. With `axis="feature"` the patterns of latents
over two views of the tokens are compared instead of tokens.

The weight is coef * ramp(progress) * clip(EV, 0, 1), EV the running explained variance, detached.
The curriculum lets the largest offset grow and the replaced share shrink to `mix_fraction`.
Next of kin: T-SAE (arXiv:2511.05541), where the positive is the token before, see `t_sae`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench import ops
from bench.variant import Batch, Exported, Step, Variant

N_NEGATIVES = 256
"""Most negatives of an anchor, so that chance does not follow the batch."""
EASY_MIX = 0.9
"""Replaced share at the start of the curriculum; a negative that keeps little is an easy one."""
EV_ROWS = 512
"""Rows of the batch on which explained variance is measured."""
EV_MEMORY = 0.01
"""Fraction of training over which it is averaged."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """Settings of the contrastive term."""

    base: str = "relu"
    """The variant whose objective it is added to."""
    coef: float = 0.1
    """Weight of the term, in units of the input's variance; also 0.3."""
    temperature: float = 0.1
    """Cosines are divided by it; also 1."""
    axis: Literal["token", "feature"] = "token"
    """Compare tokens, or latents over two views of the tokens."""
    positives: Literal["offset", "paraphrase"] = "offset"
    """Two positions of a context, or two contexts that say the same thing."""
    n_anchors: int = 256
    """Most anchors per step."""
    max_offset: int = 0
    """Largest distance of two positions of a pair in the end; 0 = the context's length."""
    n_mixed: int = 2
    """Hard negatives of each anchor, by mixing; for tokens only."""
    mix_fraction: float = 0.5
    """Least share of an anchor's squared norm that is replaced; below 0.5 such a negative would be
    nearer than the positive."""
    curriculum: bool = True
    """Let offsets grow and negatives become harder over training."""
    adapt_total: bool = True
    """Multiply coef by the ramp and by the explained variance."""
    ramp: float = 0.1
    """Fraction of training over which the weight rises from 0."""
    head_dim: int = 0
    """Width of a learnt projection before the comparison; 0 = none."""

    def __post_init__(self):
        if self.coef < 0:
            raise ValueError(f"coef={self.coef} must be at least 0")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")
        if not 0.5 <= self.mix_fraction <= 1:
            raise ValueError(f"mix_fraction={self.mix_fraction} must be in [0.5, 1]")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp={self.ramp} must be in [0, 1]")
        if self.n_anchors < 1:
            raise ValueError(f"n_anchors={self.n_anchors} must be at least 1")
        for name in ("n_mixed", "max_offset", "head_dim"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.positives == "paraphrase" and self.axis == "feature":
            raise ValueError("positives='paraphrase' with axis='feature': there are no two views")
        if self.head_dim and self.axis == "feature":
            raise ValueError(f"head_dim={self.head_dim} with axis='feature': set head_dim=0")


class Pairs(NamedTuple):
    """Places [n] of anchors and positives among flattened contexts, and which of them count."""

    anchors: Tensor
    positives: Tensor
    is_valid: Tensor


class Contrastive(Variant):
    """Tokens of one context get similar features, those of others different ones."""

    Config = ContrastiveConfig
    needs_base = True
    needs_sequences = True
    input_variance: Tensor
    explained: Tensor

    def __init__(self, d_in: int, d_sae: int, cfg=None, *, generator: torch.Generator):
        super().__init__(d_in, d_sae, cfg, generator=generator)
        self.register_buffer("input_variance", torch.ones(()))
        self.register_buffer("explained", torch.zeros(()))
        if self.cfg.head_dim:
            # own numbers: the base's weights stay those that it has without a head
            draws = ops.generator(generator.initial_seed(), "head")
            head = torch.randn(d_sae, self.cfg.head_dim, generator=draws) / d_sae**0.5
            self.head = nn.Parameter(head)

    def start(self, x: Tensor) -> None:
        super().start(x)
        self.input_variance.copy_(ops.variance(x))

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        terms = super().losses(batch, step)
        if not self.cfg.coef:
            return terms
        weight = self.cfg.coef * self.input_variance
        if self.cfg.adapt_total:
            weight = weight * ops.ramp(step.progress, self.cfg.ramp)
            weight = weight * self._explained(batch.x, step)
        term = self._paraphrases if self.cfg.positives == "paraphrase" else self._positions
        return {**terms, "contrast": weight * term(batch, step)}

    def export(self) -> Exported:
        exported = super().export()
        state = {name: value for name, value in exported.state.items() if name != "head"}
        return exported._replace(state=state)

    def _positions(self, batch: Batch, step: Step) -> Tensor:
        """The term on pairs of positions of the same context."""
        assert batch.contexts is not None and batch.mask is not None  # needs_sequences
        pairs = self.draw_pairs(batch.mask, step)
        tokens = batch.contexts.flatten(0, 1)  # [b * T, d_in]
        a, p = self._features(tokens[pairs.anchors]), self._features(tokens[pairs.positives])
        if self.cfg.axis == "feature":
            return self.between_latents(a, p, pairs.is_valid, step)
        T = batch.mask.shape[1]
        others = self._draw_others(batch.mask, step)
        f_others = self._features(tokens[others])
        is_other = (others // T)[None] != (pairs.anchors // T)[:, None]
        is_other &= batch.mask.flatten()[others]
        is_other &= is_other.cumsum(1) <= N_NEGATIVES
        hard = self._mixed(a, f_others, is_other, step)
        return self.info_nce(a, p, f_others, is_other, hard, pairs.is_valid)

    def _paraphrases(self, batch: Batch, step: Step) -> Tensor:
        """The term on pooled features of contexts that say the same thing."""
        assert batch.contexts is not None and batch.mask is not None  # needs_sequences
        if batch.paraphrase_id is None:
            raise ValueError("positives='paraphrase': the data has none, set positives='offset'")
        weights = batch.mask[..., None].to(batch.contexts)
        pooled = (self._features(batch.contexts) * weights).sum(1) / weights.sum(1).clamp_min(1)
        ids = batch.paraphrase_id
        is_same = (ids[:, None] == ids) & (ids >= 0)[:, None]  # [b, b]
        is_other = ~is_same
        is_other.fill_diagonal_(False)
        is_other &= is_other.cumsum(1) <= N_NEGATIVES
        is_same.fill_diagonal_(False)
        partner, has_partner = is_same.int().argmax(1), is_same.any(1)
        hard = self._mixed(pooled, pooled, is_other, step)
        return self.info_nce(pooled, pooled[partner], pooled, is_other, hard, has_partner)

    def draw_pairs(self, mask: Tensor, step: Step) -> Pairs:
        """Random anchors, each with another position at a random offset. mask [b, T] bool."""
        b, T = mask.shape
        draws = step.generator("pairs")
        n = min(self.cfg.n_anchors, b * T)
        anchors = torch.randperm(b * T, generator=draws)[:n].to(mask.device)
        largest = min(self.cfg.max_offset or T - 1, T - 1)
        if self.cfg.curriculum:
            largest = max(1, round(step.progress * largest))
        offsets = torch.randint(1, largest + 1, (n,), generator=draws).to(mask.device)
        place = anchors % T
        # backwards where the context ends before
        moved = torch.where(place + offsets < T, place + offsets, place - offsets)
        positives = anchors - place + moved.clamp_min(0)
        flat = mask.flatten()
        return Pairs(anchors, positives, flat[anchors] & flat[positives] & (moved >= 0))

    def info_nce(
        self,
        a: Tensor,
        p: Tensor,
        others: Tensor,
        is_negative: Tensor,
        hard: Sequence[Tensor],
        is_valid: Tensor,
    ) -> Tensor:
        """-log softmax of the positive among its negatives, over log(negatives + 1); 1 is chance.

        a, p [n, d], others [m, d], is_negative [n, m] bool, hard [n, d] each, is_valid [n] bool
        -> [], the mean over valid anchors that have a negative.
        """
        a, p, others = (self._unit(v) for v in (a, p, others))
        cosines = [(a * p).sum(-1, keepdim=True)]
        cosines += [(a * self._unit(mixed)).sum(-1, keepdim=True) for mixed in hard]
        cosines.append((a @ others.T).masked_fill(~is_negative, -torch.inf))
        logits = torch.cat(cosines, 1) / self.cfg.temperature
        loss = logits.logsumexp(1) - logits[:, 0]
        n_negatives = is_negative.sum(1) + len(hard)
        counts = is_valid & is_negative.any(1)
        relative = loss / torch.log1p(n_negatives.clamp_min(1).to(loss))
        return torch.where(counts, relative, 0.0).sum() / counts.sum().clamp_min(1)

    def between_latents(self, a: Tensor, p: Tensor, is_valid: Tensor, step: Step) -> Tensor:
        """The term on patterns of random latents over two views [n, d_sae] of n tokens.

        A silent latent is at chance, so that silence does not pay; the dead come last.
        """
        draws = step.generator("patterns")
        order = torch.rand(self.d_sae, generator=draws).to(a.device) - step.dead.to(a)
        latents = order.topk(min(N_NEGATIVES + 1, self.d_sae)).indices
        if len(latents) == 1:
            return a.new_zeros(())
        first, second = (normalize(v[:, latents] * is_valid[:, None], dim=0) for v in (a, p))
        logits = first.T @ second / self.cfg.temperature  # [s, s]
        loss = logits.logsumexp(1) - logits.diagonal()
        return loss.mean() / math.log(len(latents))

    def mix(self, a: Tensor, other: Tensor, share: float, order: Tensor) -> Tensor:
        """Rows of `a` of which at least `share` of the squared norm is replaced by `other`'s.

        Latents are kept in a given order for as long as the kept share allows; what `other` has
        elsewhere is scaled to make up for the rest. a, other [n, d_sae], order [d_sae] int.
        """
        energy = a.pow(2)
        allowed = (1 - share) * energy.sum(1, keepdim=True)
        is_kept = torch.empty_like(a, dtype=torch.bool)
        is_kept[:, order] = energy[:, order].cumsum(1) <= allowed
        kept, new = a * is_kept, other * ~is_kept
        missing = (energy.sum(1) - kept.pow(2).sum(1)).clamp_min(0).sqrt()
        length = torch.linalg.vector_norm(new, dim=1).clamp_min(ops.TINY)
        return kept + new * (missing / length)[:, None]

    @torch.no_grad()
    def _mixed(self, a: Tensor, others: Tensor, is_other: Tensor, step: Step) -> list[Tensor]:
        """Hard negatives of each anchor, `n_mixed` times [n, d_sae], without a gradient."""
        share, draws, hard = self.cfg.mix_fraction, step.generator("mixing"), []
        if self.cfg.curriculum:
            share += (1 - step.progress) * max(EASY_MIX - share, 0.0)
        for _ in range(self.cfg.n_mixed):
            order = torch.randperm(self.d_sae, generator=draws).to(a.device)
            luck = torch.rand(len(others), generator=draws).to(a.device)
            other = others[(luck * is_other).argmax(1)]
            hard.append(self.mix(a, other, share, order))
        return hard

    def _draw_others(self, mask: Tensor, step: Step) -> Tensor:
        """Random positions, so many that in two contexts 256 are of the other one. -> [m]."""
        n = min(2 * N_NEGATIVES, mask.numel())
        draws = step.generator("negatives")
        return torch.randperm(mask.numel(), generator=draws)[:n].to(mask.device)

    def _features(self, x: Tensor) -> Tensor:
        return self.encode(x) * torch.linalg.vector_norm(self.W_dec, dim=-1)

    def _unit(self, f: Tensor) -> Tensor:
        return normalize(f @ self.head if self.cfg.head_dim else f, dim=-1)

    @torch.no_grad()
    def _explained(self, x: Tensor, step: Step) -> Tensor:
        """Running explained variance, in [0, 1]."""
        x = x[:EV_ROWS]
        now = 1 - ops.unexplained_variance(x, self(x))
        first = step.number == 0
        mean = ops.running(self.explained, now, step.length, EV_MEMORY, is_first=first)
        self.explained.copy_(mean)
        return mean.clamp(0, 1)
