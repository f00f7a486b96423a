"""The doctor's checks before a run: nothing long starts while a needed one fails."""

import logging
from dataclasses import replace
from pathlib import Path

from bench.config import RunConfig
from bench.doctor.report import Diagnosis
from bench.errors import UserError

FORECAST = ("memory", "disk", "time")
"""Checks that say what a run takes."""
LOG = logging.getLogger(__name__)


def check(config: RunConfig, out: Path, *, skip_unavailable: bool = False) -> dict[str, str]:
    """Raise one UserError that lists everything that would make the run fail later.

    With `skip_unavailable` suites that cannot run here do not stop the others: suite -> why, for
    those that are to be left out.
    """
    from bench.doctor.examine import examine

    return _left_out(config, examine(config, out), skip_unavailable)


def forecast(config: RunConfig, out: Path, *, skip_unavailable: bool = False) -> list[str]:
    """What a run would take and leave out, a line each. Raises UserError where it cannot start."""
    from bench.doctor.examine import examine

    found = examine(config, out)
    left_out = _left_out(config, found, skip_unavailable)
    told = [c for c in found.checks if c.name in FORECAST]
    return [
        *(f"{check.name:9} {check.message}" for check in told),
        *(f"left out  {suite}: {reason}" for suite, reason in left_out.items()),
    ]


def without(config: RunConfig, suites: dict[str, str]) -> RunConfig:
    """The config with these suites left out."""
    kept = {name: fields for name, fields in config.suites.items() if name not in suites}
    return replace(config, suites=kept)


def _left_out(config: RunConfig, found: Diagnosis, skip_unavailable: bool) -> dict[str, str]:
    suites = list(config.suites)
    if problems := found.blocking(suites, skip_unavailable=skip_unavailable):
        could_go_on = not skip_unavailable and not found.blocking(suites, skip_unavailable=True)
        hint = ["the other suites can run: --skip-unavailable"] if could_go_on else []
        raise UserError("; ".join(dict.fromkeys([*problems, *hint])))
    for warning in (c for c in found.checks if c.state == "warn"):
        LOG.warning("%s: %s", warning.name, warning.message)
    return found.unavailable()
