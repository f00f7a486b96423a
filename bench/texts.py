"""Where the training text comes from: a data set of the hub or a mirror, or a local file.

A local file is one whose name ends in .txt (documents between blank lines), .jsonl or .parquet (one
document per row). Nothing is held in memory but the document at hand.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.config import TrainConfig
from bench.datasets import Hub, LocalHub
from bench.errors import UserError
from bench.keys import file_key

CONTENT_COLUMN = "content_id"
"""Column of files and mirrors that tells which texts say the same in other words."""
ROWS_PER_READ = 1024


class Text(NamedTuple):
    """One document."""

    text: str
    content_id: str = ""
    """Equal for documents that say the same thing in other words; empty where unknown."""


class TextSource(NamedTuple):
    """The training text of a run."""

    open: Callable[[], Iterator[Text]]
    """Starts over with the first document. Raises UserError in one line for what cannot be read."""
    n_bytes: int | None = None
    """At least the bytes of the text; None where unknown."""


def text_source(train: TrainConfig, hub: Hub) -> TextSource:
    """The text that `train.dataset` names. Raises UserError for a file that does not exist."""
    if is_file(train.dataset):
        path = Path(train.dataset)
        read = READERS[path.suffix]
        return TextSource(lambda: read(path, train.text_column), text_size(train.dataset))
    if isinstance(hub, LocalHub):
        size = hub.file(train.dataset, "train").stat().st_size
        return TextSource(lambda: _from_hub(train, hub, CONTENT_COLUMN), size)
    return TextSource(lambda: _from_hub(train, hub, None))


def is_file(dataset: str) -> bool:
    """Whether `train.dataset` names a local file rather than a data set of the hub."""
    return Path(dataset).suffix in READERS


def text_key(dataset: str) -> str | None:
    """Hash of a local file's bytes; None for a data set of the hub, which has a revision."""
    if not is_file(dataset):
        return None
    text_size(dataset)
    return file_key(Path(dataset))


def text_revision(train: TrainConfig, hub: Hub) -> str:
    """What tells two states of the training text apart, whatever else the run reads."""
    return text_key(train.dataset) or hub.revision_of([train.dataset])


def text_size(dataset: str) -> int:
    """Bytes of a local file. Raises UserError if it does not exist."""
    path = Path(dataset)
    if not path.is_file():
        raise UserError(f"train.dataset={dataset!r}: there is no such file, seen from {Path.cwd()}")
    return path.stat().st_size


def _from_txt(path: Path, column: str) -> Iterator[Text]:
    """Documents between blank lines; a plain text has no columns."""
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield Text("".join(lines).rstrip("\n"))
                    lines = []
    except UnicodeDecodeError as error:
        raise UserError(f"train.dataset={str(path)!r}: is not UTF-8 text: {error}") from error
    if lines:
        yield Text("".join(lines).rstrip("\n"))


def _from_jsonl(path: Path, column: str) -> Iterator[Text]:
    with path.open("rb") as file:
        for i, line in enumerate(file, 1):
            if line.strip():
                where = f"train.dataset={str(path)!r}, line {i}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{where}: is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise UserError(f"{where}: must be a JSON object, is {type(row).__name__}")
                yield _text(row, column, CONTENT_COLUMN, where)


def _from_parquet(path: Path, column: str) -> Iterator[Text]:
    import pyarrow
    import pyarrow.parquet

    where = f"train.dataset={str(path)!r}"
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            have = file.schema_arrow.names
            if column not in have:
                raise _no_column(where, column, have)
            wanted = [name for name in (column, CONTENT_COLUMN) if name in have]
            for rows in file.iter_batches(ROWS_PER_READ, columns=wanted):
                yield from (_text(r, column, CONTENT_COLUMN, where) for r in rows.to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{where}: cannot be read as parquet: {error}") from error


READERS: dict[str, Callable[[Path, str], Iterator[Text]]] = {
    ".txt": _from_txt,
    ".jsonl": _from_jsonl,
    ".parquet": _from_parquet,
}
"""Ending of a local file -> how it is read."""


def _from_hub(train: TrainConfig, hub: Hub, content: str | None) -> Iterator[Text]:
    where = f"train.dataset={train.dataset!r}"
    try:
        rows: Iterable[Any] = hub.load_dataset(train.dataset, split="train", streaming=True)
    except UserError as error:  # an unknown name, no network, a missing split
        raise UserError(f"{where}: {error}") from error
    for row in rows:
        yield _text(row, train.text_column, content, where)


def _text(row: dict[str, Any], column: str, content: str | None, where: str) -> Text:
    if column not in row:
        raise _no_column(where, column, row)
    if not isinstance(row[column], str):
        raise UserError(
            f"{where}: train.text_column={column!r} must hold text, has {row[column]!r:.40}"
        )
    return Text(row[column], str(row.get(content) or "") if content else "")


def _no_column(where: str, column: str, have: Iterable[str]) -> UserError:
    return UserError(f"{where}: train.text_column={column!r} is not among {', '.join(have)}")
