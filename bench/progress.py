"""What is running and how long is left, on a terminal or in a log."""

import time
from collections.abc import Callable
from typing import Protocol

BAR_WIDTH = 24
LOG_EVERY_S = 15.0
"""Between two lines of one stage in a log; a terminal is redrawn at every report."""


class Progress(Protocol):
    """Called by every long stage, with the stage's name and how much of it is done."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None: ...


class ProgressBar:
    """A bar with the time left per stage. The time left is elapsed / done * still to do."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        is_terminal: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._write, self._is_terminal, self._clock = write, is_terminal, clock
        self._stage = self._ended = ""
        self._started = self._written = 0.0
        self._done_at_start = 0.0

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """`done` of `total` in any unit; `note` says what is running right now."""
        now = self._clock()
        is_over = done >= total
        if is_over and stage == self._ended:  # said already
            return
        is_new = stage != self._stage
        if is_new:
            self._stage, self._started, self._done_at_start = stage, now, done
        if self._is_terminal:
            self._write(f"\r\x1b[2K{self._line(stage, done, total, note, now)}")
            if is_over:
                self._write("\n")
        elif is_new or is_over or now - self._written >= LOG_EVERY_S:
            self._write(self._line(stage, done, total, note, now) + "\n")
            self._written = now
        self._ended = stage if is_over else ""
        if is_over:
            self._stage = ""

    def _line(self, stage: str, done: float, total: float, note: str, now: float) -> str:
        share = min(done / total, 1.0) if total else 1.0
        filled = round(share * BAR_WIDTH)
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        elapsed, gained = now - self._started, done - self._done_at_start
        if share >= 1:
            when = f"took {_duration(elapsed)}"
        elif gained > 0:
            when = f"{_duration(elapsed / gained * (total - done))} left"
        else:
            when = f"estimating, {_duration(elapsed)} so far"
        return f"{stage} [{bar}] {share:4.0%} {when}" + (f" | {note}" if note else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
