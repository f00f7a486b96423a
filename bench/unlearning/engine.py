"""The two engines of unlearning: what they have in common, and the choice between them."""

from typing import Any, NamedTuple, Protocol

from bench.checkpoint import Measured
from bench.context import EvalContext
from bench.suite import SaeHandle
from bench.unlearning.config import UnlearningConfig
from bench.unlearning.grid import Correct, Setting


class Tried(NamedTuple):
    """Every intervention with one SAE."""

    settings: list[Setting]
    raw: dict[str, Any]
    """The JSON that sae_bench's own output class accepts."""
    work: dict[str, int]
    """What was computed, see bench.counters."""


class UnlearningEngine(Protocol):
    """Answers questions under interventions; `prepare` comes first and may be called again."""

    def prepare(self) -> None:
        """Do what all SAEs share. Raises RuntimeError if the model knows too little to be asked."""
        ...

    def tried(self, handle: SaeHandle) -> Tried:
        """Every setting with this SAE."""
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

    return Fast(ctx, cfg, saes) if ctx.engine == "fast" else Reference(ctx, cfg)
