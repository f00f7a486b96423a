"""A config and trained SAEs become cells with content keys, and cells become one job per suite."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import registry
from bench.checkpoint import read_info, read_record
from bench.config import RunConfig
from bench.executor import SuiteJob
from bench.keys import CellContent, source_key, versions
from bench.ledger import PlannedCell
from bench.models import ModelSpec, on_side, weights_key
from bench.suite import Engine, Suite

WORKER = Path(__file__).with_name("worker.py")


def plan_cells(
    config: RunConfig, spec: ModelSpec, data_revision: str, sae_dirs: Sequence[Path], store: Path
) -> list[PlannedCell]:
    """Every suite on every SAE, suite by suite; the cells' folders lie below `store`."""
    records = [read_record(sae_dir) for sae_dir in sae_dirs]
    cells = []
    for suite in config.suites:
        content = _content(config, spec, data_revision, suite)
        for sae_dir, record in zip(sae_dirs, records):
            key = replace(content, sae=record).key()
            cells.append(PlannedCell(key, suite, read_info(sae_dir), sae_dir, store / key))
    return cells


def suite_jobs(
    config: RunConfig, cells: Sequence[PlannedCell], data_revision: str, work: Path, cache: Path
) -> list[SuiteJob]:
    """One job per suite that still has cells to compute; finished cells are left alone."""
    jobs = []
    for suite, fields in config.suites.items():
        todo = tuple(cell for cell in cells if cell.suite == suite and not cell.is_settled)
        if todo:
            job = SuiteJob(
                suite=suite,
                config=fields,
                model=config.model,
                instruct=config.instruct,
                cells=todo,
                work=work / suite,
                cache_dir=cache,
                seed=config.eval_seed,
                data_revision=data_revision,
                device=config.device,
                dtype=config.dtype,
                engine=engine_of(config, suite),
                cache_gb=config.eval_cache_gb,
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
        suite_config=config.suites[suite],
        sources=(source_key(plugin.path), source_key(WORKER)),
        data_revision=data_revision,
        model=weights_key(on_side(spec, plugin.attributes["side"])),
        versions=versions(),
        eval_seed=config.eval_seed,
        engine=engine_of(config, suite),
        device=config.device,
        dtype=config.dtype,
    )
