"""The two engines of unlearning: what they have in common, and the choice between them."""

from typing import Any, NamedTuple, Protocol

from bench.checkpoint import Measured
from bench.context import EvalContext
from bench.suite import SaeHandle
from bench.unlearning.config import UnlearningConfig
from bench.unlearning.exam import Grids
from bench.unlearning.grid import Correct, Ids, Setting


class Tried(NamedTuple):
    """Every intervention with one SAE."""

    settings: list[Setting]
    """sae_bench's own grid: latents clamped to absolute values."""
    grids: Grids
    """Ours, in units of the latents' strength."""
    raw: dict[str, Any]
    """The JSON that sae_bench's own output class accepts."""
    work: dict[str, int]
    """What was computed, see bench.counters."""


class UnlearningEngine(Protocol):
    """Answers questions under interventions; `prepare` comes first and may be called again."""

    ids: Ids
    """The questions that the model answers right under all orders, known after `prepare`."""

    def prepare(self) -> None:
        """Do what all SAEs share. Raises TooFewQuestions if the model knows too little."""
        ...

    def tried(self, handle: SaeHandle) -> Tried:
        """Every setting with this SAE."""
        ...

    def mean_difference(self, handle: SaeHandle) -> list[Setting]:
        """Our grid for the difference of means at this SAE's layer, the same for all SAEs there."""
        ...

    def chat(self, handle: SaeHandle) -> Measured:
        """How the SAE reconstructs the instruct model that reads questions."""
        ...

    def without_words(self, words: frozenset[str]) -> Correct:
        """The answers when these words are left out of questions and choices."""
        ...


def make_engine(ctx: EvalContext, cfg: UnlearningConfig, saes: list[SaeHandle]) -> UnlearningEngine:
    """The engine that `ctx` asks for, for these SAEs."""
    from bench.unlearning.fast import Fast
    from bench.unlearning.reference import Reference

    return Fast(ctx, cfg, saes) if ctx.engine == "fast" else Reference(ctx, cfg, saes)
