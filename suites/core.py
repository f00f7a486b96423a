"""Core: how well, and how sparsely, the SAE reconstructs activations and keeps behaviour."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bench.context import (
    EvalContext,
    is_control,
    patched,
    sae_bench_on,
    sae_bench_result,
    working_directory,
)
from bench.counters import Work, counting
from bench.fast.part import Bill, bills
from bench.limits import at_least
from bench.moments import Corrections, counted, divergence
from bench.suite import DataNeed, Failed, Metric, SaeHandle, Scored, Suite, text_need

if TYPE_CHECKING:
    from torch import Tensor

    from bench.fast.core import Result

SAE_BENCH_METRICS = {
    # ours -> (group, name) in sae_bench's output
    "ce_loss_score": ("model_performance_preservation", "ce_loss_score"),
    "ce_loss_with_sae": ("model_performance_preservation", "ce_loss_with_sae"),
    "ce_loss_without_sae": ("model_performance_preservation", "ce_loss_without_sae"),
    "ce_loss_with_ablation": ("model_performance_preservation", "ce_loss_with_ablation"),
    "cossim": ("reconstruction_quality", "cossim"),
    "l2_ratio": ("shrinkage", "l2_ratio"),
    "relative_reconstruction_bias": ("shrinkage", "relative_reconstruction_bias"),
    "l0_suite": ("sparsity", "l0"),
    "frac_alive": ("misc_metrics", "frac_alive"),
    "saebench060_explained_variance": ("reconstruction_quality", "explained_variance"),
    "saebench060_explained_variance_legacy": (
        "reconstruction_quality",
        "explained_variance_legacy",
    ),
    "saebench060_mse": ("reconstruction_quality", "mse"),
    "saebench060_kl_div_score": ("model_behavior_preservation", "kl_div_score"),
}


ALL_METRICS = dict.fromkeys(
    (
        "compute_kl",
        "compute_ce_loss",
        "compute_l2_norms",
        "compute_sparsity_metrics",
        "compute_variance_metrics",
        "compute_featurewise_density_statistics",
        "compute_featurewise_weight_based_metrics",
    ),
    True,
)
"""As sae_bench's own file states them."""


