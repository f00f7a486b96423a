"""Sparse probing: can a concept be read off one or a few latents?"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from bench.context import (
    EvalContext,
    is_control,
    l0,
    patched,
    sae_bench_on,
    sae_bench_result,
    working_directory,
)
from bench.counters import Work, counting
from bench.fast.l0 import L0_SUITE, active_per_token, first_tokens_of_sae_bench, with_l0
from bench.fast.part import Bill, bills
from bench.fast.probe_data import enough_texts
from bench.limits import at_least, distinct
from bench.suite import DataNeed, Failed, Metric, SaeHandle, Scored, Suite, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from bench.fast.probing import Probed

CODE, SPEECH = "codeparrot/github-code", "Helsinki-NLP/europarl"
COLUMNS = {
    "LabHC/bias_in_bios": ("hard_text", "profession", "gender"),
    "canrager/amazon_reviews_mcauley_1and5": ("text", "category", "rating"),
    CODE: ("code", "language"),
    "fancyzhx/ag_news": ("text", "label"),
    SPEECH: ("translation",),
}
"""Hub id -> the columns that sae_bench reads."""
LANGUAGES = ("C", "Python", "HTML", "Java", "PHP")
LANGUAGE_PAIRS = ("en-fr", "fr-it", "de-en", "es-fr", "nl-pt")
LONGEST_SKIPPED = 384 + 150
"""Characters up to which sae_bench skips a code sample (dataset_utils.py)."""
DATASETS = (
    "LabHC/bias_in_bios_class_set1",
    "LabHC/bias_in_bios_class_set2",
    "LabHC/bias_in_bios_class_set3",
    "canrager/amazon_reviews_mcauley_1and5",
    "canrager/amazon_reviews_mcauley_1and5_sentiment",
    "codeparrot/github-code",
    "fancyzhx/ag_news",
    "Helsinki-NLP/europarl",
)
"""sae_bench's data sets, by its names."""
HEADLINE_K, REPORTED_K = 1, (1, 2, 5)
"""Latents per probe: of the headline, and all that there is a metric for."""
DATASET_KEY = "_results"
"""What sae_bench appends to a data set's name."""


