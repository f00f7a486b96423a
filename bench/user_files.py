"""Data sets that the user has as a file: .jsonl or .parquet, read row by row, nothing unpickled."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.errors import UserError

ROWS_PER_READ = 1024


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file. Raises UserError in one line for one that cannot be read."""
    return _parquet(path) if path.suffix == ".parquet" else _jsonl(path)


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for i, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(line, f"{path}, line {i}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be a JSON object, is {type(row).__name__}")
    return row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for rows in file.iter_batches(ROWS_PER_READ):
                yield from rows.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as parquet: {error}") from error
