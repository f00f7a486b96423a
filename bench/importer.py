"""Import sae_bench result files (core, sparse probing, absorption, unlearning) into a run folder.

A file without the expected form is refused in one line, before anything is written.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from bench.checkpoint import SAELENS_CONFIG_FILE
from bench.errors import UserError
from bench.result import MANIFEST_FILE, STORE, Cell, RunResult, load_run, write_manifest
from bench.saebench_cell import to_cell
from bench.saebench_json import FORMATS
from bench.strict import unknown


class Imported(NamedTuple):
    """What an import did."""

    cells: list[Cell]
    skipped: list[str]
    """Files of a folder that hold no result we can import, each with the reason."""


def import_path(path: Path, into: Path) -> Imported:
    """Add the results in a file, or in every .json below a folder, to the run folder `into`.

    An imported cell of the same SAE and suite that the run already has is replaced. Raises
    UserError for input that cannot be imported; nothing is written then.
    """
    found, skipped = _read_all(path)
    cells = _distinct([(file, _cell(file, raw)) for file, raw in found])
    run = load_run(into) if (into / MANIFEST_FILE).exists() else RunResult(into.resolve().name, ())
    _check_labels(cells, run)
    store = into.resolve().parent / STORE
    for cell in cells:
        cell.save(store / cell.cell_key)
    new = {(cell.sae.label, cell.suite) for cell in cells}
    old = zip(run.cells, run.folders, strict=True)
    kept = [folder for cell, folder in old if (cell.sae.label, cell.suite) not in new]
    write_manifest(into, run.name, [*kept, *(store / cell.cell_key for cell in cells)])
    return Imported(cells, skipped)


def _read_all(path: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    if (path / SAELENS_CONFIG_FILE).is_file():
        raise UserError(
            f"import {str(path)!r}: is an SAE, not a result: score it with `run --sae {path}`, or "
            "with `saelens: [{path: ...}]` in a config"
        )
    if path.is_file():
        raw = _read(path)
        if problem := _unsupported(raw):
            raise UserError(f"{path}: {problem}")
        return [(path, raw)], []
    if not path.is_dir():
        raise UserError(f"import {str(path)!r}: does not exist")
    found, skipped = [], []
    for file in sorted(path.rglob("*.json")):
        if not file.resolve().is_relative_to(path.resolve()):
            skipped.append(f"{file}: is a link out of {path}")
            continue
        raw = _read(file)
        problem = _unsupported(raw)
        skipped.append(f"{file}: {problem}") if problem else found.append((file, raw))
    if not found:
        raise UserError(f"import {str(path)!r}: holds no result of {', '.join(sorted(FORMATS))}")
    return found, skipped


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from error


def _unsupported(raw: Any) -> str | None:
    if not isinstance(raw, dict) or "eval_type_id" not in raw:
        return "is not a sae_bench result: it has no eval_type_id"
    if not isinstance(raw["eval_type_id"], str) or raw["eval_type_id"] not in FORMATS:
        return str(unknown("eval_type_id", raw["eval_type_id"], FORMATS))
    return None


def _cell(path: Path, raw: dict[str, Any]) -> Cell:
    try:
        return to_cell(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _distinct(found: list[tuple[Path, Cell]]) -> list[Cell]:
    """The cells without copies. Raises UserError where two files disagree about one cell."""
    first: dict[tuple[str, str], tuple[Path, Cell]] = {}
    for file, cell in found:
        other, kept = first.setdefault((cell.sae.label, cell.suite), (file, cell))
        if kept.cell_key != cell.cell_key:
            raise UserError(
                f"{file}: another {cell.suite} result of {cell.sae.label!r} than in {other}, "
                "import only one of them"
            )
    return [cell for _, cell in first.values()]


def _check_labels(cells: list[Cell], run: RunResult) -> None:
    taken = {cell.sae.label for cell in run.cells if cell.sae.role != "imported"}
    for cell in cells:
        if cell.sae.label in taken:
            raise UserError(
                f"label {cell.sae.label!r}: the run {run.name!r} trained an SAE of that name, "
                "import into another folder"
            )