class SparseProbingSuite(Suite):
    """Accuracy of probes on the 1, 2 or 5 most telling latents (sae_bench sparse_probing)."""

    @dataclass(frozen=True)
    class Config:
        """sae_bench's own names and defaults."""

        dataset_names: tuple[str, ...] = DATASETS
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

        def __post_init__(self) -> None:
            at_least(self, 2, "probe_train_set_size", "probe_test_set_size", "context_length")
            at_least(self, 1, "sae_batch_size", "llm_batch_size")
            distinct(self, "dataset_names", "k_values")
            if HEADLINE_K not in self.k_values or not set(self.k_values) <= set(REPORTED_K):
                raise ValueError(
                    f"k_values={list(self.k_values)}: must have {HEADLINE_K}, and may have "
                    f"{' and '.join(str(k) for k in REPORTED_K if k != HEADLINE_K)}"
                )
            if other := set(self.dataset_names) - set(DATASETS):
                have = ", ".join(DATASETS)
                raise ValueError(f"dataset_names: unknown {min(other)!r}, have: {have}")

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
        Metric(
            L0_SUITE,
            "none",
            0.0,
            summary="active latents per token here, over 8 training texts of each class",
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

    engines = ("reference", "fast")
    contexts = ("context_length",)
    rehearsal: ClassVar = {
        "dataset_names": ["fancyzhx/ag_news"],
        "probe_train_set_size": 20,
        "probe_test_set_size": 8,
        "context_length": 32,
    }
    batch_sizes = ("llm_batch_size", "sae_batch_size")

    def data(self) -> tuple[DataNeed, ...]:
        """What sae_bench's dataset_utils reads for the data sets of the config."""
        n_per_class = self.cfg.probe_train_set_size // 2 + self.cfg.probe_test_set_size // 2
        return tuple(need for name in self.cfg.dataset_names for need in _data(name, n_per_class))

    def run(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Scored | Failed]:
        """One result per SAE; all are probed on the same texts, wherever in the list."""
        if ctx.engine == "fast":
            yield from self._fast(ctx, saes)
            return
        warm: dict[str, Work] = {}
        inputs: dict[str, Tensor] = {}
        model = ctx.model(self.side)
        for handle in saes:
            hook = handle.sae.cfg.metadata.hook_name
            if hook not in warm:
                with counting([model]) as warm[hook]:
                    folder = self._warm(ctx, handle)
                inputs[hook] = first_tokens_of_sae_bench(folder, self.cfg.dataset_names)
            started = time.monotonic()
            with counting([model], [handle.sae]) as work:
                scored = self._one(ctx, handle)
            scored = with_l0(scored, active_per_token(handle.sae, inputs[hook]))
            yield scored._replace(wall_s=time.monotonic() - started, work=work.recorded(warm[hook]))

    def _fast(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Scored | Failed]:
        """All SAEs data set by data set; an SAE that fails does not stop the others."""
        import torch

        from bench.fast.probing import measure_l0, probe_all

        precision = {"device": ctx.device, "dtype": getattr(torch, ctx.dtype)}
        by_hook: dict[str, list[SaeHandle]] = {}
        for handle in saes:
            by_hook.setdefault(handle.sae.cfg.metadata.hook_name, []).append(handle)
        results: dict[str, Scored | Failed] = {}
        for hook, group in by_hook.items():
            started = time.monotonic()
            with counting([ctx.model(self.side)], [handle.sae for handle in group]) as total:
                ready = [(handle, handle.sae.to(**precision)) for handle in group]
                probed = probe_all(ctx, self.cfg, hook, ready, total)
            measure_l0(probed)
            parts = [one.part for one in probed.saes]
            owed = bills(parts, total, time.monotonic() - started)
            for one, bill in zip(probed.saes, owed):
                results[one.handle.label] = self._finished(ctx, one, bill)
        for handle in saes:
            yield results[handle.label]

    def _finished(self, ctx: EvalContext, one: "Probed", bill: Bill) -> Scored | Failed:
        if one.part.error is not None:
            return Failed(one.handle.label, one.part.error)
        scored = with_l0(self._scored(ctx, one.handle, self._file(ctx, one)), one.l0)
        return scored._replace(**bill._asdict())

    def _file(self, ctx: EvalContext, one: "Probed") -> dict[str, Any]:
        """What sae_bench would have written."""
        from sae_bench.evals.sparse_probing import eval_output
        from sae_bench.sae_bench_utils import (
            general_utils,
            get_eval_uuid,
            get_sae_bench_version,
            get_sae_lens_version,
        )

        sae_id, sae, _ = general_utils.load_and_format_sae(one.handle.label, one.sae, ctx.device)  # type: ignore[misc]
        by_class = {f"{name}{DATASET_KEY}": found for name, found in one.by_dataset.items()}
        by_dataset = {
            name: {metric: sum(v.values()) / len(v) for metric, v in found.items()}
            for name, found in by_class.items()
        }
        means = general_utils.average_results_dictionaries(by_dataset, list(one.by_dataset))
        groups = {
            g: {k: v for k, v in means.items() if k.startswith(f"{g}_")} for g in ("llm", "sae")
        }
        with working_directory(ctx.work):  # its "version" is the commit of where it runs
            version = get_sae_bench_version()
        found = eval_output.SparseProbingEvalOutput(
            eval_config=self._sae_bench_config(ctx),
            eval_id=get_eval_uuid(),
            datetime_epoch_millis=int(time.time() * 1000),
            eval_result_metrics=eval_output.SparseProbingMetricCategories(
                llm=eval_output.SparseProbingLlmMetrics(**groups["llm"]),
                sae=eval_output.SparseProbingSaeMetrics(**groups["sae"]),
            ),
            eval_result_details=[
                eval_output.SparseProbingResultDetail(dataset_name=name, **values)
                for name, values in by_dataset.items()
            ],
            eval_result_unstructured=by_class,
            sae_bench_commit_hash=version,
            sae_lens_id=sae_id,
            sae_lens_release_id=one.handle.label,
            sae_lens_version=get_sae_lens_version(),
            sae_cfg_dict=sae.cfg.to_dict(),
        )
        folder = ctx.work / "sparse_probing"
        folder.mkdir(parents=True, exist_ok=True)
        path = general_utils.get_results_filepath(str(folder), one.handle.label, sae_id)
        found.to_json_file(path, indent=2)
        return sae_bench_result(folder, one.handle.label, eval_output.SparseProbingEvalOutput)

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
        return self._scored(ctx, handle, raw)

    def _scored(self, ctx: EvalContext, handle: SaeHandle, raw: dict[str, Any]) -> Scored:
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
        names = [m.name for m in self.metrics if m.name != L0_SUITE]
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

    def _warm(self, ctx: EvalContext, handle: SaeHandle) -> Path:
        """Fill sae_bench's activation cache with a stand-in, before any SAE is scored; its folder.

        On a miss sae_bench trains the model's own probes between seeding and the SAE's probes, so
        the first SAE in a list would be scored on other texts than the rest. Seeded anew for every
        data set, the model's own accuracies depend on no other set.
        """
        import sae_bench.evals.sparse_probing.main as probing

        config = self._sae_bench_config(ctx)
        stand_in = _StandIn(handle.sae, width=max(self.cfg.k_values))
        hook = stand_in.cfg.hook_name
        folder = ctx.artifacts / "sparse_probing" / config.model_name / hook
        folder.mkdir(parents=True, exist_ok=True)
        for name in config.dataset_names:
            sizes = self.cfg.probe_train_set_size, self.cfg.probe_test_set_size
            with (
                sae_bench_on(ctx, self.side) as model,
                every_token_counts(),
                enough_texts(name, *sizes),
            ):
                probing.run_eval_single_dataset(
                    name,
                    config,
                    stand_in,  # type: ignore[arg-type]
                    model,
                    stand_in.cfg.hook_layer,
                    hook,
                    ctx.device,
                    str(folder),
                    save_activations=True,
                )
        return folder

    def _sae_bench_config(self, ctx: EvalContext) -> Any:
        from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

        settings: dict[str, Any] = asdict(self.cfg) | {
            "dataset_names": list(self.cfg.dataset_names),
            "k_values": list(self.cfg.k_values),
        }
        return SparseProbingEvalConfig(
            random_seed=ctx.seed, model_name=ctx.spec.name, llm_dtype=ctx.dtype, **settings
        )


def _data(name: str, n_per_class: int) -> Iterator[DataNeed]:
    """The files that sae_bench reads for one of its data sets, named as in `dataset_names`."""
    path = next((p for p in COLUMNS if name.startswith(p)), None)
    if path is None:
        raise ValueError(f"dataset_names: unknown {name!r}, have: {', '.join(COLUMNS)}")
    if path == CODE:
        # it reads on until each language has more than this many samples that are long enough
        yield DataNeed(
            path,
            columns=COLUMNS[path],
            groups=LANGUAGES,
            group_by="language",
            n_per_group=n_per_class + 1,
            longer_than=LONGEST_SKIPPED,
        )
    elif path == SPEECH:
        for pair in LANGUAGE_PAIRS:
            yield DataNeed(path, config=pair, columns=COLUMNS[path], n_rows=n_per_class + 1)
    else:
        for split in ("train", "test"):
            yield DataNeed(path, split, columns=COLUMNS[path])


@contextmanager
def every_token_counts() -> Iterator[None]:
    """Raise RuntimeError where sae_bench would take a token for padding, or a text for empty.

    It masks what does not count by zeros, and then leaves out what sums to zero.
    """
    from sae_bench.sae_bench_utils import activation_collection

    collect = activation_collection.get_llm_activations

    def checked(tokens: "Tensor", model: Any, *args: Any, **kwargs: Any) -> "Tensor":
        x = collect(tokens, model, *args, **kwargs)  # [n, T, d_in]
        counts = activation_collection.get_bos_pad_eos_mask(tokens, model.tokenizer)
        n_lost = int(((x.sum(-1) == 0) & counts).sum())
        n_empty = int((~counts.any(-1)).sum())
        if n_lost or n_empty:
            raise RuntimeError(
                f"sae_bench would leave out {n_lost} tokens whose activations sum to 0 and divide "
                f"by zero for {n_empty} texts without tokens, use `engine: fast`"
            )
        return x

    with patched(activation_collection, "get_llm_activations", checked):
        yield


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
