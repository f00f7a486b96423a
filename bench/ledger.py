"""Which cells a run has, and how each ended: planned before the work, settled after it.

A finished cell lies in the store that all runs share; one that failed lies in the folder of the run
in which it did, so that no run inherits the failure of another, or overwrites its success.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.result import CELL_FILE, Cell, SaeInfo, State, write_manifest

LOG = logging.getLogger(__name__)
FAILED = "failed"
"""Folder of a run for the cells that failed in it."""


@dataclass(frozen=True)
class PlannedCell:
    """One SAE on one suite, before it is computed."""

    key: str
    suite: str
    sae: SaeInfo
    sae_dir: Path
    folder: Path
    """In the store: where its cell.json will lie once it is finished, or lies already."""
    failure: Path
    """In the run's folder: where its cell.json lies if it failed."""

    def load(self) -> Cell | None:
        """How it ended; None while it has not, or where the record is damaged."""
        return _read(self.folder, self.key) or _read(self.failure, self.key)

    def state(self) -> State | None:
        """The state in which it ended; None while it has not."""
        cell = self.load()
        return cell.state if cell else None

    def save(self, cell: Cell) -> None:
        """Write how it ended to where it belongs. Raises OSError where that is impossible."""
        cell.save(self.failure if cell.state == "failed" else self.folder)


def forget_failures(cells: Iterable[PlannedCell]) -> None:
    """Make failed cells ones that are still to do."""
    for cell in cells:
        (cell.failure / CELL_FILE).unlink(missing_ok=True)


def close(out: Path, run: str, cells: Sequence[PlannedCell]) -> list[Cell]:
    """Write the run's manifest; the cells in the order they were planned. All must have ended."""
    ended = [cell.load() for cell in cells]
    folders = [c.failure if e and e.state == "failed" else c.folder for c, e in zip(cells, ended)]
    write_manifest(out, run, folders)
    return [cell for cell in ended if cell]


def _read(folder: Path, key: str) -> Cell | None:
    """The cell with this key; None where there is none that can be read."""
    try:
        if not (folder / CELL_FILE).is_file():
            return None
        cell = Cell.load(folder)
    except (UserError, ValueError) as error:  # damaged, or of another schema
        LOG.info("is computed anew: %s", error)
        return None
    return cell if cell.cell_key == key else None
