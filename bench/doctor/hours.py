"""How long the run will take, and from what that is known."""

from collections.abc import Iterator

from bench.doctor.report import Check
from bench.doctor.subject import Subject
from bench.errors import UserError
from bench.estimate import Hours, hours


def checks(subject: Subject) -> Iterator[Check]:
    """An estimate refuses nothing: it passes, or there is none."""
    try:
        found = hours(subject.config, subject.spec, subject.out)
    except (UserError, RuntimeError, AssertionError):  # told by the plugins, or by the device
        found = None
    if found is None:
        yield Check("time", "skip", "cannot be estimated before the rest is in order")
    else:
        yield from (Check("time", "pass", line) for line in lines(found))


def lines(found: Hours) -> Iterator[str]:
    """The estimate in words."""
    unknown = f", {', '.join(found.unknown)} not known" if found.unknown else ""
    yield f"about {words(found.total_s)} if nothing is finished yet{unknown}"
    yield f"training {words(found.training_s)}, from {found.training_from}"
    known = [f"{s} {words(t)}" for s, t in found.suites_s.items() if t is not None]
    if known:
        yield f"suites {', '.join(known)}, from {found.suites_from}"
    else:
        yield "suites: not known before a first run"


def words(seconds: float) -> str:
    """41 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
