"""Unlearning: does clamping the latents of a hazard remove its knowledge and nothing else?

What each metric means, and how to read it: docs/unlearning.md.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.context import EvalContext, l0
from bench.limits import above, at_least, at_most, distinct
from bench.suite import Answer, DataNeed, Failed, SaeHandle, Scored, Skipped, Suite
from bench.unlearning import scores
from bench.unlearning.config import CORPUS
from bench.unlearning.deletion import word_deletion
from bench.unlearning.engine import UnlearningEngine, make_engine
from bench.unlearning.grid import HAZARD, side_sets
from bench.unlearning.needs import needs
from bench.unlearning.questions import TooFewQuestions


class UnlearningSuite(Suite):
    """Hazard answers lost when its latents are clamped, cross-fitted (sae_bench unlearning)."""

    @dataclass(frozen=True)
    class Config:
        """sae_bench's own names and defaults, and ours where it has none."""

        dataset_names: tuple[str, ...] = (
            "wmdp-bio",
            "high_school_us_history",
            "college_computer_science",
            "high_school_geography",
            "human_aging",
        )
        """The hazard and the benign question sets."""
        retain_thresholds: tuple[float, ...] = (0.001, 0.01)
        """Latents that fire more often than this on benign text are left alone."""
        n_features_list: tuple[int, ...] = (10, 20)
        """Latents clamped at a time."""
        multipliers: tuple[int, ...] = (25, 50, 100, 200)
        """Of sae_bench's own grid: clamped to minus this, an activation."""
        relative_multipliers: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
        """Of our grids: clamped to minus this, in units of the latent's 99th percentile."""
        dataset_size: int = 1024
        """Sequences per corpus when latents are chosen."""
        seq_len: int = 1024
        """Tokens per sequence."""
        llm_batch_size: int = 4
        """Sequences per call; twice as many questions."""
        min_questions: int = 20
        """Of the hazard, and of all else together, that the model must answer reliably."""
        forget: str = "bio-forget-corpus"
        """What is to be forgotten: a data set, or a .jsonl or .parquet file; column `text`."""
        retain: str = "wikitext"
        """What is to be kept, likewise."""

        def __post_init__(self) -> None:
            at_least(self, 1, "dataset_size", "llm_batch_size", "min_questions", "n_features_list")
            at_least(self, 2, "seq_len")
            at_least(self, 0, "multipliers", "relative_multipliers")  # 0 takes the latent away
            above(self, 0, "retain_thresholds")
            at_most(self, 1, "retain_thresholds")
            distinct(self, "retain_thresholds", "n_features_list")
            distinct(self, "multipliers", "relative_multipliers", "dataset_names")
            if HAZARD not in self.dataset_names or not side_sets(self.dataset_names):
                raise ValueError(
                    f"dataset_names={list(self.dataset_names)}: must have {HAZARD!r}, and at least "
                    "one set of what is to be kept"
                )

    metrics = scores.declared()
    side = "instruct"
    hooks = ("hook_resid_post",)
    engines = ("reference", "fast")
    contexts = ("seq_len",)
    batch_sizes = ("llm_batch_size",)
    datasets = ("cais/wmdp", "cais/mmlu", "wikitext", CORPUS)

    def data(self) -> tuple[DataNeed, ...]:
        """Questions and both corpora."""
        return needs(self.cfg)

    def run(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Answer]:
        """One result per SAE; all are skipped if the model knows too little to be asked."""
        engine = make_engine(ctx, self.cfg, saes)
        shared: scores.Shared | None = None
        why_not = ""
        for handle in saes:
            if l0(ctx, handle) == 0:
                yield _meaningless(handle.label, "no latent ever fires (L0 = 0)")
                continue
            if shared is None and not why_not:
                try:
                    engine.prepare()
                    shared = scores.share(ctx, word_deletion(ctx, self.cfg, engine))
                except TooFewQuestions as error:
                    why_not = str(error)
            if shared is None:
                yield Skipped(handle.label, why_not)
                continue
            started = time.monotonic()
            try:
                scored = _scored(handle, engine, shared)
            except Exception as error:  # raised, it would cost the others what they share
                yield Failed(handle.label, error)
                continue
            yield scored._replace(wall_s=time.monotonic() - started)


def _scored(handle: SaeHandle, engine: UnlearningEngine, shared: scores.Shared) -> Scored:
    tried, chat = engine.tried(handle), engine.chat(handle)
    return scores.scored(handle.label, tried, engine.mean_difference(handle), chat, shared)


def _meaningless(label: str, reason: str) -> Scored:
    names = [m.name for m in UnlearningSuite.metrics]
    return Scored(label, dict.fromkeys(names), [], None, dict.fromkeys(names, reason), reason)
