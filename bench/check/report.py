"""What `check` says of a plugin: one finding per point, with the fix."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, Literal, NamedTuple, TypeVar

Status = Literal["pass", "warn", "fail", "skip"]
R = TypeVar("R")


class Problem(NamedTuple):
    """Something that a point found."""

    message: str
    fix: str = ""
    """What to do about it; empty = what the point itself advises."""
    is_warning: bool = False


class Point(NamedTuple, Generic[R]):
    """One thing that is checked; an exception while it is checked is a failure of it."""

    name: str
    says: str
    """What holds for a plugin that passes."""
    find: Callable[[R], Iterator[Problem]]
    fix: str
    needs: tuple[str, ...] = ()
    """Points without which this one means nothing; it is skipped if one of them failed."""
    is_slow: bool = False
    """Left out of a quick check."""


class Finding(NamedTuple):
    """How one point went."""

    point: str
    status: Status
    says: str
    message: str = ""
    fix: str = ""


class Report(NamedTuple):
    """All findings about one plugin, in the order of the points."""

    name: str
    kind: str
    path: str
    findings: tuple[Finding, ...]
    wall_s: float

    @property
    def failed(self) -> list[Finding]:
        return [f for f in self.findings if f.status == "fail"]

    @property
    def is_ok(self) -> bool:
        return not self.failed

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [finding._asdict() for finding in self.findings]
        return self._asdict() | {"findings": rows, "ok": self.is_ok}

    def lines(self) -> list[str]:
        """For people: a line per point, and below it what is wrong and the fix."""
        width = max(len(f.point) for f in self.findings)
        text = []
        for f in self.findings:
            text.append(f"{f.status.upper():4}  {f.point:{width}}  {f.says}")
            for label, words in (("", f.message), ("fix: ", f.fix)):
                text += [f"{'':{width + 8}}{label}{words}"] if words else []
        counts = [f"{n} {s}" for s in ("fail", "warn", "pass", "skip") if (n := self._n(s))]
        text.append(f"{self.kind.removesuffix('s')} {self.name}: {', '.join(counts)}")
        return text

    def _n(self, status: str) -> int:
        return sum(f.status == status for f in self.findings)
