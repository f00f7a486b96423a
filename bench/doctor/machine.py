"""The device, its precision, memory and disk."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench import memory, precision
from bench.doctor.report import Check
from bench.doctor.subject import Subject
from bench.errors import UserError
from bench.estimate import disk_bytes, memory_bytes
from bench.shapes import shape_of

GB = 1e9


def checks(subject: Subject) -> Iterator[Check]:
    """Device first: memory means nothing on one that is not there."""
    found = device(subject)
    yield found
    yield dtype(subject)
    yield disk(subject)
    if found.state == "pass":
        yield ram(subject)


def device(subject: Subject) -> Check:
    """Whether the device exists."""
    import torch

    name = subject.config.device
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= count:
        message = f"device={name!r}: this machine has {count} CUDA devices"
        return Check("device", "fail", message, "`device: cpu`, or a torch built for its CUDA")
    if kind == "mps" and not torch.backends.mps.is_available():
        return Check("device", "fail", "device='mps': is not available on this machine")
    what = torch.cuda.get_device_name(name) if kind == "cuda" else f"torch {torch.__version__}"
    return Check("device", "pass", f"{name} ({what})")


def dtype(subject: Subject) -> Check:
    """Whether the precision can be computed with there."""
    config = subject.config
    problem = precision.problem(config.device, config.dtype)
    if problem:
        return Check("dtype", "fail", problem, "`dtype: float32`, or `device: cuda`")
    return Check("dtype", "pass", config.dtype)


def disk(subject: Subject) -> Check:
    """Room for what the run writes."""
    out = subject.out
    try:
        # finished cells and caches go beside the run folder
        existing = _existing(out.resolve())
        problem = _unusable(existing) or _unusable(_existing(out.resolve().parent))
    except OSError as error:  # a name that no file system takes
        existing, problem = out, error.strerror
    if problem:
        return Check("disk", "fail", f"out={str(out)!r}: {problem}", "give another --out")
    free, need = shutil.disk_usage(existing).free, disk_bytes(subject.config, subject.spec)
    if free < need:
        message = f"out={str(out)!r}: {free / GB:.1f} GB free, needs {need / GB:.1f} GB"
        fix = "give --out on another disk, or lower activation_cache_gb and eval_cache_gb"
        return Check("disk", "fail", message, fix)
    return Check("disk", "pass", f"{free / GB:.1f} GB free, needs about {need / GB:.1f} GB")


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there. Raises OSError for an illegal name."""
    return next(p for p in (path, *path.parents) if p.exists())


def _unusable(path: Path) -> str | None:
    """Why nothing can be written below an existing path."""
    if not path.is_dir():
        return f"{path} is a file"
    return None if os.access(path, os.W_OK | os.X_OK) else f"{path} may not be written to"


def ram(subject: Subject) -> Check:
    """Memory at the worst moment of training."""
    config, spec = subject.config, subject.spec
    try:
        need = memory_bytes(config, spec)
    except UserError:  # told by the check of the plugins
        return Check("memory", "skip", "a variant cannot be loaded")
    if need is None or shape_of(spec) is None:
        return Check("memory", "skip", f"the sizes of model {spec.name!r} are not known yet")
    free = memory.available(config.device)
    if free is None:
        return Check("memory", "skip", f"needs about {need / GB:.1f} GB, free memory is not known")
    if need > free:
        from bench.preflight_stream import too_much

        return Check("memory", "fail", too_much(config, spec, need, free))
    message = f"{free / GB:.1f} GB free on {config.device}, training needs about {need / GB:.1f} GB"
    return Check("memory", "pass", message)
