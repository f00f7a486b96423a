"""A sae_bench result file as one of our cells. Its form is checked; nothing is assumed."""

import json
import math
import re
from typing import Any

from bench import validity
from bench.errors import UserError
from bench.keys import content_key
from bench.models import MODELS
from bench.result import Cell, MetricValue, SaeInfo
from bench.saebench_json import FORMATS, MISSING, Format, Source

CUSTOM_ID = "custom_sae"
"""The id that sae_bench gives every SAE outside SAELens' list; its release name is unique then."""
LAYER = re.compile(r"(?:layer_|blocks\.)(\d+)")
IMPORT_VERSION = 2
"""Part of the cell key: raise it when the same file gives another cell."""


def to_cell(raw: dict[str, Any]) -> Cell:
    """The cell in a parsed file of a known `eval_type_id`. Raises UserError for a wrong form."""
    form = FORMATS[raw["eval_type_id"]]
    try:
        return _build(raw, form)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        kind = f"{type(error).__name__}: {error}"
        raise UserError(f"is not a {form.suite} result of sae_bench: {kind}") from error


def _build(raw: dict[str, Any], form: Format) -> Cell:
    config = _mapping(raw, "eval_config")
    results = _mapping(raw, "eval_result_metrics")
    for name in results:
        _mapping(results, name, "eval_result_metrics.")
    sources = form.sources(results)
    numbers = {source.name: _number(results, source) for source in sources}
    metrics = [_metric(source, numbers[source.name]) for source in sources]
    metrics += [MetricValue(a.name, None, a.direction, True, a.reason) for a in form.absent]
    stated = {name: value for name, value in numbers.items() if _is_stated(name, value)}
    sae = _sae(raw, config, stated.get("l0"))
    evidence = validity.reasons(
        validity.facts(
            stated,
            train_tokens=_whole(_cfg(raw), "training_tokens"),
            train_steps=_whole(raw, "training_steps"),
            layers=_layers(raw),
        )
    )
    return Cell(
        cell_key=_key(raw),
        suite=form.suite,
        sae=sae,
        state="invalid" if evidence else "ok",
        engine="reference",
        data_revision="",
        eval_seed=_whole(config, "random_seed") if form.seeded else None,
        metrics=tuple(metrics),
        units=tuple(form.units(raw)),
        reason="; ".join(evidence),
        evidence=tuple(evidence),
        versions=_versions(raw),
    )


def _is_stated(name: str, value: float | None) -> bool:
    """Whether the value says something about the SAE."""
    # sae_bench's KL overflows in low precision for good SAEs too
    overflow = "_kl_div_" in name and value is not None and not math.isfinite(value)
    return value is not None and value != MISSING and not overflow


def _number(results: dict[str, Any], source: Source) -> float | None:
    """The value in the file as a float, NaN included; None where the file has none."""
    category, _, key = source.path.partition(".")
    value = results.get(category, {}).get(key)
    if value is None:
        return None
    where = f"eval_result_metrics.{source.path}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}={value!r}: must be a number")
    if source.fraction and value != MISSING and (value < 0 or value > 1):
        raise UserError(f"{where}={value}: must be in [0, 1]")
    return float(value)


def _metric(source: Source, value: float | None) -> MetricValue:
    key = source.path.rpartition(".")[2]
    if value is None:
        value, reason = None, f"the file has no {key}"
    elif value == MISSING:
        value, reason = None, f"sae_bench wrote {MISSING}: {key} was not computed, or was NaN"
    elif not math.isfinite(value):
        value, reason = None, f"{key} is {value}"
    else:
        reason = ""
    return MetricValue(source.name, value, source.direction, source.headline, reason)


def _sae(raw: dict[str, Any], config: dict[str, Any], l0: float | None) -> SaeInfo:
    cfg = _cfg(raw)
    model = _text(cfg, "model_name") or _text(config, "model_name")
    if not model:
        raise UserError("sae_cfg_dict.model_name is missing: cannot tell the model")
    hook_name = _text(cfg, "hook_name")
    if not hook_name:
        raise UserError("sae_cfg_dict.hook_name is missing: cannot tell where the SAE reads")
    spec = next((s for s in MODELS.values() if model in (s.name, s.source)), None)
    tokens = _whole(cfg, "training_tokens")
    return SaeInfo(
        label=_label(raw),
        role="imported",
        variant=(_text(cfg, "architecture") or "unknown").lower(),
        world=spec.world if spec else "real",
        model=spec.name if spec else model,
        hook_name=hook_name,
        d_in=_whole(cfg, "d_in"),
        d_sae=_whole(cfg, "d_sae"),
        l0=l0 if l0 is not None and math.isfinite(l0) else None,
        train_tokens=None if tokens == validity.UNSTATED_TOKENS else tokens,
    )


def _label(raw: dict[str, Any]) -> str:
    release, sae_id = _text(raw, "sae_lens_release_id"), _text(raw, "sae_lens_id")
    named = [part for part in (release, sae_id) if part and part != CUSTOM_ID]
    if not named:
        raise UserError("sae_lens_release_id is missing: cannot tell which SAE this is")
    return "/".join(named)


def _layers(raw: dict[str, Any]) -> dict[str, int]:
    """Every statement of the SAE's layer, by field."""
    cfg = _cfg(raw)
    stated = {"sae_cfg_dict.hook_layer": _whole(cfg, "hook_layer"), "layer": _whole(raw, "layer")}
    texts = {
        "sae_cfg_dict.hook_name": _text(cfg, "hook_name"),
        "sae_lens_release_id": _text(raw, "sae_lens_release_id"),
        "sae_lens_id": _text(raw, "sae_lens_id"),
    }
    for name, text in texts.items():
        match = LAYER.search(text or "")
        stated[name] = int(match[1]) if match else None
    return {name: layer for name, layer in stated.items() if layer is not None}


def _cfg(raw: dict[str, Any]) -> dict[str, Any]:
    """sae_cfg_dict with SAELens' nested metadata on the same level; empty where there is none."""
    if raw.get("sae_cfg_dict") is None:
        return {}
    cfg = _mapping(raw, "sae_cfg_dict")
    nested = cfg.get("metadata")
    return (nested if isinstance(nested, dict) else {}) | cfg


def _mapping(raw: dict[str, Any], name: str, where: str = "") -> dict[str, Any]:
    if not isinstance(raw.get(name), dict):
        raise UserError(f"{where}{name}={_short(raw.get(name))}: must be a mapping")
    return raw[name]


def _text(raw: dict[str, Any], name: str) -> str | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name}={_short(value)}: must be text")
    return value


def _whole(raw: dict[str, Any], name: str) -> int | None:
    value = raw.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise UserError(f"{name}={_short(value)}: must be a whole number")
    return int(value)


def _short(value: object) -> str:
    return repr(value)[:80]


def _versions(raw: dict[str, Any]) -> dict[str, str]:
    named = {"sae_lens": "sae_lens_version", "sae_bench_commit": "sae_bench_commit_hash"}
    return {name: text for name, key in named.items() if (text := _text(raw, key))}


def _key(raw: dict[str, Any]) -> str:
    # as text, because a file may hold NaN
    return content_key({"import": IMPORT_VERSION, "file": json.dumps(raw, sort_keys=True)})
