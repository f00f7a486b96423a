"""Feature absorption: does a latent for a concept miss cases that a finer latent swallowed?"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.absorption.engine import layer_of, make_engine
from bench.context import EvalContext, l0
from bench.fast.l0 import L0_SUITE, active_per_token, with_l0
from bench.limits import at_least, at_most
from bench.suite import Failed, Metric, SaeHandle, Scored, Suite, Unit

MEANS = {
    # ours -> (name in sae_bench's means, name in its per-letter details)
    "mean_absorption_fraction": ("mean_absorption_fraction_score", "mean_absorption_fraction"),
    "mean_full_absorption": ("mean_full_absorption_score", "full_absorption_rate"),
    "mean_num_split_features": ("mean_num_split_features", "num_split_features"),
}
L0_WORDS = 4096
"""Most words that L0 is measured on."""


class AbsorptionSuite(Suite):
    """First-letter latents that stay silent where another takes over (sae_bench absorption)."""

    @dataclass(frozen=True)
    class Config:
        """sae_bench's own names and defaults."""

        f1_jump_threshold: float = 0.03
        """Gain in F1 from which one more latent counts as a split."""
        max_k_value: int = 10
        """Most latents that a letter may be split over."""
        prompt_template: str = "{word} has the first letter:"
        """One spelling example."""
        prompt_token_pos: int = -6
        """Position of the word, counted from the end of the prompt."""
        llm_batch_size: int = 10
        """Prompts per language-model call."""
        k_sparse_probe_l1_decay: float = 0.01
        """L1 penalty of the probe that picks latents."""
        k_sparse_probe_batch_size: int = 4096
        """Words per step of that probe."""
        k_sparse_probe_num_epochs: int = 50
        """Epochs of that probe."""
        min_GT_probe_f1: float = 0.6
        """F1 that a letter's ground-truth probe must exceed for the letter to count."""
        min_feats_for_eval: int = 20
        """Letters that must count; with fewer there is no score."""
        eval_k_sparse_probe_batch_size: int = 24
        """Words per call when probes are scored."""
        precalc_k_sparse_probe_sae_acts: bool = False
        """Encode all words once instead of once per epoch: faster, more memory."""

        def __post_init__(self) -> None:
            at_least(self, 1, "max_k_value", "min_feats_for_eval", "k_sparse_probe_num_epochs")
            at_least(self, 1, "llm_batch_size", "k_sparse_probe_batch_size")
            at_least(self, 1, "eval_k_sparse_probe_batch_size")
            at_least(self, 0, "f1_jump_threshold", "k_sparse_probe_l1_decay")
            at_most(self, 1, "f1_jump_threshold", "min_GT_probe_f1")

    metrics = (
        Metric(
            "mean_absorption_fraction",
            "lower",
            0.0,
            1.0,
            True,
            "share of the letter's direction taken over by other latents, mean over letters",
        ),
        Metric(
            "mean_full_absorption",
            "lower",
            0.0,
            1.0,
            True,
            "words whose letter latents are silent while another takes over, mean over letters",
        ),
        Metric("mean_num_split_features", "none", 1.0, summary="latents per letter"),
        Metric("n_letters", "none", 0.0, 26.0, summary="letters that count"),
        Metric(
            L0_SUITE,
            "none",
            0.0,
            summary="active latents per token here, at 4,096 words of the test split at most",
        ),
    )
    side = "base"
    hooks = ("hook_resid_post",)
    engines = ("reference", "fast")
    batch_sizes = ("llm_batch_size",)

    def run(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Scored | Failed]:
        """One result per SAE. Raises RuntimeError if the model shows too few letters."""
        engine = make_engine(ctx, self.cfg)
        for handle in saes:
            if l0(ctx, handle) == 0:
                # nothing fires, so nothing can be absorbed: 0, the best score there is
                yield _meaningless(handle.label, "no latent ever fires (L0 = 0)")
                continue
            layer = layer_of(handle)
            engine.prepare(layer)
            started = time.monotonic()
            try:
                scores = engine.scores(handle)
                found = active_per_token(handle.sae, engine.words(layer)[:L0_WORDS])
            except Exception as error:  # raised, it would cost the others what they share
                yield Failed(handle.label, error)
                continue
            scored = with_l0(_scored(handle.label, scores.raw), found)
            yield scored._replace(wall_s=time.monotonic() - started, work=scores.work)


def _scored(label: str, raw: dict[str, Any]) -> Scored:
    means, letters = raw["eval_result_metrics"]["mean"], raw["eval_result_details"]
    metrics = {name: means[theirs] for name, (theirs, _) in MEANS.items()}
    metrics["n_letters"] = float(len(letters))
    units = [
        Unit(name, "letter", row["first_letter"], row[detail], row["num_probe_true_positives"])
        for name, (_, detail) in MEANS.items()
        for row in letters
    ]
    return Scored(label, metrics, units, raw)


def _meaningless(label: str, reason: str) -> Scored:
    names = [m.name for m in AbsorptionSuite.metrics]
    return Scored(label, dict.fromkeys(names), [], None, dict.fromkeys(names, reason), reason)
