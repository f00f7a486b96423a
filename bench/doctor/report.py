"""What the doctor says: one check per line, with the value found and the fix."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

State = Literal["pass", "warn", "fail", "skip"]


class Check(NamedTuple):
    """How one check went."""

    name: str
    state: State
    """`fail` keeps the run from starting; `skip` could not be checked, the message says why."""
    message: str
    """What was found, with its value."""
    fix: str = ""
    suites: tuple[str, ...] = ()
    """The suites that a failure concerns; none = the whole run."""

    @property
    def problem(self) -> str:
        """A failure as part of a line of errors."""
        return f"{self.message}; fix: {self.fix}" if self.fix else self.message


class Diagnosis(NamedTuple):
    """All checks of one config."""

    config: str
    checks: tuple[Check, ...]
    wall_s: float

    @property
    def failed(self) -> list[Check]:
        return [c for c in self.checks if c.state == "fail"]

    @property
    def is_ok(self) -> bool:
        return not self.failed

    def unavailable(self) -> dict[str, str]:
        """Suite -> why it cannot run, where the rest of the run could."""
        reasons: dict[str, list[str]] = {}
        for check in self.failed:
            for suite in check.suites:
                reasons.setdefault(suite, []).append(check.problem)
        return {suite: "; ".join(dict.fromkeys(found)) for suite, found in reasons.items()}

    def blocking(self, suites: Sequence[str], *, skip_unavailable: bool) -> list[str]:
        """Why the run cannot start; without a suite left that can run, it cannot at all."""
        whole = [c.problem for c in self.failed if not c.suites]
        parts = [_of_suites(c) for c in self.failed if c.suites]
        is_part_left = skip_unavailable and not set(suites) <= set(self.unavailable())
        return whole if is_part_left else [*whole, *parts]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "config": self.config,
            "ok": self.is_ok,
            "wall_s": round(self.wall_s, 2),
            "unavailable_suites": self.unavailable(),
            "checks": [check._asdict() for check in self.checks],
        }

    def lines(self) -> list[str]:
        """For people: a line per check, below it whom it concerns and the fix, then the counts."""
        width = max((len(c.name) for c in self.checks), default=0)
        text, indent = [], " " * (width + 8)
        said: dict[str, str] = {}
        for check in self.checks:
            text.append(f"{check.state.upper():4}  {check.name:{width}}  {check.message}")
            if check.suites and check.state == "fail":
                text.append(f"{indent}needed by: {', '.join(check.suites)}")
            if check.fix:
                first = said.setdefault(check.fix, check.name)
                fix = check.fix if first == check.name else f"as for {first}"
                text.append(f"{indent}fix: {fix}")
        counts = [f"{n} {s}" for s in ("fail", "warn", "pass", "skip") if (n := self._n(s))]
        text.append(f"doctor {self.config}: {', '.join(counts)} in {self.wall_s:.1f} s")
        if not self.is_ok and not any(not c.suites for c in self.failed):
            text.append("the other suites can run: `run --skip-unavailable`")
        return text

    def _n(self, state: str) -> int:
        return sum(c.state == state for c in self.checks)


def _of_suites(check: Check) -> str:
    """The problem with the suites that it concerns, where it does not begin with them."""
    prefix = "suites."
    if check.problem.startswith(prefix):
        return check.problem
    return f"{prefix}{', '.join(check.suites)}: {check.problem}"
