"""What a run is doing, in ledger.json: written while it goes on, for `status` and for a crash.

The file is replaced as a whole, at most once a second. It says what was planned and how far it is;
how SAEs and cells ended stands in their own files, which `status` reads too.
"""

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bench import checkpoint
from bench.errors import UserError
from bench.ledger import PlannedCell
from bench.lock import Holder
from bench.progress import Progress
from bench.result import Role, State
from bench.sealed import write_sealed

LOG = logging.getLogger(__name__)
LEDGER_FILE = "ledger.json"
SCHEMA = 1
WRITE_EVERY_S = 1.0
TRAINING_STAGE = "train"
"""Name of the stage in which the SAEs of the run, not their pilots, are trained."""

RunState = Literal["running", "finished", "interrupted", "stopped"]
"""`interrupted`: by Ctrl-C or a signal; `stopped`: by an error outside of all cells."""
SaeState = Literal["pending", "training", "trained", "failed"]
CellState = Literal["pending", "running"] | State


@dataclass
class Stage:
    """What is being done."""

    name: str = ""
    """`activations`, `pilot`, `train` or `evaluate`."""
    done: float = 0
    """Steps of a training, tokens of activations, cells of an evaluation."""
    total: float = 0
    note: str = ""
    rows: tuple[str, ...] = ()
    """Loss, L0, explained variance and dead latents of each SAE in training."""


@dataclass
class SaeRow:
    """One SAE of the run."""

    label: str
    role: Role
    key: str
    folder: str
    """Relative to the folder that holds the run folder."""
    state: SaeState = "pending"
    reason: str = ""


@dataclass
class CellRow:
    """One SAE on one suite."""

    suite: str
    label: str
    state: CellState = "pending"
    reason: str = ""
    cell_key: str | None = None
    """None until the SAE is trained: its weights are part of the key."""
    folder: str | None = None
    failure: str | None = None
    """Where its cell.json lies once it is finished, or if it failed; relative as that of an SAE."""


@dataclass
class Record:
    """The content of ledger.json."""

    run: str
    pid: int
    host: str
    started: str
    """UTC."""
    updated: str
    state: RunState = "running"
    reason: str = ""
    """Why it is `stopped` or `interrupted`."""
    stage: Stage = field(default_factory=Stage)
    saes: list[SaeRow] = field(default_factory=list)
    cells: list[CellRow] = field(default_factory=list)
    schema: int = SCHEMA


class Journal:
    """Keeps the ledger.json of a run that is under way."""

    def __init__(self, out: Path, run: str, holder: Holder):
        self._out, self._root, self._written = out, out.parent, 0.0
        self._planned: Sequence[PlannedCell] = ()
        self._computing: Collection[str] = ()
        now = _now()
        self._record = Record(run, holder.pid, holder.host, now, now)

    def expect(self, saes: Sequence[SaeRow], suites: Collection[str]) -> None:
        """The SAEs that are to be made, and that each suite will score them."""
        self._record.saes = list(saes)
        self._record.cells = [CellRow(suite, sae.label) for suite in suites for sae in saes]
        self.write()

    def plan(self, cells: Sequence[PlannedCell]) -> None:
        """The cells, now that the SAEs are made."""
        self._planned = cells
        self._record.cells = [
            CellRow(
                suite=cell.suite,
                label=cell.sae.label,
                cell_key=cell.key,
                folder=cell.folder.relative_to(self._root).as_posix(),
                failure=cell.failure.relative_to(self._root).as_posix(),
            )
            for cell in cells
        ]
        self.write()

    def noting(self, progress: Progress) -> Progress:
        """The same, and what it is told is written too."""

        def show(
            stage: str, done: float, total: float, note: str = "", rows: Sequence[str] = ()
        ) -> None:
            progress(stage, done, total, note, rows)
            is_new = stage != self._record.stage.name
            self._record.stage = Stage(stage, done, total, note, tuple(rows))
            if is_new or time.monotonic() - self._written >= WRITE_EVERY_S:
                self.write()

        return show

    def computing(self, keys: Collection[str]) -> None:
        """The keys of the cells that are at work; written with the next progress."""
        self._computing = keys

    def end(self, state: RunState, reason: str = "") -> None:
        """The run is over."""
        self._computing = ()
        self._record.state, self._record.reason = state, reason
        self.write()

    def write(self) -> None:
        """Write the file now. That the disk is full must not end what can go on."""
        record = self._record
        is_training = record.state == "running" and record.stage.name == TRAINING_STAGE
        for sae in record.saes:
            refresh_sae(sae, self._root, is_training=is_training)
        for row, planned in zip(record.cells, self._planned):
            _refresh(row, planned, is_running=planned.key in self._computing)
        record.updated = _now()
        self._written = time.monotonic()
        try:
            write_sealed(self._out / LEDGER_FILE, asdict(record))
        except OSError as error:
            LOG.warning("%s is not up to date: %s", self._out / LEDGER_FILE, error)


@contextmanager
def kept(out: Path, run: str, holder: Holder) -> Iterator[Journal]:
    """A journal for the time of the block, which also says how the block was left."""
    journal = Journal(out, run, holder)
    try:
        yield journal
    except (KeyboardInterrupt, SystemExit) as error:
        journal.end("interrupted", f"{type(error).__name__} {error}".strip())
        raise
    except BaseException as error:
        journal.end("stopped", f"{type(error).__name__}: {error}")
        raise
    journal.end("finished")


def refresh_sae(row: SaeRow, root: Path, *, is_training: bool) -> None:
    """Bring the row up to date with what lies in the SAE's folder."""
    if row.state in ("trained", "failed"):
        return
    row.state = "training" if is_training and row.role == "trained" else "pending"
    try:
        record = checkpoint.read_record(root / row.folder)
    except UserError:
        return
    if record["key"] == row.key:
        row.state = "failed" if record["stop_reason"] else "trained"
        row.reason = record["stop_reason"] or ""


def _refresh(row: CellRow, planned: PlannedCell, *, is_running: bool) -> None:
    if row.state not in ("pending", "running"):
        return
    cell = planned.load()
    if cell:
        row.state, row.reason = cell.state, cell.reason
    else:
        row.state = "running" if is_running else "pending"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
