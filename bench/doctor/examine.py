"""All checks in order. Nothing here loads a model's weights or fetches data."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import compat, sources
from bench.config import RunConfig
from bench.doctor.report import Check, Diagnosis
from bench.doctor.subject import Subject
from bench.errors import UserError

Checks = Callable[[Subject], Iterator[Check]]


def examine(config: RunConfig, out: Path) -> Diagnosis:
    """Everything about a run of `config` into the folder `out` that seconds can tell."""
    started = time.perf_counter()
    compat.prepare()
    try:
        given = sources.of_config(config)
    except UserError as error:
        given, broken = sources.Sources(), [Check("sources", "fail", str(error))]
    else:
        broken = []
    with sources.using(given):
        found = (*broken, *_checks(Subject(config, out)))
    return Diagnosis(config.name, found, time.perf_counter() - started)


def _checks(subject: Subject) -> Iterator[Check]:
    from bench.doctor import data, hours, machine, packages, pair, plugins, tokens

    parts: tuple[Checks, ...] = (
        packages.checks,
        machine.checks,
        pair.checks,
        tokens.checks,
        data.checks,
        plugins.checks,
        plugins.rehearsals,
        hours.checks,
    )
    for part in parts:
        yield from part(subject)