class CoreSuite(Suite):
    """Reconstruction, loss recovered and sparsity on general text (sae_bench core)."""

    @dataclass(frozen=True)
    class Config:
        """sae_bench's own names and defaults."""

        batch_size_prompts: int = 16
        """Contexts per batch."""
        n_eval_reconstruction_batches: int = 10
        """Batches for the loss and KL metrics."""
        n_eval_sparsity_variance_batches: int = 1
        """Batches for explained variance and sparsity."""
        context_size: int = 128
        """Tokens per context."""
        dataset: str = "Skylion007/openwebtext"
        """Hub id of the text."""
        exclude_special_tokens_from_reconstruction: bool = False
        """Keep the model's own activations at BOS, EOS and padding."""

        def __post_init__(self) -> None:
            at_least(self, 1, "batch_size_prompts", "n_eval_reconstruction_batches")
            at_least(self, 1, "n_eval_sparsity_variance_batches")
            at_least(self, 2, "context_size")  # the loss is that of a next token

    metrics = (
        Metric(
            "explained_variance",
            "higher",
            high=1.0,
            headline=True,
            summary="1 - sum |x - x_hat|^2 / sum |x - mean|^2 over all evaluation tokens",
        ),
        Metric(
            "ce_loss_score",
            "higher",
            headline=True,
            summary="share of the loss between zero ablation and the clean model that is kept",
        ),
        Metric("ce_loss_with_sae", "lower", low=0.0, summary="nats per token"),
        Metric("ce_loss_without_sae", "none", low=0.0, summary="nats per token"),
        Metric("ce_loss_with_ablation", "none", low=0.0, summary="nats per token"),
        Metric("kl_div_score", "higher", high=1.0, summary="share of zero ablation's KL removed"),
        Metric("mse", "lower", low=0.0, summary="|x - x_hat|^2 summed over d_in, mean over tokens"),
        Metric("cossim", "higher", low=-1.001, high=1.001, summary="mean over tokens"),
        Metric("l2_ratio", "none", low=0.0, summary="|x_hat| / |x|, mean over tokens"),
        Metric("relative_reconstruction_bias", "none", summary="1 = no shrinkage"),
        Metric("l0_suite", "none", low=0.0, summary="active latents per token here"),
        Metric("frac_alive", "higher", low=0.0, high=1.0, summary="latents that fired at all"),
        Metric(
            "saebench060_explained_variance",
            "none",
            summary="takes E[x^2] for E[x], so the mean is not removed",
        ),
        Metric("saebench060_explained_variance_legacy", "none", summary="mean of per-token ratios"),
        Metric("saebench060_mse", "none", low=0.0, summary="divided by the tokens per batch"),
        Metric(
            "saebench060_kl_div_score",
            "none",
            high=1.0,
            summary="from the logarithm of a softmax, which underflows",
        ),
    )
    side = "base"
    hooks = ("hook_resid_post", "hook_resid_pre", "hook_mlp_out", "hook_attn_out")
    datasets = ("Skylion007/openwebtext",)

    engines = ("reference", "fast")
    contexts = ("context_size",)
    rehearsal: ClassVar = {
        "context_size": 32,
        "batch_size_prompts": 4,
        "n_eval_reconstruction_batches": 1,
        "n_eval_sparsity_variance_batches": 1,
    }

    def data(self) -> tuple[DataNeed, ...]:
        """The start of the text, enough for every batch."""
        cfg = self.cfg
        # one batch more: SAELens's store reads ahead
        n_batches = cfg.n_eval_reconstruction_batches + cfg.n_eval_sparsity_variance_batches + 1
        n_tokens = n_batches * cfg.batch_size_prompts * cfg.context_size
        return (text_need(cfg.dataset, "text", n_tokens),)

    def run(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Scored | Failed]:
        """One result per SAE. Raises RuntimeError with sae_bench's own error if it gave up."""
        if ctx.engine == "fast":
            yield from self._fast(ctx, saes)
            return
        for handle in saes:
            started = time.monotonic()
            with counting([ctx.model(self.side)], [handle.sae]) as work:
                scored = self._reference(ctx, handle)
            yield scored._replace(wall_s=time.monotonic() - started, work=work.recorded())

    def _fast(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Scored | Failed]:
        """All SAEs batch by batch; an SAE that fails does not stop the others."""
        results: dict[str, Scored | Failed] = {}
        for group in _grouped(self.cfg, saes).values():
            started = time.monotonic()
            with counting([ctx.model(self.side)], [handle.sae for handle in group]) as total:
                found = self._evaluated(ctx, group, total)
            owed = bills([r.part for r in found], total, time.monotonic() - started)
            for result, bill in zip(found, owed):
                results[result.handle.label] = self._finished(ctx, result, bill)
        for handle in saes:
            yield results[handle.label]

    def _evaluated(self, ctx: EvalContext, group: list[SaeHandle], total: Work) -> list["Result"]:
        """Results of SAEs on one hook that read the same tokens."""
        import torch

        from bench.fast import core
        from bench.fast.resume import HookPoint
        from bench.fast.tokens import Stream, token_batches

        cfg, model = self.cfg, ctx.model(self.side)
        precision = {"device": ctx.device, "dtype": getattr(torch, ctx.dtype)}
        ready = [(handle, handle.sae.to(**precision)) for handle in group]
        sae = ready[0][1]
        n = cfg.n_eval_reconstruction_batches
        tokens = token_batches(
            ctx,
            sae,
            Stream.of(sae, cfg.dataset, cfg.context_size),
            n + cfg.n_eval_sparsity_variance_batches,
            cfg.batch_size_prompts,
        )
        tokenizer: Any = model.tokenizer
        ignored = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
        plan = core.Plan(
            tokens[:n], tokens[n:], ignored, cfg.exclude_special_tokens_from_reconstruction
        )
        point = HookPoint(model, sae.cfg.metadata.hook_name)
        return core.evaluate(point, plan, ready, total)

    def _finished(self, ctx: EvalContext, result: "Result", bill: Bill) -> Scored | Failed:
        """The result in sae_bench's file and in ours."""
        if result.part.error is not None:
            return Failed(result.handle.label, result.part.error)
        import sae_bench.evals.core.main as core

        metrics = result.scalars | {"misc_metrics": core.calculate_misc_metrics(result.features)}  # type: ignore[arg-type]
        return self._scored(result.handle, metrics, result.ours)._replace(
            saebench=self._file(ctx, result, metrics), **bill._asdict()
        )

    def _file(self, ctx: EvalContext, result: "Result", metrics: dict[str, Any]) -> dict[str, Any]:
        """What sae_bench would have written, by its own writer."""
        import sae_bench.evals.core.main as core
        from sae_bench.evals.core.eval_config import CoreEvalConfig
        from sae_bench.evals.core.eval_output import CoreEvalOutput
        from sae_bench.sae_bench_utils import (
            general_utils,
            get_eval_uuid,
            get_sae_bench_version,
            get_sae_lens_version,
        )

        handle, output = result.handle, ctx.work / "core"
        sae_id, sae, _ = general_utils.load_and_format_sae(handle.label, handle.sae, ctx.device)  # type: ignore[misc]
        found = core.replace_nans_with_negative_one(
            {"metrics": metrics, "feature_metrics": result.features}
        )
        config = CoreEvalConfig(
            model_name=sae.cfg.model_name, llm_dtype=ctx.dtype, **ALL_METRICS, **asdict(self.cfg)
        )
        output.mkdir(parents=True, exist_ok=True)
        with working_directory(ctx.work):  # its "version" is the commit of where it runs
            core.save_single_eval_result(
                found | {"eval_cfg": config, "sae_id": sae_id, "sae_set": handle.label},
                get_eval_uuid(),
                get_sae_lens_version(),
                get_sae_bench_version(),
                general_utils.get_results_filepath(str(output), handle.label, sae_id),
                sae,
            )
        return sae_bench_result(output, handle.label, CoreEvalOutput)

    def _reference(self, ctx: EvalContext, handle: SaeHandle) -> Scored:
        import sae_bench.evals.core.main as core
        from sae_bench.evals.core.eval_output import CoreEvalOutput

        ours = Corrections()
        output = ctx.work / "core"
        with ExitStack() as stack:
            stack.enter_context(sae_bench_on(ctx, self.side))
            errors = stack.enter_context(errors_of(core.logger))
            stack.enter_context(observed(core, handle.sae, ours))
            settings = {k: v for k, v in asdict(self.cfg).items() if k != "batch_size_prompts"}
            results = core.multiple_evals(
                [(handle.label, handle.sae)],
                eval_batch_size_prompts=self.cfg.batch_size_prompts,
                compute_featurewise_density_statistics=True,
                compute_featurewise_weight_based_metrics=True,
                output_folder=str(output),
                dtype=ctx.dtype,
                device=ctx.device,
                force_rerun=True,
                **settings,
            )
        if not results:  # sae_bench logs every exception and goes on
            raise RuntimeError("; ".join(errors) or "sae_bench core returned no result")
        scored = self._scored(handle, results[0]["metrics"], ours)
        return scored._replace(saebench=sae_bench_result(output, handle.label, CoreEvalOutput))

    def _scored(self, handle: SaeHandle, raw: dict[str, Any], ours: Corrections) -> Scored:
        # the values before sae_bench's file replaces NaN by -1, which some may legally be
        theirs = {name: raw[group][key] for name, (group, key) in SAE_BENCH_METRICS.items()}
        corrected = ours.metrics()
        values = theirs | corrected
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        dead = finite["l0_suite"] == 0 and not is_control(handle)
        return Scored(
            label=handle.label,
            metrics=finite,
            units=ours.units(),
            saebench=None,
            reasons={n: f"sae_bench computed {v}" for n, v in theirs.items() if finite[n] is None}
            | {n: f"is {v}" for n, v in corrected.items() if finite[n] is None},
            invalid="no latent ever fires (L0 = 0)" if dead else None,
        )


