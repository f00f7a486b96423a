"""What the races of suites found, as tables that can stand in docs/performance.md."""

import os
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

from timing import Times

from bench.counters import Work

HEAD = (
    "world, SAEs",
    "suite",
    "sae_bench: CPU s",
    "wall s",
    "ours: CPU s",
    "wall s",
    "CPU ratio",
    "wall ratio",
    "set-up CPU s: sae_bench",
    "ours",
)
WORK_HEAD = ("world, SAEs", "suite", "engine", *asdict(Work()))


class Row(NamedTuple):
    """One suite, or all, in one world for N SAEs."""

    field: str
    """World and number of SAEs."""
    suite: str
    theirs: Times
    ours: Times
    setup_s: tuple[float, float]
    """CPU seconds more of the first run than of the later ones: theirs, ours."""
    work: tuple[Work, Work]
    """Of one run, all SAEs together: theirs, ours."""

    @property
    def ratio(self) -> float:
        """Median over rounds of their CPU time to ours."""
        return _ratio(self.theirs.cpu_s, self.ours.cpu_s)

    def line(self) -> str:
        """A row of the table."""
        times = [median(t) for side in (self.theirs, self.ours) for t in side]
        ratios = self.ratio, _ratio(self.theirs.wall_s, self.ours.wall_s)
        numbers = [f"{t:.1f}" for t in times] + [f"{r:.2f}" for r in ratios]
        return _line([self.field, self.suite, *numbers, *(f"{s:.1f}" for s in self.setup_s)])

    def work_lines(self) -> list[str]:
        """A row for each side."""
        return [
            _line([self.field, self.suite, name, *(f"{n:,}" for n in asdict(work).values())])
            for name, work in zip(("sae_bench", "ours"), self.work)
        ]

    def record(self) -> dict[str, Any]:
        """Everything, for a file."""
        return self._asdict() | {
            "theirs": self.theirs._asdict(),
            "ours": self.ours._asdict(),
            "work": [asdict(work) for work in self.work],
            "ratio": self.ratio,
        }


def total(rows: list[Row]) -> Row:
    """All suites of one world together, round by round."""
    sides = [[row.theirs for row in rows], [row.ours for row in rows]]
    summed = [Times(*(_sum(getattr(t, n) for t in side) for n in Times._fields)) for side in sides]
    theirs, ours = (sum((row.work[i] for row in rows), Work()) for i in range(2))
    setup = tuple(sum(row.setup_s[i] for row in rows) for i in range(2))
    return Row(rows[0].field, "all", *summed, setup, (theirs, ours))  # type: ignore[arg-type]


def lines(rows: list[Row]) -> list[str]:
    """Both tables and the machine's load."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return [
        "",
        *_head(HEAD),
        *(row.line() for row in rows),
        "",
        *_head(WORK_HEAD),
        *(line for row in rows for line in row.work_lines()),
        "",
        f"load average {load} on {os.cpu_count()} CPUs",
    ]


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return median(a / b for a, b in zip(theirs, ours, strict=True))


def _sum(rounds: Any) -> list[float]:
    return [sum(times) for times in zip(*rounds, strict=True)]


def _head(names: tuple[str, ...]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(values: Any) -> str:
    return f"| {' | '.join(values)} |"
