"""A suite's process in which the label of an SAE says what goes wrong with it; needs no PyTorch.

`python -c "from tests.faulty import main; main()" JOB.json` runs the real worker on a fake suite.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench import worker
from bench.suite import Metric, SaeHandle, Scored, Suite

SEEN = "seen.txt"
"""Labels in the order in which they were begun, beside the folder of the process."""
COMMAND = [sys.executable, "-c", "from tests.faulty import main; main()"]


class Faulty(Suite):
    """Scores 0.5 where nothing goes wrong."""

    @dataclass(frozen=True)
    class Config:
        batch: int = 8

    metrics = (Metric("score", "higher", 0.0, 1.0, headline=True),)
    side = "base"
    batch_sizes = ("batch",)

    def run(self, ctx: Any, saes: list[SaeHandle]) -> Iterator[Scored]:
        for handle in saes:
            with Path("..", SEEN).open("a") as file:
                file.write(f"{handle.label}\n")
            value = FAULTS.get(handle.label.partition("_")[0], lambda: 0.5)()
            yield Scored(handle.label, {"score": value}, [], None)


def main() -> None:
    checkpoint: Any = SimpleNamespace(load_sae=lambda folder, device: folder.name)
    sys.modules["bench.checkpoint"] = checkpoint
    worker.compat.prepare = lambda: None  # imports PyTorch
    worker._suite = lambda job: Faulty()
    worker._context = _no_context
    worker.main(sys.argv[1:])


def _no_context(job: Any) -> Any:
    return None


def _hang() -> float:
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    Path("child.pid").write_text(str(subprocess.Popen(child).pid))
    time.sleep(600)
    return 0.0


def _raise() -> float:
    raise ArithmeticError("boom")


def _kill() -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def _abort() -> float:
    os.abort()


def _exit() -> float:
    os._exit(3)


def _exit_as_if_full() -> float:
    os._exit(os.EX_IOERR)


def _quit() -> float:
    sys.exit("I quit")


def _full() -> float:
    def refuse(handle: int) -> None:
        raise OSError(28, "No space left on device")

    os.fsync = refuse
    return 0.5


FAULTS: dict[str, Callable[[], float]] = {
    "hang": _hang,
    "raise": _raise,
    "kill": _kill,
    "abort": _abort,
    "exit": _exit,
    "ioerr": _exit_as_if_full,
    "quit": _quit,
    "full": _full,
    "nan": lambda: float("nan"),
    "slow": lambda: time.sleep(1.0) or 0.5,
}
