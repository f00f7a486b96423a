"""Ctrl-C and its like as an exception, so that a run ends its processes and says how it ended."""

import signal
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill` or a scheduler, a closed terminal."""


class Interrupted(SystemExit):
    """A signal asked the process to end; it exits with the status that shells know, 128 + number.

    No plugin's `except Exception` stops it on its way.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"by {self.name}"


def raise_when_asked_to_end() -> None:
    """Make the signals raise Interrupted; one that was set to be ignored, as by nohup, stays so."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    for other in ENDING:  # a second one ends at once what cleaning up holds up
        if signal.getsignal(other) is _raise:
            signal.signal(other, signal.SIG_DFL)
    raise Interrupted(number)
