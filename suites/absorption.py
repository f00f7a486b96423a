"""Feature absorption: does a latent for a concept miss cases that a finer latent swallowed?"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.context import EvalContext, l0, patched, sae_bench_on, sae_bench_result
from bench.suite import Metric, SaeHandle, Scored, Suite, Unit

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

MEANS = {
    # ours -> (name in sae_bench's means, name in its per-letter details)
    "mean_absorption_fraction": ("mean_absorption_fraction_score", "mean_absorption_fraction"),
    "mean_full_absorption": ("mean_full_absorption_score", "full_absorption_rate"),
    "mean_num_split_features": ("mean_num_split_features", "num_split_features"),
}


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
    )
    side = "base"
    hooks = ("hook_resid_post",)

    def run(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Scored]:
        """One result per SAE. Raises RuntimeError if the model shows too few letters."""
        for handle in saes:
            if l0(ctx, handle) == 0:
                # nothing fires, so nothing can be absorbed: 0, the best score there is
                yield _meaningless(handle.label, "no latent ever fires (L0 = 0)")
                continue
            self._train_letter_probes(ctx, _layer(handle))
            started = time.monotonic()
            scored = self._one(ctx, handle)
            yield scored._replace(wall_s=time.monotonic() - started)

    def _one(self, ctx: EvalContext, handle: SaeHandle) -> Scored:
        import sae_bench.evals.absorption.main as absorption
        from sae_bench.evals.absorption.eval_output import AbsorptionEvalOutput

        output = ctx.work / "absorption"
        output.mkdir(parents=True, exist_ok=True)
        with _seeded(ctx), _redirected(ctx, absorption):
            results = absorption.run_eval(
                self._sae_bench_config(ctx),
                [(handle.label, handle.sae)],
                ctx.device,
                str(output),
                force_rerun=True,
            )
        if not results:  # too few letters: sae_bench prints a line and stops
            raise RuntimeError(self._too_few(ctx, handle.label))
        return _scored(handle.label, sae_bench_result(output, handle.label, AbsorptionEvalOutput))

    def _train_letter_probes(self, ctx: EvalContext, layer: int) -> None:
        """Train sae_bench's letter probes once per layer, so that no SAE's draws depend on it."""
        from sae_bench.evals.absorption.common import load_or_train_probe

        with _seeded(ctx) as model:
            load_or_train_probe(
                model,
                base_template=self.cfg.prompt_template,
                pos_idx=self.cfg.prompt_token_pos,
                layer=layer,
                probes_dir=ctx.artifacts / "absorption" / "probes",
                device=ctx.device,
            )

    def _sae_bench_config(self, ctx: EvalContext) -> Any:
        from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

        return AbsorptionEvalConfig(
            model_name=ctx.spec.name,
            random_seed=ctx.seed,
            llm_dtype=ctx.dtype,
            **asdict(self.cfg),
        )

    def _too_few(self, ctx: EvalContext, label: str) -> str:
        file = ctx.work / "artifacts" / "absorption" / f"{label}_custom_sae_k_sparse_probing.json"
        scores = [row["f1_probe"] for row in json.loads(file.read_text())]
        n = sum(f1 > self.cfg.min_GT_probe_f1 for f1 in scores)
        return (
            f"only {n} letters can be read off model {ctx.spec.name!r} with F1 above "
            f"{self.cfg.min_GT_probe_f1:g}, min_feats_for_eval={self.cfg.min_feats_for_eval}"
        )


@contextmanager
def _seeded(ctx: EvalContext) -> Iterator["HookedTransformer"]:
    """sae_bench on our model and seed, with its words in a fixed order.

    sae_bench stores a seed here and never uses it, and draws words from the tokenizer's vocabulary,
    whose order a fast tokenizer changes with every call.
    """
    import sae_bench.evals.absorption.common as common
    import sae_bench.evals.absorption.feature_absorption as feature_absorption
    from sae_bench.evals.absorption.vocab import get_alpha_tokens

    def words(tokenizer: Any) -> list[str]:
        return sorted(get_alpha_tokens(tokenizer))

    with ExitStack() as stack:
        for module in (common, feature_absorption):
            stack.enter_context(patched(module, "get_alpha_tokens", words))
        yield stack.enter_context(sae_bench_on(ctx, "base"))


@contextmanager
def _redirected(ctx: EvalContext, absorption: Any) -> Iterator[None]:
    """Caches go to our folder: by default sae_bench writes them into site-packages."""
    root = ctx.artifacts / "absorption"
    sparse = partial(
        absorption.run_k_sparse_probing_experiment,
        experiment_dir=root / "k_sparse",
        probes_dir=root / "probes",
        verbose=False,
    )
    absorbed = partial(
        absorption.run_feature_absortion_experiment,
        experiment_dir=root / "feature_absorption",
        sparse_probing_experiment_dir=root / "k_sparse",
        probes_dir=root / "probes",
    )
    with (
        patched(absorption, "run_k_sparse_probing_experiment", sparse),
        patched(absorption, "run_feature_absortion_experiment", absorbed),
    ):
        yield


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


def _layer(handle: SaeHandle) -> int:
    return int(handle.sae.cfg.metadata.hook_name.split(".")[1])


def _meaningless(label: str, reason: str) -> Scored:
    names = [m.name for m in AbsorptionSuite.metrics]
    return Scored(label, dict.fromkeys(names), [], None, dict.fromkeys(names, reason), reason)
