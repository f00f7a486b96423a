"""The pipeline: train every variant on the same activations, score all, collect the cells."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bench import compat, ledger, preflight, rates, sources
from bench.config import RunConfig
from bench.errors import RunStopped
from bench.files import write_atomic
from bench.journal import Journal, kept
from bench.lock import locked
from bench.mirror.pins import pin
from bench.progress import Progress
from bench.result import CACHE, Cell

if TYPE_CHECKING:
    from bench.executor import SuiteJob


def run(
    config: RunConfig,
    out: Path,
    progress: Progress,
    *,
    retry_failed: bool = False,
    skip_unavailable: bool = False,
) -> list[Cell]:
    """Train and score everything in `config` into the run folder `out`; the cells, also the failed.

    What an earlier run finished with the same content is reused; what failed in this folder stays
    failed, unless `retry_failed`; suites that cannot run here are left out, their cells skipped, if
    `skip_unavailable`. Raises UserError before any work if the run cannot succeed, or
    another one is in the folder; RunStopped where it cannot go on.
    """
    compat.prepare()
    out = out.resolve()  # suites run in folders of their own, where a relative path leads elsewhere
    with locked(out) as holder, sources.using(sources.of_config(config)):
        left_out = preflight.check(config, out, skip_unavailable=skip_unavailable)
        save_config(config, out)
        config = preflight.without(config, left_out)
        pin(config, out, out.parent / CACHE)
        progress = rates.Timed(progress, config, out.parent / CACHE)
        with kept(out, config.name, holder) as journal, _disk_told(out.parent):
            return _run(config, out, journal, journal.noting(progress), retry_failed, left_out)


def _run(
    config: RunConfig,
    out: Path,
    journal: Journal,
    progress: Progress,
    retry_failed: bool,
    left_out: Mapping[str, str],
) -> list[Cell]:
    from bench.datasets import hub_for
    from bench.executor import run_suites
    from bench.left_out import skipped_cells
    from bench.models import resolve
    from bench.plan import plan_cells, sae_rows, suite_jobs
    from bench.requirements import revisions
    from bench.texts import text_revision
    from bench.train import train_all

    cache = out.parent / CACHE
    spec = resolve(config.model, config.instruct)
    hub = hub_for(spec, cache)
    revision = text_revision(config.train, hub)
    journal.expect(sae_rows(config, spec, revision, out), config.suites)
    sae_dirs = train_all(config, spec, hub, out, progress, retry_failed=retry_failed)
    states = revisions(config, hub)
    cells = plan_cells(config, spec, states, sae_dirs, out)
    cells += skipped_cells(config, left_out, sae_dirs, out)
    if retry_failed:
        ledger.forget_failures(cells)
    journal.plan(cells)
    jobs = suite_jobs(config, cells, states, out / "work", cache)
    run_suites(jobs, config.workers, progress, journal.computing, _keep_set_up)
    return ledger.close(out, config.name, cells)


def _keep_set_up(job: "SuiteJob", seconds: float) -> None:
    """For the next estimate."""
    rates.keep_set_up(job.cache_dir, job.suite, job.engine, job.model, seconds)


@contextmanager
def _disk_told(results: Path) -> Iterator[None]:
    """Stop in one line where the disk is full, or a file of the results is out of reach."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunStopped(f"{error}: make room; what is finished is kept") from error
        name = error.filename
        if isinstance(name, str | bytes) and Path(os.fsdecode(name)).is_relative_to(results):
            raise RunStopped(f"{error}; what is finished is kept") from error
        raise


def save_config(config: RunConfig, out: Path) -> None:
    """Write the whole config, every default included, to out/config.yaml."""
    plain = yaml.safe_load(yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False))
    write_atomic(out / "config.yaml", yaml.safe_dump(plain, sort_keys=False))


class _Dumper(yaml.SafeDumper):
    """Tuples as lists."""


_Dumper.add_representer(tuple, _Dumper.represent_list)


def outline(config: RunConfig) -> list[str]:
    """What a run would do, one line per part."""
    n_saes = len(config.seeds) * len(config.variants)
    n_scored = n_saes + len(config.seeds) * len(config.controls) + len(config.saelens)
    train = config.train
    return [
        f"model     {config.model} at {config.hook_name}",
        f"train     {n_saes} SAEs of {train.d_sae} latents on {train.tokens:,} tokens each",
        *(f"          {_named(v.name, v.config, v.target_l0)}" for v in config.variants),
        f"controls  {', '.join(_named(c.name, {}, c.target_l0) for c in config.controls) or '-'}",
        *(f"imported  {s.path or f'{s.release}:{s.sae_id}'}" for s in config.saelens),
        f"seeds     {', '.join(map(str, config.seeds))}",
        f"suites    {', '.join(config.suites)}",
        f"engine    {config.engine}",
        f"cells     {n_scored * len(config.suites)}",
    ]


def _named(name: str, fields: dict, target_l0: float | None) -> str:
    settings = [f"{key}={value}" for key, value in fields.items()]
    if target_l0 is not None:
        settings.append(f"target L0 {target_l0:g}")
    return f"{name} ({', '.join(settings)})" if settings else name