def _grouped(cfg: Any, saes: list[SaeHandle]) -> dict[Any, list[SaeHandle]]:
    """SAEs that read the same tokens at the same hook."""
    from bench.fast.tokens import Stream

    groups: dict[Any, list[SaeHandle]] = {}
    for handle in saes:
        stream = Stream.of(handle.sae, cfg.dataset, cfg.context_size)
        groups.setdefault((handle.sae.cfg.metadata.hook_name, stream), []).append(handle)
    return groups


@contextmanager
def observed(core: Any, sae: Any, ours: Corrections) -> Iterator[None]:
    """Hand every batch that sae_bench evaluates to `ours` as it passes by."""
    recons, variance = core.get_recons_loss, core.get_sparsity_and_variance_metrics

    def recons_loss(sae: Any, model: Any, batch_tokens: "Tensor", *args: Any, **kwargs: Any) -> Any:
        with logits_of(model) as logits:
            result = recons(sae, model, batch_tokens, *args, **kwargs)
        mask = counted(batch_tokens, kwargs["ignore_tokens"])
        p = logits[0].softmax(-1)
        clean, with_sae, ablated = (x.log_softmax(-1) for x in logits)
        ours.divergence.add(divergence(p, clean, with_sae), divergence(p, clean, ablated), mask)
        ours.losses.add(result, mask)
        return result

    def variance_metrics(sae: Any, model: Any, store: Any, *args: Any, **kwargs: Any) -> Any:
        with watched(sae, store, kwargs["ignore_tokens"], ours.moments.add):
            return variance(sae, model, store, *args, **kwargs)

    with (
        patched(core, "get_recons_loss", recons_loss),
        patched(core, "get_sparsity_and_variance_metrics", variance_metrics),
    ):
        yield


