"""One run per folder at a time: who writes to a run folder holds its lock."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from bench.errors import UserError

LOCK_FILE = ".lock"
ATTEMPTS, PAUSE_S = 5, 0.1


class Holder(NamedTuple):
    """The process that works in a run folder."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def locked(out: Path) -> Iterator[Holder]:
    """Make the run folder `out` and hold its lock for the time of the block.

    The kernel gives the lock back when its process ends, in whatever way, so that none is ever
    stale. Raises UserError where another run holds it, or the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        # neither truncated nor deleted: others read it, and a lock on a deleted file excludes none
        file = (out / LOCK_FILE).open("a+")
    except OSError as error:
        raise UserError(f"out={str(out)!r}: cannot be written: {error}") from error
    with file:
        if not _taken(file):
            who = _named(out) or "another process"
            raise UserError(
                f"out={str(out)!r}: {who} is running there; wait for it or end it, or choose "
                "another --out"
            )
        holder = Holder(os.getpid(), socket.gethostname())
        file.truncate(0)
        file.write(json.dumps(holder._asdict()))
        file.flush()
        yield holder


def holder_of(out: Path) -> Holder | None:
    """Who holds the lock of a run folder now; None where nobody does."""
    try:
        with (out / LOCK_FILE).open() as file:
            # shared: two who ask at once are not in each other's way
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(out) or Holder(0, "unknown")
    except OSError:
        return None
    return None


def _taken(file: IO[str]) -> bool:
    """Whether the lock is ours now; who only asks for its holder has it for a moment."""
    for attempt in range(ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(PAUSE_S if attempt + 1 < ATTEMPTS else 0)
    return False


def _named(out: Path) -> Holder | None:
    """Who the file says it is; None in the moment before it is written."""
    try:
        raw = json.loads((out / LOCK_FILE).read_text())
        return Holder(int(raw["pid"]), str(raw["host"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
