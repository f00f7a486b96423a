"""What is running and how long is left, on a terminal or in a log."""

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Protocol

BAR_WIDTH = 24
LOG_EVERY_S = 15.0
"""Between two lines of one stage in a log; a terminal is redrawn at every report."""
MAX_ROWS = 16
"""Rows shown below a bar on a terminal; a log gets all."""


class Progress(Protocol):
    """Called by every long stage, with the stage's name and how much of it is done."""

    def __call__(
        self, stage: str, done: float, total: float, note: str = "", rows: Sequence[str] = ()
    ) -> None: ...


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

    def __call__(
        self, stage: str, done: float, total: float, note: str = "", rows: Sequence[str] = ()
    ) -> None:
        """`done` of `total` in any unit; `note` says what is running, `rows` each part of it."""
        now = self._clock()
        is_over = done >= total
        if is_over and stage == self._ended:  # said already
            return
        is_new = stage != self._stage
        if is_new:
            self._stage, self._started, self._done_at_start = stage, now, done
        line = self._line(stage, done, total, note, now)
        if self._is_terminal:
            self._write(_redrawn(line, rows, is_over))
        elif is_new or is_over or now - self._written >= LOG_EVERY_S:
            self._write("".join(f"{text}\n" for text in [line, *(f"  {row}" for row in rows)]))
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


def _redrawn(line: str, rows: Sequence[str], is_over: bool) -> str:
    """What replaces the last drawing on a terminal; the cursor stays on the bar until its end."""
    width = shutil.get_terminal_size().columns
    shown = [f"  {row}"[: width - 1] for row in rows[:MAX_ROWS]]
    if len(rows) > MAX_ROWS:
        shown.append(f"  and {len(rows) - MAX_ROWS} more")
    text = f"\r\x1b[J{line}" + "".join(f"\n{row}" for row in shown)
    if is_over:
        return text + "\n"
    return text + (f"\x1b[{len(shown)}A" if shown else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
