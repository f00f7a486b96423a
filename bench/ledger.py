"""Which cells a run has, and how each ended: planned before the work, settled after it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.files import write_atomic
from bench.result import CELL_FILE, Cell, SaeInfo, State, write_manifest

LEDGER_FILE = "ledger.json"


@dataclass(frozen=True)
class PlannedCell:
    """One SAE on one suite, before it is computed."""

    key: str
    suite: str
    sae: SaeInfo
    sae_dir: Path
    folder: Path
    """Where its cell.json will lie, or lies already."""

    def state(self) -> State | None:
        """How it ended; None while it has not, or where the record cannot be read."""
        if not (self.folder / CELL_FILE).is_file():
            return None
        return Cell.load(self.folder).state

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to compute; a failed cell is tried again."""
        return self.state() in ("ok", "invalid", "skipped")


def record(out: Path, cells: Iterable[PlannedCell]) -> None:
    """Write out/ledger.json: every planned cell with its state, `pending` where it has none yet."""
    rows = [
        {"cell_key": c.key, "suite": c.suite, "label": c.sae.label, "state": c.state() or "pending"}
        for c in cells
    ]
    write_atomic(out / LEDGER_FILE, json.dumps({"cells": rows}, indent=1))


def close(out: Path, run: str, cells: list[PlannedCell]) -> list[Cell]:
    """Settle the ledger and write the run's manifest; the cells in the order they were planned."""
    record(out, cells)
    write_manifest(out, run, [cell.folder for cell in cells])
    return [Cell.load(cell.folder) for cell in cells]
