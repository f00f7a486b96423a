"""Runs the points on a plugin, one after the other, and leaves the process as it was."""

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import compat, registry
from bench.check.report import Finding, Point, Report

STATE_POINT = "state"
DEPEND_ON_STRENGTH = ("alive", "descent")
"""Points that settings meant for a long training may fail in a short one."""


def check(
    name_or_file: str, *, quick: bool = False, settings: dict[str, Any] | None = None
) -> Report:
    """Everything that holds or not for a variant or suite, given by its name or its file.

    `quick` leaves out what takes more than a moment; `settings` are the fields of a variant's
    Config to rehearse it with. Raises UserError only for what is no plugin at all.
    """
    plugin = find(name_or_file)
    if plugin.kind == "suites":
        return _check_suite(plugin, quick)
    return check_variant(plugin, quick=quick, settings=settings or {})


def find(name_or_file: str) -> registry.Plugin:
    """The plugin of that name, or in that file. Raises UserError with file and line if broken."""
    if name_or_file.endswith(".py"):
        path = Path(name_or_file).resolve()
        for kind in registry.BASES:
            if path.parent == registry.ROOT / kind and path.stem in registry.names(kind):
                return registry.describe(kind, path.stem)
        return registry.add_file(path)
    kinds: list[registry.Kind] = [k for k in registry.BASES if name_or_file in registry.names(k)]
    return registry.describe(kinds[0] if kinds else "variants", name_or_file)


def check_variant(plugin: registry.Plugin, *, quick: bool, settings: dict[str, Any]) -> Report:
    """The whole life of a variant."""
    compat.prepare()
    from bench.check import loss_points, saved_points, source_points, training_points
    from bench.check.rehearsal import Rehearsal

    points = (
        *source_points.POINTS,
        *loss_points.POINTS,
        *training_points.POINTS[:-1],
        *saved_points.POINTS,
        *training_points.POINTS[-1:],
    )
    with tempfile.TemporaryDirectory() as folder:
        return _go_through(plugin, points, Rehearsal(plugin, settings, Path(folder)), quick)


def _check_suite(plugin: registry.Plugin, quick: bool) -> Report:
    compat.prepare()
    from bench.check import source_points, suite_points

    points = (*source_points.POINTS, *suite_points.POINTS)
    with tempfile.TemporaryDirectory() as folder:
        rehearsal = suite_points.SuiteRehearsal(plugin, Path(folder))
        return _go_through(plugin, points, rehearsal, quick)


def _go_through(
    plugin: registry.Plugin, points: Sequence[Point[Any]], rehearsal: Any, quick: bool
) -> Report:
    started, findings = time.perf_counter(), list[Finding]()
    chosen = [p for p in points if not (quick and p.is_slow)]
    with _as_it_was() as changed:
        for point in chosen:
            findings += _findings(point, rehearsal, {f.point: f.status for f in findings})
        findings += _state(changed())
    wall_s = time.perf_counter() - started
    return Report(plugin.name, plugin.kind, str(plugin.path), tuple(findings), wall_s)


def _findings(point: Point[Any], rehearsal: Any, so_far: dict[str, str]) -> list[Finding]:
    """At least one finding; the first failure of a point is enough, and hides its warnings."""
    from bench.check.source_points import explained

    broken = [n for n in point.needs if so_far.get(n) in ("fail", "skip")]
    if broken:
        return [Finding(point.name, "skip", point.says, f"because of {', '.join(broken)}")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's, or a plugin's own
            problems = list(point.find(rehearsal))
    except Exception as error:  # a plugin is foreign code: anything can come out of it
        message = explained(rehearsal.plugin.path, error)
        return [Finding(point.name, "fail", point.says, message, "correct the line that is named")]
    problems.sort(key=lambda p: p.is_warning)
    for problem in problems[:1]:
        status = "warn" if problem.is_warning else "fail"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        fix = problem.fix or point.fix
        return [Finding(point.name, status, point.says, problem.message + more, fix)]
    return [Finding(point.name, "pass", point.says)]


class _State(NamedTuple):
    """What belongs to the whole process."""

    gradients: bool
    dtype: Any
    threads: int
    folder: str


@contextlib.contextmanager
def _as_it_was() -> Iterator[Any]:
    """Put the process back; gives a function that names what a plugin has changed."""
    import torch

    def now() -> _State:
        n, dtype = torch.get_num_threads(), torch.get_default_dtype()
        return _State(torch.is_grad_enabled(), dtype, n, os.getcwd())

    before = now()
    torch.set_num_threads(1)  # in tensors so small, threads only wait for one another
    chosen = now()
    with torch.random.fork_rng([]):
        try:
            yield lambda: [n for n, a, b in zip(_State._fields, chosen, now()) if a != b]
        finally:
            torch.set_grad_enabled(before.gradients)
            torch.set_default_dtype(before.dtype)
            torch.set_num_threads(before.threads)
            os.chdir(before.folder)


def _state(changed: list[str]) -> list[Finding]:
    says = "the settings of the process are left alone"
    if not changed:
        return [Finding(STATE_POINT, "pass", says)]
    words = {
        "gradients": "torch.set_grad_enabled",
        "dtype": "torch.set_default_dtype",
        "threads": "torch.set_num_threads",
        "folder": "os.chdir",
    }
    message = f"changes {', '.join(words[n] for n in changed)} for every other SAE of the run"
    return [Finding(STATE_POINT, "fail", says, message, "use a context manager, or leave it out")]


def preflight_problems(name: str, settings: dict[str, Any], cache: Path) -> Iterator[str]:
    """What a quick check of a variant finds wrong, one line each; a pass is remembered.

    `cache` is a folder that runs share; where the folder that holds it does not exist yet, it is
    not made: a dry run writes nothing. The key holds the sources of the variant, of its base and
    of the kit, and the versions of packages, so that nothing stale is believed.
    """
    from bench.files import write_atomic
    from bench.keys import content_key, source_key, versions

    plugin = registry.describe("variants", name, settings)
    sources = [plugin.path, *Path(__file__).parent.glob("*.py")]
    if plugin.base:
        sources.append(registry.describe("variants", plugin.base).path)
    keys = sorted(map(source_key, sources))
    passed = cache / "checks" / content_key([name, keys, settings, versions()])
    if passed.is_file():
        return
    report = check_variant(plugin, quick=True, settings=settings)
    if any(f.point == "build" for f in report.failed):  # settings may be for more latents
        default = {"base": plugin.base} if plugin.base else {}
        report = check_variant(plugin, quick=True, settings=default)
    failed = [f for f in report.failed if not (settings and f.point in DEPEND_ON_STRENGTH)]
    for finding in failed:
        yield f"variant {name!r}: {finding.point}: {finding.message}; fix: {finding.fix}"
    if not failed and cache.parent.is_dir():
        with contextlib.suppress(OSError):  # remembering only saves time; others say what is wrong
            write_atomic(passed, "")
