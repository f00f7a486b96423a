"""What sae_bench's result files hold: where each metric and unit is, and what it is worth.

Written against sae_bench 0.6.0 and the published files of earlier versions.
"""

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from bench.result import UnitValue

MISSING = -1
"""What sae_bench writes where it met a NaN (core) or computed nothing (all-latent probes)."""


class Source(NamedTuple):
    """Where one of our metrics is in a file."""

    name: str
    path: str
    """`category.key` below `eval_result_metrics`."""
    direction: Literal["higher", "lower", "none"]
    headline: bool = False
    fraction: bool = False
    """True if only values in [0, 1] are possible."""


class Absent(NamedTuple):
    """A headline metric that no file holds in a usable form."""

    name: str
    direction: Literal["higher", "lower"]
    reason: str


class Format(NamedTuple):
    """The result files of one suite."""

    suite: str
    sources: Callable[[dict[str, Any]], list[Source]]
    """Metrics to read, given `eval_result_metrics`."""
    units: Callable[[dict[str, Any]], list[UnitValue]]
    """Units in a whole file. Raises KeyError, TypeError, ValueError or AttributeError for another
    form."""
    absent: tuple[Absent, ...] = ()
    seeded: bool = True
    """False if sae_bench never uses the `random_seed` that it stores."""


def _core(metrics: dict[str, Any]) -> list[Source]:
    behavior, performance = "model_behavior_preservation", "model_performance_preservation"
    quality, legacy = "reconstruction_quality", "explained_variance_legacy"
    # older files have only the legacy formula, under the plain name
    has_both = legacy in metrics[quality]
    plain = "explained_variance" if has_both else legacy
    sources = [
        Source("ce_loss_score", f"{performance}.ce_loss_score", "higher", headline=True),
        Source("ce_loss_with_sae", f"{performance}.ce_loss_with_sae", "lower"),
        Source("ce_loss_without_sae", f"{performance}.ce_loss_without_sae", "none"),
        Source("ce_loss_with_ablation", f"{performance}.ce_loss_with_ablation", "none"),
        Source("saebench060_kl_div_score", f"{behavior}.kl_div_score", "none"),
        Source("saebench060_kl_div_with_sae", f"{behavior}.kl_div_with_sae", "none"),
        Source("saebench060_kl_div_with_ablation", f"{behavior}.kl_div_with_ablation", "none"),
        Source(f"saebench060_{plain}", f"{quality}.explained_variance", "none"),
        Source("saebench060_mse", f"{quality}.mse", "none"),
        Source("cossim", f"{quality}.cossim", "higher"),
        Source("l0", "sparsity.l0", "none"),
        Source("l1", "sparsity.l1", "none"),
        Source("l2_norm_in", "shrinkage.l2_norm_in", "none"),
        Source("l2_norm_out", "shrinkage.l2_norm_out", "none"),
        Source("l2_ratio", "shrinkage.l2_ratio", "none"),
        Source("relative_reconstruction_bias", "shrinkage.relative_reconstruction_bias", "none"),
        Source("frac_alive", "misc_metrics.frac_alive", "higher", fraction=True),
    ]
    if has_both:
        sources.append(Source(f"saebench060_{legacy}", f"{quality}.{legacy}", "none"))
    return sources


def _sparse_probing(metrics: dict[str, Any]) -> list[Source]:
    headline = "sae_top_1_test_accuracy"
    keys = {
        f"sae.{headline}",
        *(f"{side}.{key}" for side in ("sae", "llm") for key in metrics[side]),
    }
    return [_accuracy(path, headline) for path in sorted(keys) if _is_accuracy(path)]


def _is_accuracy(path: str) -> bool:
    return re.fullmatch(r"(sae|llm)\.\1(_top_\d+)?_test_accuracy", path) is not None


def _accuracy(path: str, headline: str) -> Source:
    side, _, key = path.partition(".")
    # probes on everything pick their best epoch on the test set (the top-k ones do not)
    name = key if "_top_" in key else f"saebench060_{key}"
    direction = "higher" if side == "sae" and name == key else "none"
    return Source(name, path, direction, headline=key == headline, fraction=True)


def _absorption(metrics: dict[str, Any]) -> list[Source]:
    return [
        Source(
            "mean_absorption_fraction",
            "mean.mean_absorption_fraction_score",
            "lower",
            headline=True,
            fraction=True,
        ),
        Source(
            "mean_full_absorption",
            "mean.mean_full_absorption_score",
            "lower",
            headline=True,
            fraction=True,
        ),
        Source("mean_num_split_features", "mean.mean_num_split_features", "lower"),
    ]


def _unlearning(metrics: dict[str, Any]) -> list[Source]:
    path = "unlearning.unlearning_score"
    return [Source("saebench060_unlearning_score", path, "higher", fraction=True)]


def _no_units(raw: dict[str, Any]) -> list[UnitValue]:
    return []


def _probe_units(raw: dict[str, Any]) -> list[UnitValue]:
    """Accuracy of every probe by class where the file has classes, else by data set."""
    n = int(raw["eval_config"]["probe_test_set_size"])
    classes = raw.get("eval_result_unstructured")
    if classes:
        return [
            UnitValue(metric, "class", f"{_dataset(dataset)}/{name}", float(value), n)
            for dataset, metrics in classes.items()
            for metric, by_class in metrics.items()
            if "_top_" in metric
            for name, value in by_class.items()
        ]
    return [
        UnitValue(metric, "dataset", _dataset(detail["dataset_name"]), float(value), n)
        for detail in raw.get("eval_result_details") or []
        for metric, value in detail.items()
        if "_top_" in metric and value is not None
    ]


def _dataset(name: str) -> str:
    return name.removesuffix("_results")


def _letter_units(raw: dict[str, Any]) -> list[UnitValue]:
    keys = {
        "mean_absorption_fraction": "mean_absorption_fraction",
        "full_absorption_rate": "mean_full_absorption",
    }
    return [
        UnitValue(
            metric,
            "letter",
            detail["first_letter"],
            float(detail[key]),
            int(detail["num_probe_true_positives"]),
        )
        for detail in raw.get("eval_result_details") or []
        for key, metric in keys.items()
        if key in detail
    ]


FORMATS = {
    "core": Format(
        suite="core",
        sources=_core,
        units=_no_units,
        absent=(
            Absent(
                "explained_variance",
                "higher",
                "sae_bench's formula is another: see saebench060_explained_variance",
            ),
        ),
        seeded=False,
    ),
    "sparse_probing": Format("sparse_probing", _sparse_probing, _probe_units),
    "absorption_first_letter": Format("absorption", _absorption, _letter_units, seeded=False),
    "unlearning": Format(
        "unlearning",
        _unlearning,
        _no_units,
        absent=(
            Absent(
                "unlearning_score",
                "higher",
                "sae_bench's files do not hold the answers that it is cross-fitted on",
            ),
        ),
    ),
}
"""By `eval_type_id`."""
