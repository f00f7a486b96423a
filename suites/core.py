"""Core: how well, and how sparsely, the SAE reconstructs activations and keeps behaviour."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.context import EvalContext, is_control, patched, sae_bench_on, sae_bench_result
from bench.suite import Metric, SaeHandle, Scored, Suite, Unit

if TYPE_CHECKING:
    from torch import Tensor

SAE_BENCH_METRICS = {
    # ours -> (group, name) in sae_bench's output
    "ce_loss_score": ("model_performance_preservation", "ce_loss_score"),
    "ce_loss_with_sae": ("model_performance_preservation", "ce_loss_with_sae"),
    "ce_loss_without_sae": ("model_performance_preservation", "ce_loss_without_sae"),
    "ce_loss_with_ablation": ("model_performance_preservation", "ce_loss_with_ablation"),
    "kl_div_score": ("model_behavior_preservation", "kl_div_score"),
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
}


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
    )
    side = "base"
    hooks = ("hook_resid_post", "hook_resid_pre", "hook_mlp_out", "hook_attn_out")
    datasets = ("Skylion007/openwebtext",)

    def run(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Scored]:
        """One result per SAE. Raises RuntimeError with sae_bench's own error if it gave up."""
        for handle in saes:
            started = time.monotonic()
            scored = self._one(ctx, handle)
            yield scored._replace(wall_s=time.monotonic() - started)

    def _one(self, ctx: EvalContext, handle: SaeHandle) -> Scored:
        import sae_bench.evals.core.main as core
        from sae_bench.evals.core.eval_output import CoreEvalOutput

        moments, losses = Moments(), Losses()
        output = ctx.work / "core"
        with ExitStack() as stack:
            stack.enter_context(sae_bench_on(ctx, self.side))
            errors = stack.enter_context(errors_of(core.logger))
            stack.enter_context(observed(core, handle.sae, moments, losses))
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
        scored = self._scored(handle, results[0]["metrics"], moments, losses)
        return scored._replace(saebench=sae_bench_result(output, handle.label, CoreEvalOutput))

    def _scored(
        self, handle: SaeHandle, raw: dict[str, Any], moments: "Moments", losses: "Losses"
    ) -> Scored:
        # the values before sae_bench's file replaces NaN by -1, which some may legally be
        values = {name: raw[group][key] for name, (group, key) in SAE_BENCH_METRICS.items()}
        values["explained_variance"] = moments.explained_variance
        values["mse"] = moments.mse
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        dead = finite["l0_suite"] == 0 and not is_control(handle)
        return Scored(
            label=handle.label,
            metrics=finite,
            units=moments.units() + losses.units(),
            saebench=None,
            reasons={n: f"sae_bench computed {values[n]}" for n in finite if finite[n] is None},
            invalid="no latent ever fires (L0 = 0)" if dead else None,
        )


class BatchMoments(NamedTuple):
    """Float64 sums over the n tokens of one batch."""

    n: int
    x: "Tensor"
    """[d_in] sum of x."""
    x_squared: float
    error_squared: float


@dataclass
class Moments:
    """What explained variance needs, summed in float64 while sae_bench encodes and decodes.

    The reference is SAELens's ExplainedVarianceCalculator.
    """

    batches: list[BatchMoments] = field(default_factory=list)

    def add(self, x: "Tensor", x_hat: "Tensor", mask: "Tensor") -> None:
        """x, x_hat [B, T, d_in], mask [B, T] bool: True where the token counts."""
        import torch

        x, x_hat = x[mask].to(torch.float64), x_hat[mask].to(torch.float64)  # [n, d_in]
        error = (x - x_hat).pow(2).sum().item()
        self.batches.append(BatchMoments(len(x), x.sum(0), x.pow(2).sum().item(), error))

    @property
    def n(self) -> int:
        return sum(b.n for b in self.batches)

    @property
    def mse(self) -> float:
        """Squared error summed over d_in, mean over tokens."""
        return sum(b.error_squared for b in self.batches) / self.n

    @property
    def explained_variance(self) -> float:
        return 1 - sum(b.error_squared for b in self.batches) / sum(map(self._spread, self.batches))

    def units(self) -> list[Unit]:
        """Explained variance of each batch, around the mean over all batches."""
        return [
            Unit("explained_variance", "batch", str(i), 1 - b.error_squared / self._spread(b), b.n)
            for i, b in enumerate(self.batches)
        ]

    def _spread(self, batch: BatchMoments) -> float:
        """sum |x - mean|^2 over the batch, with the mean over all batches."""
        import torch

        mean = torch.stack([b.x for b in self.batches]).sum(0) / self.n  # [d_in]
        cross = (mean @ batch.x).item()
        return batch.x_squared - 2 * cross + batch.n * (mean @ mean).item()


@dataclass
class Losses:
    """Per-batch means of the three cross-entropies that make the loss score."""

    batches: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def add(self, losses: dict[str, "Tensor"], mask: "Tensor") -> None:
        """losses: name -> [B, T - 1]; mask [B, T] bool over the tokens predicted from."""
        mask = mask[:, :-1]
        means = {k: v[mask].mean().item() for k, v in losses.items() if k.startswith("ce_loss")}
        self.batches.append((int(mask.sum()), means))

    def units(self) -> list[Unit]:
        """The loss score of each batch; none where ablation changes nothing."""
        return [
            Unit("ce_loss_score", "batch", str(i), _score(means), n)
            for i, (n, means) in enumerate(self.batches)
            if means["ce_loss_with_ablation"] != means["ce_loss_without_sae"]
        ]


def _score(means: dict[str, float]) -> float:
    ablated = means["ce_loss_with_ablation"]
    return (ablated - means["ce_loss_with_sae"]) / (ablated - means["ce_loss_without_sae"])


@contextmanager
def observed(core: Any, sae: Any, moments: Moments, losses: Losses) -> Iterator[None]:
    """Hand every batch that sae_bench evaluates to `moments` and `losses` as it passes by."""
    recons, variance = core.get_recons_loss, core.get_sparsity_and_variance_metrics

    def recons_loss(sae: Any, model: Any, batch_tokens: "Tensor", *args: Any, **kwargs: Any) -> Any:
        result = recons(sae, model, batch_tokens, *args, **kwargs)
        losses.add(result, counted(batch_tokens, kwargs["ignore_tokens"]))
        return result

    def variance_metrics(sae: Any, model: Any, store: Any, *args: Any, **kwargs: Any) -> Any:
        with watched(sae, store, kwargs["ignore_tokens"], moments.add):
            return variance(sae, model, store, *args, **kwargs)

    with (
        patched(core, "get_recons_loss", recons_loss),
        patched(core, "get_sparsity_and_variance_metrics", variance_metrics),
    ):
        yield


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


def counted(tokens: "Tensor", ignored: set[int | None]) -> "Tensor":
    """tokens [B, T] -> bool [B, T], False at ignored ids."""
    import torch

    ids = torch.tensor([i for i in ignored if i is not None], device=tokens.device)
    return ~torch.isin(tokens, ids)


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
