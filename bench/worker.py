"""The process of one suite: `python -m bench.worker JOB.json` writes one cell per SAE."""

import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import backoff, compat, registry
from bench.allocator import keep_freed_memory
from bench.errors import UserError
from bench.executor import CANNOT_WRITE, LIFELINE_ENV, NOT_WRITTEN, SCRATCH, SuiteJob, failed
from bench.files import write_atomic
from bench.keys import versions
from bench.ledger import PlannedCell
from bench.result import CELL_FILE, Cell, MetricValue, State, UnitValue
from bench.strict import build
from bench.suite import Failed, Scored, Skipped

if TYPE_CHECKING:
    from bench.context import EvalContext
    from bench.suite import Metric, SaeHandle, Suite

LOG = logging.getLogger("bench.worker")
SAE_BENCH_FILE = "saebench.json"
SHARED = "shared"
"""Folder of what is computed once for all SAEs, seeds and runs."""


def main(argv: list[str]) -> None:
    """Run the job; a failure is a cell's state, not an exit status."""
    _end_with_the_run()
    compat.prepare()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    job = SuiteJob.load(Path(argv[0]))
    try:
        _run(job)
    except OSError as error:  # of a cell that cannot be written; all else has become a cell
        LOG.error("%s: %s", NOT_WRITTEN, error)
        sys.exit(CANNOT_WRITE)


def evaluate(job: SuiteJob, suite: "Suite", ctx: "EvalContext") -> None:
    """Score every SAE of the job; each cell is written as soon as it is known.

    Raises OSError where that is impossible.
    """
    ready = [(cell, handle) for cell in job.cells if (handle := _handle(job, cell, suite))]
    adjusted: dict[str, int] = {}
    while ready:
        too_large = _evaluate(job, suite, ctx, ready, adjusted)
        if too_large:
            suite, adjusted = backoff.with_smaller_batches(suite, adjusted)
            LOG.warning("%s: out of memory, goes on with %s", job.suite, adjusted)
        ready = too_large + ready


def _evaluate(
    job: SuiteJob,
    suite: "Suite",
    ctx: "EvalContext",
    ready: list[tuple[PlannedCell, "SaeHandle"]],
    adjusted: dict[str, int],
) -> list[tuple[PlannedCell, "SaeHandle"]]:
    """Score SAEs, taking them out of `ready`, up to an exception; those to try in smaller batches.

    Those behind an exception stay in `ready`.
    """
    too_large: list[tuple[PlannedCell, SaeHandle]] = []

    def fail(error: Exception) -> None:
        one = ready.pop(0)
        if backoff.is_out_of_memory(error) and backoff.can_lower(suite):
            too_large.append(one)
        else:
            _fail(job, one[0], error, adjusted)

    def fail_silent() -> None:
        fail(RuntimeError(f"suite {job.suite!r} gave no result for this SAE"))

    results = suite.run(ctx, [handle for _, handle in ready])
    while ready:
        try:
            answer = next(results)
        except StopIteration:
            fail_silent()
            continue
        except Exception as error:  # the generator is over: go on with the SAEs behind this one
            fail(error)
            break
        if not isinstance(answer, Scored | Failed | Skipped):
            fail(TypeError(f"suite {job.suite!r} gave {answer!r}, which is no result"))
            break
        if answer.label not in [cell.sae.label for cell, _ in ready]:
            LOG.warning("%s: a result for %r, not asked for", job.suite, answer.label)
            continue
        while ready[0][0].sae.label != answer.label:  # never take one SAE's numbers for another's
            fail_silent()
        if isinstance(answer, Failed):
            fail(answer.error)
            continue
        cell, _ = ready.pop(0)
        if isinstance(answer, Skipped):
            _skip(job, cell, answer.reason)
        else:
            LOG.info("%s on %s: %.1f s", job.suite, answer.label, answer.wall_s)
            _write(job, cell, answer, suite.metrics, adjusted)
    if too_large:
        backoff.free_memory()
    return too_large


def to_cell(
    job: SuiteJob,
    planned: PlannedCell,
    scored: Scored,
    declared: "tuple[Metric, ...]",
    adjusted: dict[str, int] | None = None,
) -> Cell:
    """A suite's answer as a cell: complete and in range, or not `ok` with the reason.

    `adjusted` are the settings that were lowered to make it fit into memory.
    """
    undeclared = sorted(set(scored.metrics) - {m.name for m in declared})
    if undeclared:
        raise ValueError(f"suite {job.suite!r} does not declare {', '.join(undeclared)}")
    for unit in scored.units:
        if problem := _illegal(unit.value):
            raise ValueError(f"{unit.metric} of {unit.unit_kind} {unit.unit!r} {problem}")
    values = tuple(_checked(metric, scored) for metric in declared)
    state, reason = _state(values, scored)
    return Cell(
        cell_key=planned.key,
        suite=job.suite,
        sae=planned.sae,
        state=state,
        engine=job.engine,
        data_revision=job.data_revision,
        eval_seed=job.seed,
        metrics=values,
        units=tuple(UnitValue(*unit) for unit in scored.units),
        reason=reason,
        adjusted=dict(adjusted or {}),
        wall_s=scored.wall_s,
        work=scored.work,
        versions=versions(),
    )


