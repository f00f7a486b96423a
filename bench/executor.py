"""Suites as local processes: each in its own folder, for a limited time, and no failure spreads.

A process that dies takes nothing finished with it. The SAE that it was at is tried once more in a
process of its own, and fails if it ends that one too; the SAEs behind it go on in another process.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.errors import RunStopped
from bench.files import write_atomic
from bench.keys import versions
from bench.ledger import PlannedCell
from bench.progress import Progress
from bench.result import Cell, SaeInfo
from bench.suite import Engine

LOG = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
STAGE = "evaluate"
POLL_S = 0.2
REPORT_EVERY_S = 1.0
LOG_FILE = "log.txt"
LAST_LINES = 15
GIVE_UP_AFTER = 3
"""SAEs in a row that each ended a process of their own: then it is not the SAEs."""
CANNOT_WRITE, NOT_WRITTEN = os.EX_IOERR, "results cannot be written"
"""Exit status, and last words, of a worker that cannot write a result, as when the disk is full."""
SCRATCH = ("artifacts", "scratch")
"""Folders of a process; sae_bench's activation caches in them can take 100 GB."""
WORKER_ENVIRONMENT = {
    # a thread per process: the processes are the parallelism, and sums keep their order
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
LIFELINE_ENV = "SAE_VERDICT_LIFELINE"
"""Descriptor of a pipe that closes when the run ends, in whatever way: its worker ends then too."""


@dataclass(frozen=True)
class SuiteJob:
    """One suite on some SAEs of one model: the work of one process."""

    suite: str
    config: dict[str, Any]
    """Fields of the suite's Config."""
    model: str
    """Name of the model that the SAEs were trained on."""
    cells: tuple[PlannedCell, ...]
    work: Path
    """Folder of the process: its working directory, log and scratch files."""
    cache_dir: Path
    """Where data sets are written once."""
    seed: int
    data_revision: str
    instruct: str | None = None
    """The model's instruct sibling; None takes that of the table."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    engine: Engine = "reference"
    cache_gb: float = 0.0
    """Most disk space for what is shared by all SAEs; 0 keeps none."""
    timeout_s: float | None = None
    """Seconds without a finished cell after which the process is ended; None = no limit."""

    def save(self, path: Path) -> None:
        """Write the job as JSON."""
        write_atomic(path, json.dumps(asdict(self), default=str, indent=1))

    @classmethod
    def load(cls, path: Path) -> "SuiteJob":
        """Read a saved job."""
        raw = json.loads(path.read_text())
        cells = tuple(
            PlannedCell(
                key=c["key"],
                suite=c["suite"],
                sae=SaeInfo(**c["sae"]),
                sae_dir=Path(c["sae_dir"]),
                folder=Path(c["folder"]),
                failure=Path(c["failure"]),
            )
            for c in raw["cells"]
        )
        paths = {"work": Path(raw["work"]), "cache_dir": Path(raw["cache_dir"])}
        return cls(**(raw | paths | {"cells": cells}))


def run_suites(
    jobs: Sequence[SuiteJob],
    workers: int,
    progress: Progress,
    computing: Callable[[Collection[str]], object] = lambda keys: None,
    set_up: Callable[[SuiteJob, float], object] = lambda job, seconds: None,
) -> list[Cell]:
    """Run each job in a process of its own, `workers` at a time; every cell ends in a state.

    The cells come back in the order of the jobs. `computing` gets the keys of the cells that are
    at work, `set_up` the seconds that a job without a failure took beside its SAEs. Raises
    RunStopped where results cannot be written.
    """
    total = sum(len(job.cells) for job in jobs)
    suites = [_Suite(job, set_up) for job in jobs]
    waiting, running = list(suites), list[_Suite]()
    last_report = 0.0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(waiting.pop(0))
            changed = [suite for suite in running if suite.advance()]
            running = [suite for suite in running if not suite.is_over]
            if changed or time.monotonic() - last_report >= REPORT_EVERY_S:
                computing([suite.at.key for suite in running if suite.at])
                done = sum(suite.n_ended for suite in suites)
                progress(STAGE, done, total, ", ".join(suite.note() for suite in running))
                last_report = time.monotonic()
            time.sleep(POLL_S if running else 0)
    finally:
        for suite in running:  # interrupted: leave no orphans
            suite.kill()
    return [cell for job in jobs for planned in job.cells if (cell := planned.load())]


def failed(job: SuiteJob, planned: PlannedCell, reason: str, detail: str = "") -> Cell:
    """The cell that says why there is no result."""
    return Cell(
        cell_key=planned.key,
        suite=job.suite,
        sae=planned.sae,
        state="failed",
        engine=job.engine,
        data_revision=job.data_revision,
        eval_seed=job.seed,
        reason=reason,
        detail=detail,
        versions=versions(),
    )


class _Suite:
    """One suite under way: a process on all its cells, and where one dies, others on the rest."""

    def __init__(self, job: SuiteJob, set_up: Callable[[SuiteJob, float], object]):
        self._job, self._set_up = job, set_up
        self._waiting: list[tuple[PlannedCell, ...]] = [job.cells]
        self._process: _Process | None = None
        self._left = list(job.cells)
        self._n_deaths = 0
        """SAEs in a row that ended a process of their own."""

    @property
    def is_over(self) -> bool:
        return not self._waiting and self._process is None

    @property
    def n_ended(self) -> int:
        return len(self._job.cells) - len(self._left)

    @property
    def at(self) -> PlannedCell | None:
        """The cell that is being computed."""
        left = self._left_of(self._process.cells) if self._process else []
        return left[0] if left else None

    def advance(self) -> bool:
        """Look after the process, start the next; whether cells have ended since the last time."""
        n_ended = self.n_ended
        if self._process is None:
            self._start()
        self._take_note()
        ended = self.n_ended > n_ended
        process = self._process
        if process is None:
            return ended
        if ended:
            process.is_alive_at = time.monotonic()
        if process.has_ended(self._job.timeout_s):
            self._process = None
            self._settle(process)
            self._take_note()
            return True
        return ended

    def kill(self) -> None:
        """End the process and everything that it started."""
        if self._process:
            self._process.kill()

    def note(self) -> str:
        """What is running, for the progress bar."""
        return f"{self._job.suite} {self.n_ended}/{len(self._job.cells)}"

    def _start(self) -> None:
        self._take_note()  # another run with the same store may have finished some of them by now
        if cells := tuple(self._left_of(self._waiting.pop(0))):
            is_first = len(cells) == len(self._job.cells)
            self._process = _started(self._job, cells, is_first=is_first)

    def _take_note(self) -> None:
        """Forget the cells that have ended."""
        self._left = [cell for cell in self._left if cell.load() is None]

    def _settle(self, process: "_Process") -> None:
        """Decide what becomes of the cells that an ended process has left."""
        self._take_note()
        for folder in SCRATCH:
            shutil.rmtree(self._job.work / folder, ignore_errors=True)
        left = self._left_of(process.cells)
        if process.cannot_write:
            raise RunStopped(f"suite {self._job.suite!r}: {process.last_line()}")
        if not left:
            self._n_deaths = 0
            if process.cells == self._job.cells:
                self._tell_set_up(time.monotonic() - process.began)
            return
        if len(process.cells) > 1:
            LOG.warning("%s: %s; going on", self._job.suite, process.why())
            self._n_deaths *= len(left) == len(process.cells)
            self._waiting[:0] = [tuple(left[:1]), *filter(None, [tuple(left[1:])])]
            return
        self._fail(left, process.why(), process.tail())
        self._n_deaths += 1
        if self._n_deaths == GIVE_UP_AFTER:
            behind = self._left_of([cell for cells in self._waiting for cell in cells])
            why = f"not tried: {GIVE_UP_AFTER} SAEs before it each ended with: {process.why()}"
            self._fail(behind, why, process.tail())
            self._waiting.clear()

    def _tell_set_up(self, wall_s: float) -> None:
        """Tell what a process that did all SAEs took beside them."""
        cells = [cell for planned in self._job.cells if (cell := planned.load())]
        if all(cell.state != "failed" for cell in cells):  # how long such a one took is not known
            self._set_up(self._job, max(0.0, wall_s - sum(cell.wall_s or 0.0 for cell in cells)))

    def _fail(self, cells: Sequence[PlannedCell], reason: str, detail: str) -> None:
        for cell in cells:
            LOG.error("%s on %s: %s", self._job.suite, cell.sae.label, reason)
            cell.save(failed(self._job, cell, reason, detail))

    def _left_of(self, cells: Sequence[PlannedCell]) -> list[PlannedCell]:
        keys = {cell.key for cell in self._left}
        return [cell for cell in cells if cell.key in keys]


@dataclass
class _Process:
    """A started process."""

    cells: tuple[PlannedCell, ...]
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    """Bytes of the log that are of earlier processes."""
    lifeline: int
    began: float
    is_alive_at: float
    """When it started, or a cell of it last ended."""
    limit_s: float | None = None
    """The time limit that it has exceeded."""

    @property
    def cannot_write(self) -> bool:
        """Whether it gave up because a result could not be written."""
        is_status = self.limit_s is None and self.process.returncode == CANNOT_WRITE
        return is_status and NOT_WRITTEN in self.last_line()  # a plugin may exit with any status

    def has_ended(self, limit_s: float | None) -> bool:
        """True once it has exited; ends it if its time is up."""
        is_running = self.process.poll() is None
        if is_running and limit_s is not None and time.monotonic() - self.is_alive_at > limit_s:
            self.limit_s = limit_s
            is_running = False
        if not is_running:
            self.kill()
        return not is_running

    def kill(self) -> None:
        """End the process and everything that it started and that is still there."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1
        with contextlib.suppress(ProcessLookupError):  # all are gone
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def why(self) -> str:
        """Why it ended before its cells did."""
        if self.limit_s is not None:
            return f"time limit of {self.limit_s:g} s exceeded"
        code = self.process.returncode
        if code == -signal.SIGKILL:
            return "the suite's process was ended by SIGKILL, as happens when memory runs out"
        if code < 0:
            return f"the suite's process was ended by {signal.Signals(-code).name}"
        return f"the suite's process ended early with exit status {code}"

    def tail(self) -> str:
        """The last lines that it wrote."""
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            text = file.read().decode(errors="replace")
        return "\n".join(text.replace("\r", "\n").splitlines()[-LAST_LINES:])

    def last_line(self) -> str:
        return self.tail().rpartition("\n")[2]


def _started(job: SuiteJob, cells: tuple[PlannedCell, ...], *, is_first: bool) -> _Process:
    job.work.mkdir(parents=True, exist_ok=True)
    for folder in SCRATCH:  # of a run that was killed: half-written files are never read
        shutil.rmtree(job.work / folder, ignore_errors=True)
    job_file = (job.work / "job.json").resolve()
    replace(job, cells=cells).save(job_file)
    held, lifeline = os.pipe()  # nobody writes: it is read to its end, which comes with ours
    path = job.work / LOG_FILE
    with path.open("wb" if is_first else "ab") as log:
        process = subprocess.Popen(
            _command(job_file),
            cwd=job.work,
            env=os.environ | WORKER_ENVIRONMENT | _import_path() | {LIFELINE_ENV: str(held)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[held],
        )
        start = 0 if is_first else log.tell()
    os.close(held)
    now = time.monotonic()
    return _Process(cells, process, path, start, lifeline, began=now, is_alive_at=now)


def _command(job_file: Path) -> list[str]:
    # -P: the working directory holds a folder sae_bench/, which is not the package
    return [sys.executable, "-P", "-m", "bench.worker", str(job_file)]


def _import_path() -> dict[str, str]:
    """In a checkout, make `bench` importable from anywhere; installed, it already is."""
    if "site-packages" in ROOT.parts:
        return {}
    return {"PYTHONPATH": os.pathsep.join(_paths())}


def _paths() -> Iterator[str]:
    yield str(ROOT)
    if inherited := os.environ.get("PYTHONPATH"):
        yield inherited
