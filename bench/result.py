"""The result record: one finished cell (SAE x suite), and a run as a list of cells.

The only door for report/: imports no torch, so that a laptop can draw.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from bench.errors import UserError
from bench.files import write_atomic
from bench.sealed import Damaged, unsealed, write_sealed
from bench.strict import build

SCHEMA = 1
State = Literal["ok", "failed", "skipped", "invalid"]
Role = Literal["trained", "control", "imported"]

CELL_FILE = "cell.json"
MANIFEST_FILE = "cells.json"
STORE = ".store"
"""Folder beside the run folders that holds the finished cells of all runs."""
CACHE = ".cache"
"""Folder beside the run folders for what runs share."""


@dataclass(frozen=True)
class SaeInfo:
    """What made an SAE. None = not known or does not apply, never a stand-in value."""

    label: str
    """Unique name in its run, seed last, for example `topk_k8_s0`: `_s` and `init_seed`."""
    role: Role
    variant: str
    world: str
    """`nano` (synthetic) or `real`."""
    model: str
    """The model whose activations it was trained on."""
    hook_name: str
    d_in: int | None
    d_sae: int | None
    init_seed: int | None = None
    data_seed: int | None = None
    knob_name: str | None = None
    knob_value: float | None = None
    target_l0: float | None = None
    l0: float | None = None
    """Mean active latents per token on the held-out split, from the saved file."""
    train_tokens: int | None = None


@dataclass(frozen=True)
class MetricValue:
    """One metric of one cell."""

    name: str
    value: float | None
    direction: str
    headline: bool
    reason: str = ""
    """Why `value` is None, or what has to be known beside it."""


@dataclass(frozen=True)
class UnitValue:
    """One resampling unit of one metric of one cell."""

    metric: str
    unit_kind: str
    unit: str
    value: float
    n: int


@dataclass(frozen=True)
class Cell:
    """One SAE on one suite: how it ended and what it measured."""

    cell_key: str
    suite: str
    sae: SaeInfo
    state: State
    engine: str
    data_revision: str
    eval_seed: int | None
    metrics: tuple[MetricValue, ...] = ()
    units: tuple[UnitValue, ...] = ()
    reason: str = ""
    """Why the state is not `ok`."""
    evidence: tuple[str, ...] = ()
    """What shows that the SAE is degenerate, one reason each; it then counts for all its suites."""
    detail: str = ""
    """The traceback of a failed cell."""
    adjusted: dict[str, int] = field(default_factory=dict)
    """Settings that were lowered because the device ran out of memory, as they were used."""
    wall_s: float | None = None
    work: dict[str, int] = field(default_factory=dict)
    """Tokens, positions and fits that were computed, see bench.counters."""
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def save(self, folder: Path) -> None:
        """Write `folder`/cell.json atomically. NaN is refused: a missing value is None."""
        write_sealed(folder / CELL_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Cell":
        """Read a saved cell. Raises ValueError for another schema, UserError for a broken file."""
        path = folder / CELL_FILE
        try:
            return cls.from_dict(unsealed(_read_json(path)))
        except (UserError, Damaged) as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Cell":
        if not isinstance(raw, dict):
            raise UserError("must be a mapping of fields")
        if raw.get("schema") != SCHEMA:
            raise ValueError(f"cell has schema {raw.get('schema')}, this version reads {SCHEMA}")
        return build(cls, raw)


class RunResult(NamedTuple):
    """A run as the report sees it."""

    name: str
    cells: tuple[Cell, ...]
    folders: tuple[Path, ...] = ()
    """Where each cell lies."""


def write_manifest(folder: Path, run: str, cell_dirs: Iterable[Path]) -> None:
    """Say in `folder`/cells.json which cells make up the run, in the order they are shown.

    The cell folders lie below `folder`'s parent (in its .store); ValueError for any other.
    """
    root = folder.resolve().parent
    cells = []
    for cell_dir in cell_dirs:
        if not cell_dir.resolve().is_relative_to(root):
            raise ValueError(f"cell folder {cell_dir} is outside {root}")
        path = cell_dir.resolve().relative_to(root).as_posix()
        cells.append({"cell_key": Cell.load(cell_dir).cell_key, "path": path})
    manifest = {"schema": SCHEMA, "run": run, "cells": cells}
    write_atomic(folder / MANIFEST_FILE, json.dumps(manifest, indent=1))


def load_run(folder: Path) -> RunResult:
    """The cells named in `folder`/cells.json. Raises UserError where the run cannot be read."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(f"{folder}: is not a run folder, it has no {MANIFEST_FILE}")
    try:
        raw = _read_json(path)
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise UserError(f"is not a manifest of schema {SCHEMA}")
        manifest: _Manifest = build(_Manifest, raw)
        folders = tuple(_folder(folder.resolve().parent, entry) for entry in manifest.cells)
        cells = tuple(map(_cell, folders, manifest.cells))
    except (UserError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    return RunResult(manifest.run, cells, folders)


@dataclass(frozen=True)
class _Entry:
    cell_key: str
    path: str


@dataclass(frozen=True)
class _Manifest:
    schema: int
    run: str
    cells: tuple[_Entry, ...]


def _folder(root: Path, entry: _Entry) -> Path:
    folder = (root / entry.path).resolve()
    if not folder.is_relative_to(root):  # a manifest from elsewhere must not read other files
        raise UserError(f"path={entry.path!r}: leads outside {root}")
    return folder


def _cell(folder: Path, entry: _Entry) -> Cell:
    cell = Cell.load(folder)
    if cell.cell_key != entry.cell_key:
        raise UserError(
            f"path={entry.path!r}: holds cell {cell.cell_key!r} instead of {entry.cell_key!r}"
        )
    return cell


def _read_json(path: Path) -> Any:
    """Parsed JSON of a file; UserError where it is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise UserError("does not exist") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"cannot be read: {error}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON: a missing value is null")