def _checked(metric: "Metric", scored: Scored) -> MetricValue:
    value = scored.metrics.get(metric.name)
    note = scored.reasons.get(metric.name, "")
    reason = note or "the suite gave no value"
    if value is not None and (problem := _illegal(value)):
        value, reason = None, problem
    elif value is not None and not metric.low <= value <= metric.high:
        value, reason = None, f"{value:g} is outside [{metric.low:g}, {metric.high:g}]"
    return MetricValue(
        metric.name, value, metric.direction, metric.headline, note if value is not None else reason
    )


def _illegal(value: object) -> str | None:
    """What is wrong with a value that JSON has to hold as a number."""
    if not isinstance(value, int | float):
        return f"is of type {type(value).__name__}, not a number"
    return None if math.isfinite(value) else f"is {value}"


def _state(values: tuple[MetricValue, ...], scored: Scored) -> tuple[State, str]:
    if scored.invalid:
        return "invalid", scored.invalid
    missing = [f"{v.name}: {v.reason}" for v in values if v.headline and v.value is None]
    return ("failed", "; ".join(missing)) if missing else ("ok", "")


def _write(
    job: SuiteJob,
    planned: PlannedCell,
    scored: Scored,
    metrics: "tuple[Metric, ...]",
    adjusted: dict[str, int],
) -> None:
    try:
        cell = to_cell(job, planned, scored, metrics, adjusted)
        files = scored.files
        if scored.saebench is not None:
            files = files | {SAE_BENCH_FILE: scored.saebench}
        for name, content in files.items():
            if Path(name).name != name or not name.strip(".") or name == CELL_FILE:
                raise ValueError(f"suite {job.suite!r}: {name!r} is no name for a file of a cell")
            write_atomic(planned.folder / name, json.dumps(content, indent=1))
        planned.save(cell)
    except OSError:
        raise
    except Exception as error:
        _fail(job, planned, error, adjusted)


def _fail(
    job: SuiteJob, planned: PlannedCell, error: Exception, adjusted: dict[str, int] | None = None
) -> None:
    LOG.error("%s on %s failed", job.suite, planned.sae.label, exc_info=error)
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    detail = "".join(traceback.format_exception(error))
    cell = failed(job, planned, " ".join(reason.split()), detail)
    planned.save(replace(cell, adjusted=dict(adjusted or {})))


def _skip(job: SuiteJob, planned: PlannedCell, reason: str) -> None:
    LOG.warning("%s on %s skipped: %s", job.suite, planned.sae.label, reason)
    planned.save(replace(failed(job, planned, reason), state="skipped"))


def _handle(job: SuiteJob, planned: PlannedCell, suite: "Suite") -> "SaeHandle | None":
    """The SAE as saved, or None after its cell was settled without it."""
    from bench.checkpoint import load_sae
    from bench.suite import SaeHandle

    kind = planned.sae.hook_name.rpartition(".")[2]
    if kind not in suite.hooks:
        can = ", ".join(suite.hooks)
        _skip(job, planned, f"suite {job.suite!r} can only score {can}, not {kind}")
        return None
    try:
        return SaeHandle(
            planned.sae.label, load_sae(planned.sae_dir, job.device), asdict(planned.sae)
        )
    except Exception as error:
        _fail(job, planned, error)
        return None


def _run(job: SuiteJob) -> None:
    try:
        suite, ctx = _suite(job), _context(job)
    except Exception as error:
        for cell in job.cells:
            _fail(job, cell, error)
        return
    evaluate(job, suite, ctx)


def _end_with_the_run() -> None:
    """End this process, and what it has started, as soon as the run that started it is no more."""
    lifeline = os.environ.get(LIFELINE_ENV)
    if lifeline is None:
        return

    def wait() -> None:
        os.read(int(lifeline), 1)  # the other end is closed by the kernel at the latest
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _suite(job: SuiteJob) -> "Suite":
    suite_class = registry.load("suites", job.suite)
    return suite_class(build(suite_class.Config, job.config, f"suites.{job.suite}"))


def _context(job: SuiteJob) -> "EvalContext":
    import torch

    from bench.context import EvalContext
    from bench.datasets import hub_for
    from bench.models import resolve

    torch.set_num_threads(1)
    keep_freed_memory()
    spec = resolve(job.model, job.instruct)
    hub = hub_for(spec, job.cache_dir)
    return EvalContext(
        spec=spec,
        hub=hub,
        seed=job.seed,
        work=job.work / SCRATCH[1],
        artifacts=job.work / SCRATCH[0],
        device=job.device,
        dtype=job.dtype,
        engine=job.engine,
        cache_gb=job.cache_gb,
        cache_dir=job.cache_dir / SHARED,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
