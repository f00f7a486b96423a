"""How far a run is, for people and programs: read from its folder, whoever runs it, or ran it."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bench.errors import UserError
from bench.journal import (
    LEDGER_FILE,
    SCHEMA,
    TRAINING_STAGE,
    CellRow,
    Record,
    RunState,
    refresh_sae,
)
from bench.lock import Holder, holder_of
from bench.result import CELL_FILE, Cell
from bench.sealed import Damaged, unsealed
from bench.strict import build

EVERY_S = 2.0
"""Between two looks at a run that is watched."""
MOST_ROWS = 20
"""Failed cells, and SAEs in training, that are shown one by one to people; programs get all."""


@dataclass(frozen=True)
class Status:
    """A run as it stands now."""

    folder: Path
    state: RunState | Literal["starting", "killed"]
    """`starting`: it checks what it was given; `killed`: it has ended without saying so."""
    record: Record
    details: dict[str, str]
    """Traceback by cell key, of each failed cell."""

    @property
    def is_over(self) -> bool:
        return self.state not in ("starting", "running")

    def as_dict(self) -> dict[str, Any]:
        """For programs: the ledger as it is now, counts by state, tracebacks of failed cells."""
        raw: dict[str, Any] = asdict(self.record)
        raw |= {"state": self.state, "folder": str(self.folder)}
        for cell in raw["cells"]:
            cell["detail"] = self.details.get(cell["cell_key"], "")
        counts = {"saes": self._counts("saes"), "cells": self._counts("cells")}
        return raw | {"counts": counts}

    def lines(self) -> list[str]:
        """For people."""
        record = self.record
        return [
            f"{'run':<10}{record.run}, {self._told()}",
            *([f"{'reason':<10}{record.reason}"] if record.reason else []),
            *(self._stage() if self.state == "running" else []),  # else it is of the run before
            f"{'SAEs':<10}{_counted(self._counts('saes'))}",
            f"{'cells':<10}{_counted(self._counts('cells'))}",
            *_at_most(f"failed    SAE {s.label}: {s.reason}" for s in record.saes if _is_bad(s)),
            *_at_most(self._failure(c) for c in record.cells if _is_bad(c)),
            *([f"{'next':<10}{hint}"] if (hint := self._hint()) else []),
        ]

    def _counts(self, kind: Literal["saes", "cells"]) -> dict[str, int]:
        return dict(Counter(row.state for row in getattr(self.record, kind)))

    def _told(self) -> str:
        record = self.record
        who = f"process {record.pid} on {record.host}"
        age = datetime.now(UTC) - datetime.fromisoformat(record.updated)
        return f"{self.state}, {who}, last news {max(0, round(age.total_seconds()))} s ago"

    def _stage(self) -> list[str]:
        stage = self.record.stage
        if not stage.name:
            return []
        note = f" | {stage.note}" if stage.note else ""
        head = f"{'stage':<10}{stage.name} {stage.done:,g} of {stage.total:,g}{note}"
        return [head, *_at_most(f"{'':<10}{row}" for row in stage.rows)]

    def _failure(self, cell: CellRow) -> str:
        where = self.folder.resolve().parent / str(cell.failure) / CELL_FILE
        return f"failed    {cell.suite} on {cell.label}: {cell.reason}\n{'':<10}traceback: {where}"

    def _hint(self) -> str:
        if not self.is_over:
            return ""
        if self.state != "finished":
            return "`run` again goes on from here"
        if any(_is_bad(row) for row in (*self.record.saes, *self.record.cells)):
            return "`run --retry-failed` tries what failed again"
        is_lost = any(cell.state == "pending" for cell in self.record.cells)
        return "`run` again computes what is pending" if is_lost else ""


def read(folder: Path) -> Status:
    """The run in a folder. Raises UserError where there is none, or its ledger cannot be read."""
    path = folder / LEDGER_FILE
    holder = holder_of(folder)
    try:
        raw = unsealed(json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise UserError(f"is not a ledger of schema {SCHEMA}")
        record: Record = build(Record, raw)
    except FileNotFoundError:
        if holder is None:
            raise UserError(f"{folder}: is not a run folder, it has no {LEDGER_FILE}") from None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = Record(folder.resolve().name, holder.pid, holder.host, now, now)
        return Status(folder, "starting", record, {})
    except (OSError, ValueError, UserError, Damaged) as error:
        raise UserError(f"{path}: {error}") from error
    state = _state(record, holder)
    if holder is not None:  # of an earlier run the ledger names another process
        record.pid, record.host = holder
    details = _refresh(record, folder.resolve().parent, is_running=state == "running")
    return Status(folder, state, record, details)


def watch(folder: Path, every_s: float = EVERY_S) -> Iterator[Status]:
    """The run in a folder, again and again, the last time when it is over."""
    while True:
        seen = read(folder)
        yield seen
        if seen.is_over:
            return
        time.sleep(every_s)


def failures(cells: Iterable[Cell]) -> list[str]:
    """What a run says of its failed cells, a line each, and what to do; empty without any."""
    found = [c for c in cells if c.state == "failed"]
    if not found:
        return []
    told = _at_most(f"failed: {c.suite} on {c.sae.label}: {c.reason}" for c in found)
    n = "1 cell" if len(found) == 1 else f"{len(found)} cells"
    return [*told, f"{n} failed; `run` keeps them so, `run --retry-failed` tries them again"]


def _state(record: Record, holder: Holder | None) -> RunState | Literal["starting", "killed"]:
    if holder is None:
        return "killed" if record.state == "running" else record.state
    is_its = record.state == "running" and record.pid in (holder.pid, 0)
    return "running" if is_its else "starting"


def _refresh(record: Record, root: Path, *, is_running: bool) -> dict[str, str]:
    """Bring the rows up to date with the files; tracebacks of the failed cells by key."""
    is_training = is_running and record.stage.name == TRAINING_STAGE
    for sae in record.saes:
        refresh_sae(sae, root, is_training=is_training)
    details = {}
    for row in record.cells:
        cell = _ended(row, root)
        if cell:
            row.state, row.reason = cell.state, cell.reason
            if cell.state == "failed":
                details[cell.cell_key] = cell.detail
        elif row.state != "running" or not is_running:
            row.state = "pending"
    return details


def _ended(row: CellRow, root: Path) -> Cell | None:
    for folder in filter(None, (row.folder, row.failure)):
        path = (root / folder).resolve()
        if not path.is_relative_to(root):  # a ledger from elsewhere must not read other files
            continue
        try:
            cell = Cell.load(path)
        except (UserError, ValueError):
            continue
        if cell.cell_key == row.cell_key:
            return cell
    return None


def _is_bad(row: Any) -> bool:
    return row.state == "failed"


def _counted(counts: dict[str, int]) -> str:
    parts = ", ".join(f"{n} {state}" for state, n in counts.items())
    return f"{sum(counts.values())}: {parts}" if counts else "none yet"


def _at_most(lines: Iterable[str]) -> list[str]:
    found = list(lines)
    more = len(found) - MOST_ROWS
    return [*found[:MOST_ROWS], *([f"{'':<10}and {more} more"] if more > 0 else [])]
