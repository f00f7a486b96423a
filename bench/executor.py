"""Suites as local processes: each in its own folder, for a limited time, and no failure spreads."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.files import write_atomic
from bench.keys import versions
from bench.ledger import PlannedCell
from bench.progress import Progress
from bench.result import CELL_FILE, Cell, SaeInfo
from bench.suite import Engine

LOG = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
STAGE = "evaluate"
POLL_S = 0.2
REPORT_EVERY_S = 1.0
LOG_FILE = "log.txt"
LAST_LINES = 15
SCRATCH = ("artifacts", "scratch")
"""Folders of a process; sae_bench's activation caches in them can take 100 GB."""
WORKER_ENVIRONMENT = {
    # a thread per process: the processes are the parallelism, and sums keep their order
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}


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
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    engine: Engine = "reference"
    cache_gb: float = 0.0
    """Most disk space for what is shared by all SAEs; 0 keeps none."""
    instruct: str | None = None
    """The model's instruct sibling; None takes that of the table."""
    timeout_s: float | None = None
    """Seconds after which the process is ended; None = no limit."""

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
            )
            for c in raw["cells"]
        )
        paths = {"work": Path(raw["work"]), "cache_dir": Path(raw["cache_dir"])}
        return cls(**(raw | paths | {"cells": cells}))


def run_suites(jobs: Sequence[SuiteJob], workers: int, progress: Progress) -> list[Cell]:
    """Run each job in a process of its own, `workers` at a time; every cell ends in a state.

    The cells come back in the order of the jobs. A process that dies or exceeds its time fails
    only the cells that it had not finished.
    """
    total = sum(len(job.cells) for job in jobs)
    waiting, running = list(jobs), list[_Running]()
    last_report = 0.0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(0)))
            ended = [r for r in running if r.has_ended()]
            for process in ended:
                process.settle()
            running = [r for r in running if r not in ended]
            if ended or time.monotonic() - last_report >= REPORT_EVERY_S:
                done = sum(_finished(job) for job in jobs if job not in waiting)
                progress(STAGE, done, total, ", ".join(r.note() for r in running))
                last_report = time.monotonic()
            time.sleep(POLL_S if running else 0)
    finally:
        for process in running:  # interrupted: leave no orphans
            process.kill()
    return [Cell.load(cell.folder) for job in jobs for cell in job.cells]


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


@dataclass
class _Running:
    """A started process."""

    job: SuiteJob
    process: subprocess.Popen[bytes]
    started: float
    is_late: bool = False

    def has_ended(self) -> bool:
        """True once it has exited; ends it if its time is up."""
        limit = self.job.timeout_s
        if limit is not None and time.monotonic() - self.started > limit:
            self.is_late = self.process.poll() is None
            self.kill()
        return self.process.poll() is not None

    def settle(self) -> None:
        """Fail what was left unfinished and remove the scratch files."""
        log = (self.job.work / LOG_FILE).read_text(errors="replace")
        tail = "\n".join(log.replace("\r", "\n").splitlines()[-LAST_LINES:])
        for cell in self.job.cells:
            if not (cell.folder / CELL_FILE).is_file():
                LOG.error("%s on %s: %s", self.job.suite, cell.sae.label, self._why())
                failed(self.job, cell, self._why(), tail).save(cell.folder)
        for folder in SCRATCH:
            shutil.rmtree(self.job.work / folder, ignore_errors=True)

    def kill(self) -> None:
        """End the process and everything that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def note(self) -> str:
        """What is running, for the progress bar."""
        return f"{self.job.suite} {_finished(self.job)}/{len(self.job.cells)}"

    def _why(self) -> str:
        if self.is_late:
            return f"time limit of {self.job.timeout_s:g} s exceeded"
        code = self.process.returncode
        if code < 0:
            return f"the suite's process was ended by {signal.Signals(-code).name}"
        return f"the suite's process ended early with exit status {code}"


def _start(job: SuiteJob) -> _Running:
    job.work.mkdir(parents=True, exist_ok=True)
    for cell in job.cells:
        (cell.folder / CELL_FILE).unlink(missing_ok=True)  # of an attempt that failed
    job.save(job.work / "job.json")
    with (job.work / LOG_FILE).open("wb") as log:
        process = subprocess.Popen(
            _command((job.work / "job.json").resolve()),
            cwd=job.work,
            env=os.environ | WORKER_ENVIRONMENT | _import_path(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Running(job, process, time.monotonic())


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


def _finished(job: SuiteJob) -> int:
    return sum((cell.folder / CELL_FILE).is_file() for cell in job.cells)
