"""The questions and everything that they need from the model, shared by all SAEs and both engines.

Here our own grids are tried: latents clamped in units of their own strength, random latents that
are as rare on benign text, and the difference between the means of the two corpora.
"""

import logging
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.context import EvalContext
from bench.suite import SaeHandle
from bench.unlearning.asking import Asker, by_question
from bench.unlearning.clamping import Clamping
from bench.unlearning.config import UnlearningConfig
from bench.unlearning.direction import Activations, MeanDifference
from bench.unlearning.grid import Correct, Ids, Setting
from bench.unlearning.latents import Rates, census, layer_of
from bench.unlearning.matched import matched
from bench.unlearning.questions import Question, check_enough

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)
ABLATE = 0.0
"""Multiplier that takes a direction out, down to its benign mean, and steers no further."""


class Key(NamedTuple):
    """A place in a grid. As in sae_bench's file names, `n` is how many latents there were."""

    multiplier: float
    n: int
    retain_threshold: float


class Grids(NamedTuple):
    """What was tried with one SAE in units of its latents' strength."""

    own: list[Setting]
    """The latents that sae_bench would choose."""
    random: list[Setting]
    """As many others of the same retain frequency."""


class Exam:
    """The questions `ids` of `asked`, ready for these SAEs.

    Only what the model answers right from its stored activations is asked in our grids (in single
    precision, everything), so its own accuracy is 1. Raises TooFewQuestions if little is left.
    """

    def __init__(
        self,
        ctx: EvalContext,
        cfg: UnlearningConfig,
        asker: Asker,
        asked: dict[str, list[Question]],
        ids: Ids,
        saes: Sequence[SaeHandle],
    ):
        self.cfg, self.asker, self.ids, self.seed = cfg, asker, ids, ctx.seed
        chosen = [(name, asked[name][i]) for name in ids for i in ids[name]]
        self.right = [question.answer for _, question in chosen]
        tokens = asker.tokens([question.prompt(name) for name, question in chosen])
        layers = sorted({layer_of(handle.sae) for handle in saes})
        self.x: dict[int, Sequence[Tensor]] = {
            layer: asker.residuals(tokens, layer + 1) for layer in layers
        }
        found = census(ctx, cfg, asker.model, [handle.sae for handle in saes])
        self.rates = dict(zip([handle.label for handle in saes], found.rates, strict=True))
        self._known = {layer: self._answered_right(layer) for layer in layers}
        self._mean_difference = {
            layer: self._steered(layer, activations)
            for layer, activations in found.activations.items()
        }

    def grid(self, rates: Rates, multipliers: Sequence[float]) -> dict[Key, tuple[int, ...]]:
        """Place in the grid -> latents, gentle multipliers first."""
        grid = {}
        for threshold in self.cfg.retain_thresholds:
            top = rates.top(threshold)
            for n, multiplier in product(self.cfg.n_features_list, multipliers):
                grid[Key(multiplier, len(top[:n]), threshold)] = tuple(top[:n])
        return dict(sorted(grid.items()))

    def clamping(self, sae: Any, rates: Rates) -> Clamping:
        """The SAE at work on the prompts, ready for every grid."""
        own = self.grid(rates, [ABLATE]).values()
        chosen = sorted({i for latents in (*own, *self._random(rates).values()) for i in latents})
        layer = layer_of(sae)
        return Clamping(self.asker, sae, self.x[layer], chosen, block=layer + 1, high=rates.high)

    def grids(self, clamping: Clamping, rates: Rates) -> Grids:
        """The SAE's own latents and random ones; where they do the same, it is done once."""
        own = self.grid(rates, self.cfg.relative_multipliers)
        random = self._random(rates)
        layer = layer_of(clamping.sae)
        settings = self._tried(layer, clamping, [*own.items(), *random.items()])
        return Grids(settings[: len(own)], settings[len(own) :])

    def mean_difference(self, sae: Any) -> list[Setting]:
        """The same grid for the difference of means at the SAE's layer."""
        return self._mean_difference[layer_of(sae)]

    def _random(self, rates: Rates) -> dict[Key, tuple[int, ...]]:
        """The grid of random latents; there may be fewer of them."""
        others: dict[float, list[int]] = {}
        for threshold in self.cfg.retain_thresholds:
            most = rates.top(threshold)[: max(self.cfg.n_features_list)]
            others[threshold] = matched(most, rates.forget, rates.retain, self.seed)
        return {
            key: tuple(others[key.retain_threshold][: key.n])
            for key in self.grid(rates, self.cfg.relative_multipliers)
        }

    def _steered(self, layer: int, activations: Activations) -> list[Setting]:
        import torch

        thresholds = self.cfg.retain_thresholds
        direction = MeanDifference(activations, thresholds)
        clamping = Clamping(
            self.asker,
            direction,
            self.x[layer],
            list(range(len(thresholds))),
            block=layer + 1,
            high=torch.ones_like(direction.high),
        )
        multipliers = (ABLATE, *self.cfg.relative_multipliers)
        grid = {
            Key(multiplier, 1, threshold): (i,)
            for multiplier in multipliers
            for i, threshold in enumerate(thresholds)
        }
        return self._tried(layer, clamping, list(grid.items()))

    def _tried(
        self, layer: int, clamping: Clamping, grid: list[tuple[Key, tuple[int, ...]]]
    ) -> list[Setting]:
        """The answers under each setting, in units of the latents' strength."""
        wanted = [clamping.interventions(latents, key.multiplier) for key, latents in grid]
        answers = clamping.steered(sorted({w for each in wanted for w in each if w.latents}))
        known, settings = self._known[layer], []
        for (key, latents), each in zip(grid, wanted, strict=True):
            right = [answers.get(w, a) == a for w, a in zip(each, self.right, strict=True)]
            correct = {
                name: {i: v for i, v in found.items() if known[name][i]}
                for name, found in by_question(self.ids, right).items()
            }
            settings.append(
                Setting(
                    key.multiplier,
                    len(latents),
                    key.retain_threshold,
                    correct,
                    latents,
                    sum(bool(w.latents) for w in each),
                )
            )
        return settings

    def _answered_right(self, layer: int) -> Correct:
        """Whether each question is answered right when nothing is changed."""
        import torch

        x = self.x[layer]
        answers = self.asker.answers(
            list(map(len, x)), lambda batch: torch.stack([x[i] for i in batch]), layer + 1
        )
        right = [a == b for a, b in zip(answers, self.right, strict=True)]
        known = by_question(self.ids, right)
        if not all(right):
            LOG.warning("only whole passes answer %d questions right", right.count(False))
            left = {name: [i for i, v in found.items() if v] for name, found in known.items()}
            check_enough(left, self.cfg.min_questions)
        return known
