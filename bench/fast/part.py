"""One SAE's part in work that is done for many: what it took, and whether it failed."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import NamedTuple

from bench.counters import Work


class Bill(NamedTuple):
    """What one SAE took."""

    work: dict[str, int]
    """Its own work and what it shared with others, see bench.counters."""
    wall_s: float
    """Its own seconds and an equal share of those that served all."""


class Part:
    """A context in which one SAE is worked on; entered once per batch or data set.

    An exception inside ends this SAE (`error` is set) and not the others.
    """

    def __init__(self, total: Work):
        """`total` counts everything that the process does."""
        self.total, self.work, self.wall_s = total, Work(), 0.0
        self.error: Exception | None = None

    def __enter__(self) -> "Part":
        self._before, self._started = replace(self.total), time.monotonic()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.work += difference(self.total, self._before)
        self.wall_s += time.monotonic() - self._started
        if isinstance(error, Exception):
            self.error = error
            return True
        return False


def bills(parts: Sequence[Part], total: Work, wall_s: float) -> list[Bill]:
    """Of each SAE. `total`, `wall_s`: what was computed in all, and how long it took."""
    shared = difference(total, *(part.work for part in parts))
    rest_s = (wall_s - sum(part.wall_s for part in parts)) / len(parts)
    return [Bill(part.work.recorded(shared), part.wall_s + rest_s) for part in parts]


def difference(total: Work, *parts: Work) -> Work:
    """`total` without the parts."""
    return Work(**{name: n - _sum(parts, name) for name, n in asdict(total).items()})


def _sum(parts: Iterable[Work], name: str) -> int:
    return sum(getattr(part, name) for part in parts)