@contextmanager
def logits_of(model: Any) -> Iterator[list["Tensor"]]:
    """The logits of every pass of the model during the block, in order."""
    seen: list[Tensor] = []
    forward = model.forward

    def watched_forward(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        seen.append(output[0])
        return output

    with patched(model, "forward", watched_forward):
        yield seen


@contextmanager
def watched(
    sae: Any, store: Any, ignored: set[int | None], add: Callable[..., None]
) -> Iterator[None]:
    """Call `add(x, x_hat, mask)` for every batch: tokens from `store`, then encode, then decode."""
    seen: dict[str, Any] = {}
    get_batch_tokens, encode, decode = store.get_batch_tokens, sae.encode, sae.decode

    def tokens_of(*args: Any, **kwargs: Any) -> Any:
        seen["tokens"] = get_batch_tokens(*args, **kwargs)
        return seen["tokens"]

    def encoded(x: "Tensor") -> "Tensor":
        seen["x"] = x
        return encode(x)

    def decoded(f: "Tensor") -> "Tensor":
        x_hat = decode(f)
        add(seen["x"], x_hat, counted(seen["tokens"], ignored))
        return x_hat

    with (
        patched(store, "get_batch_tokens", tokens_of),
        patched(sae, "encode", encoded),
        patched(sae, "decode", decoded),
    ):
        yield


@contextmanager
def errors_of(logger: logging.Logger) -> Iterator[list[str]]:
    """The error messages logged during the block."""
    messages: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
