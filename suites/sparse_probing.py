"""Sparse probing: can a concept be read off one or a few latents?"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bench.context import EvalContext, is_control, l0, sae_bench_on, sae_bench_result
from bench.suite import Metric, SaeHandle, Scored, Suite, Unit

if TYPE_CHECKING:
    from torch import Tensor

DATASET_KEY = "_results"
"""What sae_bench appends to a data set's name."""


class SparseProbingSuite(Suite):
    """Accuracy of probes on the 1, 2 or 5 most telling latents (sae_bench sparse_probing)."""

    @dataclass(frozen=True)
    class Config:
        """sae_bench's own names and defaults."""

        dataset_names: tuple[str, ...] = (
            "LabHC/bias_in_bios_class_set1",
            "LabHC/bias_in_bios_class_set2",
            "LabHC/bias_in_bios_class_set3",
            "canrager/amazon_reviews_mcauley_1and5",
            "canrager/amazon_reviews_mcauley_1and5_sentiment",
            "codeparrot/github-code",
            "fancyzhx/ag_news",
            "Helsinki-NLP/europarl",
        )
        """Data sets by sae_bench's names."""
        probe_train_set_size: int = 4000
        """Training texts per probe, both classes together."""
        probe_test_set_size: int = 1000
        """Test texts per probe, both classes together."""
        context_length: int = 128
        """Tokens per text; the rest is cut off."""
        sae_batch_size: int = 125
        """Texts per SAE call."""
        llm_batch_size: int = 32
        """Texts per language-model call."""
        k_values: tuple[int, ...] = (1, 2, 5)
        """Latents that a probe may use."""
        lower_vram_usage: bool = False
        """Keep the model off the GPU between its calls."""

    metrics = (
        Metric("sae_top_1_test_accuracy", "higher", 0.0, 1.0, True, "probe on one latent"),
        Metric("sae_top_2_test_accuracy", "higher", 0.0, 1.0, summary="probe on two latents"),
        Metric("sae_top_5_test_accuracy", "higher", 0.0, 1.0, summary="probe on five latents"),
        Metric("llm_top_1_test_accuracy", "none", 0.0, 1.0, summary="one residual channel"),
        Metric("llm_top_2_test_accuracy", "none", 0.0, 1.0, summary="two residual channels"),
        Metric("llm_top_5_test_accuracy", "none", 0.0, 1.0, summary="five residual channels"),
        Metric(
            "saebench060_sae_test_accuracy",
            "none",
            0.0,
            1.0,
            summary="probe on all latents, its best epoch picked on the test set",
        ),
        Metric(
            "saebench060_llm_test_accuracy",
            "none",
            0.0,
            1.0,
            summary="probe on all channels, its best epoch picked on the test set",
        ),
    )
    side = "base"
    hooks = ("hook_resid_post", "hook_resid_pre", "hook_mlp_out", "hook_attn_out")
    datasets = (
        "LabHC/bias_in_bios",
        "canrager/amazon_reviews_mcauley_1and5",
        "codeparrot/github-code",
        "fancyzhx/ag_news",
        "Helsinki-NLP/europarl",
    )

    def run(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Scored]:
        """One result per SAE; all are probed on the same texts, wherever in the list."""
        warm: set[str] = set()
        for handle in saes:
            hook = handle.sae.cfg.metadata.hook_name
            if hook not in warm:
                self._warm(ctx, handle)
                warm.add(hook)
            started = time.monotonic()
            scored = self._one(ctx, handle)
            yield scored._replace(wall_s=time.monotonic() - started)

    def _one(self, ctx: EvalContext, handle: SaeHandle) -> Scored:
        import sae_bench.evals.sparse_probing.main as probing
        from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput

        output = ctx.work / "sparse_probing"
        with sae_bench_on(ctx, self.side):
            probing.run_eval(
                self._sae_bench_config(ctx),
                [(handle.label, handle.sae)],
                ctx.device,
                str(output),
                force_rerun=True,
                artifacts_path=str(ctx.artifacts),
            )
        raw = sae_bench_result(output, handle.label, SparseProbingEvalOutput)
        metrics = self._metrics(raw)
        dead = not is_control(handle) and l0(ctx, handle) == 0
        return Scored(
            label=handle.label,
            metrics=metrics,
            units=self._units(raw["eval_result_unstructured"], metrics),
            saebench=raw,
            reasons={n: "not among k_values" for n in metrics if metrics[n] is None},
            invalid="no latent ever fires (L0 = 0)" if dead else None,
        )

    def _metrics(self, raw: dict[str, Any]) -> dict[str, float | None]:
        groups = raw["eval_result_metrics"]
        values = groups["sae"] | groups["llm"]
        if self.cfg.lower_vram_usage:  # sae_bench skips this probe then, and writes -1
            values["sae_test_accuracy"] = None
        names = [m.name for m in self.metrics]
        return {name: values.get(name.removeprefix("saebench060_")) for name in names}

    def _units(
        self, results: dict[str, dict[str, dict[str, float]]], metrics: dict[str, float | None]
    ) -> list[Unit]:
        """Accuracy of each (data set, class) for the probes on few latents."""
        n = self.cfg.probe_test_set_size
        return [
            Unit(name, "class", f"{dataset.removesuffix(DATASET_KEY)}/{label}", accuracy, n)
            for name in metrics
            if name.startswith("sae_top_") and metrics[name] is not None
            for dataset, by_metric in results.items()
            for label, accuracy in by_metric[name].items()
        ]

    def _warm(self, ctx: EvalContext, handle: SaeHandle) -> None:
        """Fill sae_bench's activation cache with a stand-in, before any SAE is scored.

        On a miss sae_bench trains the model's own probes between seeding and the SAE's probes, so
        the first SAE in a list would be scored on other texts than the rest.
        """
        import sae_bench.evals.sparse_probing.main as probing

        with sae_bench_on(ctx, self.side) as model:
            config = self._sae_bench_config(ctx)
            hook = handle.sae.cfg.metadata.hook_name
            folder = ctx.artifacts / "sparse_probing" / config.model_name / hook
            probing.run_eval_single_sae(
                config,
                _StandIn(handle.sae, width=max(self.cfg.k_values)),  # type: ignore[arg-type]
                model,
                ctx.device,
                str(folder),
            )

    def _sae_bench_config(self, ctx: EvalContext) -> Any:
        from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

        settings: dict[str, Any] = asdict(self.cfg) | {
            "dataset_names": list(self.cfg.dataset_names),
            "k_values": list(self.cfg.k_values),
        }
        return SparseProbingEvalConfig(
            random_seed=ctx.seed, model_name=ctx.spec.name, llm_dtype=ctx.dtype, **settings
        )


class _StandIn:
    """The first `width` channels in place of latents: cheap, on the same hook."""

    def __init__(self, sae: Any, width: int):
        hook = sae.cfg.metadata.hook_name
        self.cfg = SimpleNamespace(hook_name=hook, hook_layer=int(hook.split(".")[1]))
        self.dtype = sae.dtype
        self.width = width

    def encode(self, x: "Tensor") -> "Tensor":
        """x [..., d_in] -> [..., width]."""
        return x[..., : self.width]
