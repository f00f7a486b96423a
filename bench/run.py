"""The pipeline: train every variant on the same activations, score all, collect the cells."""

from dataclasses import asdict
from pathlib import Path

import yaml

from bench import compat, ledger, preflight
from bench.config import RunConfig
from bench.files import write_atomic
from bench.progress import Progress
from bench.result import STORE, Cell

CACHE = ".cache"
"""Folder beside the run folders that holds data sets written once."""


def run(config: RunConfig, out: Path, progress: Progress) -> list[Cell]:
    """Train and score everything in `config` into the run folder `out`; the cells, also the failed.

    What an earlier run finished with the same content is reused. Raises UserError before any work
    if the run cannot succeed.
    """
    compat.prepare()
    from bench.datasets import hub_for
    from bench.executor import run_suites
    from bench.models import resolve
    from bench.plan import plan_cells, suite_jobs
    from bench.train import train_all

    out = out.resolve()  # suites run in folders of their own, where a relative path leads elsewhere
    preflight.check(config, out)
    store, cache = out.parent / STORE, out.parent / CACHE
    spec = resolve(config.model, config.instruct)
    hub = hub_for(spec, cache)
    save_config(config, out)
    sae_dirs = train_all(config, spec, hub, out, progress)
    cells = plan_cells(config, spec, hub.revision, sae_dirs, store)
    ledger.record(out, cells)
    jobs = suite_jobs(config, cells, hub.revision, out / "work", cache)
    run_suites(jobs, config.workers, progress)
    return ledger.close(out, config.name, cells)


def save_config(config: RunConfig, out: Path) -> None:
    """Write the whole config, every default included, to out/config.yaml."""
    plain = yaml.safe_load(yaml.dump(asdict(config), Dumper=_Dumper))
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
