"""Every check that can be made in seconds, before anything long; all problems are told at once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from bench import compat, precision, registry, training_log
from bench.config import RunConfig
from bench.errors import UserError
from bench.models import ModelSpec, check_pair, on_side, resolve
from bench.strict import build

CACHE = ".cache"
"""Folder beside the run folders for what runs share."""
MIN_FREE_BYTES = 2 * 1024**3
"""sae_bench's activation caches alone take up to 250 MB per suite on the smallest model."""


def check(config: RunConfig, out: Path) -> None:
    """Raise one UserError that lists everything that would make the run fail later."""
    compat.prepare()
    from bench import preflight_stream

    problems = [
        *_out(out),
        *_models(config),
        *_plugins(config),
        *_device(config.device),
        *filter(None, [precision.problem(config.device, config.dtype)]),
        *preflight_stream.problems(config, resolve(config.model)),
        *_loggers(config),
    ]
    if problems := problems or [*_rehearsals(config, out.resolve().parent / CACHE)]:
        raise UserError("; ".join(problems))


def _out(out: Path) -> Iterator[str]:
    existing = next(p for p in [out, *out.resolve().parents] if p.exists())
    if not existing.is_dir():
        yield f"out={str(out)!r}: {existing} is a file"
        return
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        yield f"out={str(out)!r}: {free / 1e9:.1f} GB free, needs {MIN_FREE_BYTES / 1e9:.1f} GB"


def _models(config: RunConfig) -> Iterator[str]:
    """The model's files, and for each suite the other side of the pair."""
    spec = resolve(config.model)
    if not _is_there(spec):
        yield f"model={spec.name!r}: {spec.source} is missing, make it with `nano build`"
        return
    for suite in config.suites:
        side = registry.describe("suites", suite).attributes["side"]
        try:
            other = on_side(spec, side)
            if other != spec:
                check_pair(spec, other, config.hook_name)
        except UserError as error:
            yield f"suites.{suite}: {error}"


def _plugins(config: RunConfig) -> Iterator[str]:
    """Each plugin is imported and its settings made once, so that a broken one fails here."""
    from bench.roster import roster

    spec = resolve(config.model)
    try:
        if _is_there(spec):
            roster(config, spec, data_revision="")
    except UserError as error:
        yield str(error)
    for name, fields in config.suites.items():
        try:
            build(registry.load("suites", name).Config, fields, f"suites.{name}")
        except UserError as error:
            yield str(error)
        except ValueError as error:  # what a Config says of a value that it does not accept
            yield f"suites.{name}: {error}"


def _rehearsals(config: RunConfig, cache: Path) -> Iterator[str]:
    """A quick check of each variant, with the settings that the run gives it."""
    from bench.check.kit import preflight_problems

    done = []
    for variant in config.variants:
        if (variant.name, variant.config) not in done:
            done.append((variant.name, variant.config))
            yield from preflight_problems(variant.name, variant.config, cache)


def _is_there(spec: ModelSpec) -> bool:
    return not spec.is_local or Path(spec.source).is_dir()


def _device(device: str) -> Iterator[str]:
    import torch

    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        yield f"device={device!r}: this machine has {torch.cuda.device_count()} CUDA devices"
    if kind == "mps" and not torch.backends.mps.is_available():
        yield "device='mps': is not available on this machine"


def _loggers(config: RunConfig) -> Iterator[str]:
    try:
        training_log.check(config.train.log_to)
    except UserError as error:
        yield str(error)
