"""The cells of suites that a run leaves out on request: skipped, each with the reason.

Their keys are their own, so that the suite runs as soon as what it lacks is there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import registry
from bench.checkpoint import read_info, read_record
from bench.config import RunConfig
from bench.keys import content_key, versions
from bench.ledger import FAILED, PlannedCell
from bench.plan import engine_of
from bench.result import STORE, Cell, MetricValue
from bench.suite import Metric


def skipped_cells(
    config: RunConfig, reasons: Mapping[str, str], sae_dirs: Sequence[Path], out: Path
) -> list[PlannedCell]:
    """Write and return a skipped cell for every SAE and suite in `reasons` (suite -> why)."""
    return [
        _skipped(config, suite, reason, sae_dir, out)
        for suite, reason in reasons.items()
        for sae_dir in sae_dirs
    ]


def _skipped(config: RunConfig, suite: str, reason: str, sae_dir: Path, out: Path) -> PlannedCell:
    key = content_key(["left out", suite, reason, read_record(sae_dir)])
    info, folder = read_info(sae_dir), out.parent / STORE / key
    planned = PlannedCell(key, suite, info, sae_dir, folder, out / FAILED / key)
    metrics: tuple[Metric, ...] = registry.load("suites", suite).metrics
    cell = Cell(
        cell_key=key,
        suite=suite,
        sae=info,
        state="skipped",
        engine=engine_of(config, suite),
        data_revision="",
        eval_seed=config.eval_seed,
        metrics=tuple(
            MetricValue(m.name, None, m.direction, m.headline, reason)
            for m in metrics
            if m.headline
        ),
        reason=reason,
        versions=versions(),
    )
    planned.save(cell)
    return planned
