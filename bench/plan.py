"""A config and trained SAEs become cells with content keys, and cells become one job per suite."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import registry
from bench.checkpoint import read_info, read_record
from bench.config import RunConfig
from bench.executor import SuiteJob
from bench.job import SAES
from bench.journal import SaeRow
from bench.keys import CellContent, file_key, source_key, versions
from bench.ledger import FAILED, PlannedCell
from bench.models import ModelSpec, on_side, weights_key
from bench.pair import check_trained_on
from bench.result import STORE
from bench.roster import roster
from bench.suite import Engine, Suite

WORKER = Path(__file__).with_name("worker.py")


def plan_cells(
    config: RunConfig,
    spec: ModelSpec,
    revisions: Mapping[str, str],
    sae_dirs: Sequence[Path],
    out: Path,
) -> list[PlannedCell]:
    """Every suite on every SAE, suite by suite, of the run in folder `out`.

    `revisions` holds the state of the data that each suite reads.
    """
    store, failures = out.parent / STORE, out / FAILED
    records = [read_record(sae_dir) for sae_dir in sae_dirs]
    cells = []
    for suite in config.suites:
        content = _content(config, spec, revisions[suite], suite)
        for sae_dir, record in zip(sae_dirs, records):
            key = replace(content, sae=record).key()
            info = read_info(sae_dir)
            check_trained_on(info, spec)
            cells.append(PlannedCell(key, suite, info, sae_dir, store / key, failures / key))
    return cells


def sae_rows(config: RunConfig, spec: ModelSpec, data_revision: str, out: Path) -> list[SaeRow]:
    """The SAEs that the run in folder `out` will have, for its journal."""
    return [
        SaeRow(
            label=entry.label,
            role=entry.role,
            key=entry.key,
            folder=(out / SAES / entry.label).relative_to(out.parent).as_posix(),
        )
        for entry in roster(config, spec, data_revision)
    ]


def suite_jobs(
    config: RunConfig,
    cells: Sequence[PlannedCell],
    revisions: Mapping[str, str],
    work: Path,
    cache: Path,
) -> list[SuiteJob]:
    """One job per suite that still has cells to compute; what has ended is left alone."""
    jobs = []
    for suite, fields in config.suites.items():
        todo = tuple(cell for cell in cells if cell.suite == suite and cell.state() is None)
        if todo:
            job = SuiteJob(
                suite=suite,
                config=_absolute(fields),
                model=config.model,
                instruct=config.instruct,
                cells=todo,
                work=work / suite,
                cache_dir=cache,
                seed=config.eval_seed,
                data_revision=revisions[suite],
                device=config.device,
                dtype=config.dtype,
                engine=engine_of(config, suite),
                cache_gb=config.eval_cache_gb,
                timeout_s=config.cell_timeout_s,
            )
            jobs.append(job)
    return jobs


def engine_of(config: RunConfig, suite: str) -> Engine:
    """The engine that a suite will use: the config's, or its first where it has no such one."""
    has = registry.describe("suites", suite).attributes.get("engines", Suite.engines)
    return config.engine if config.engine in has else has[0]


def _content(config: RunConfig, spec: ModelSpec, data_revision: str, suite: str) -> CellContent:
    """What decides the cells of a suite, for no SAE yet."""
    plugin = registry.describe("suites", suite)
    return CellContent(
        sae={},
        suite=suite,
        suite_config={"fields": config.suites[suite], "files": _files_in(config.suites[suite])},
        sources=(source_key(plugin.path), source_key(WORKER)),
        data_revision=data_revision,
        model=weights_key(on_side(spec, plugin.attributes["side"])),
        versions=versions(),
        eval_seed=config.eval_seed,
        engine=engine_of(config, suite),
        device=config.device,
        dtype=config.dtype,
    )


def _files_in(fields: Any) -> list[str]:
    """Keys of the local files that a suite's settings name: a path is not their content."""
    if isinstance(fields, dict):
        return [key for name in sorted(fields) for key in _files_in(fields[name])]
    if isinstance(fields, list | tuple):
        return [key for item in fields for key in _files_in(item)]
    if not isinstance(fields, str) or not Path(fields).suffix or not Path(fields).is_file():
        return []
    return [file_key(Path(fields))]


def _absolute(fields: Any) -> Any:
    """The same settings with local files by their absolute path: a suite works elsewhere."""
    if isinstance(fields, dict):
        return {name: _absolute(value) for name, value in fields.items()}
    is_file = isinstance(fields, str) and Path(fields).suffix and Path(fields).is_file()
    return str(Path(fields).resolve()) if is_file else fields
