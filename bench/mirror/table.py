"""One split of a data set as a .jsonl file of a mirror, with the rows and columns needed."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from bench.errors import UserError
from bench.files import write_atomic
from bench.mirror import manifest as mirror
from bench.mirror.manifest import UNFINISHED, Entry
from bench.mirror.source import Source
from bench.needs import DataNeed
from bench.sources import DATA
from bench.strict import build
from bench.user_files import read_rows

ROWS_PER_NOTE = 10_000
"""Rows between two notes of how far a file is, from which a stopped fetch goes on."""


@dataclass
class Tally:
    """How far a file is."""

    need: DataNeed
    commit: str
    n_read: int = 0
    """Rows of the data set."""
    n_rows: int = 0
    """Rows of the file."""
    n_bytes: int = 0
    n_chars: int = 0
    """Of the first column."""
    per_group: dict[str, int] = field(default_factory=dict)

    def is_enough(self) -> bool:
        """Whether every bound of the need is reached; never where it has none."""
        need = self.need
        counts = Counter(self.per_group)
        return need.is_bounded and (
            self.n_rows >= (need.n_rows or 0)
            and self.n_chars >= (need.n_chars or 0)
            and all(counts[group] >= need.n_per_group for group in need.groups)
        )

    def add(self, row: Mapping[str, Any], line: bytes) -> None:
        """Count a row that was written."""
        need = self.need
        text = row[need.columns[0]] if need.columns else ""
        n_chars = len(text) if isinstance(text, str) else 0
        self.n_rows, self.n_bytes = self.n_rows + 1, self.n_bytes + len(line)
        self.n_chars += n_chars
        if need.groups and n_chars > need.longer_than:
            group = row[need.group_by]
            self.per_group[group] = self.per_group.get(group, 0) + 1


def fetch_split(need: DataNeed, commit: str, root: Path, source: Source) -> Entry:
    """Bring one split into the mirror. A fetch that was stopped goes on behind its last note.

    Raises UserError where the source fails, a column is missing or the rows are too few.
    """
    part = mirror.inside(root, f"{UNFINISHED}/{DATA}/{need.file}")
    part.parent.mkdir(parents=True, exist_ok=True)
    note = part.with_suffix(".note.json")
    tally = _noted(note, part, need, commit)
    with part.open("r+b" if part.exists() else "wb") as file:
        file.truncate(tally.n_bytes)
        file.seek(tally.n_bytes)
        is_whole = _copy(source, tally, file, note)
        file.flush()
        os.fsync(file.fileno())
    _check(tally, is_whole)
    note.unlink(missing_ok=True)
    return _placed(part, need, commit, tally, root, is_whole=is_whole)


def copy_file(need: DataNeed, path: Path, root: Path) -> Entry:
    """Bring a file that the user has into the mirror, as the whole of a data set."""
    part = mirror.inside(root, f"{UNFINISHED}/{DATA}/{need.file}")
    part.parent.mkdir(parents=True, exist_ok=True)
    tally = Tally(need, "file")
    with part.open("wb") as file:
        for row in read_rows(path):
            _add(tally, row, file)
    entry = _placed(part, need, "file", tally, root, is_whole=True)
    return replace(entry, hub_id=path.name)


def _copy(source: Source, tally: Tally, file: IO[bytes], note: Path) -> bool:
    """Copy rows until they are enough; whether the data set ended first."""
    if tally.is_enough():
        return False
    for row in source.rows(tally.need, tally.commit, tally.n_read):
        tally.n_read += 1
        if tally.need.keeps(row):
            _add(tally, row, file)
        if tally.n_read % ROWS_PER_NOTE == 0:
            file.flush()
            write_atomic(note, json.dumps(asdict(tally)))
        if tally.is_enough():
            return False
    return True


def _add(tally: Tally, row: Mapping[str, Any], file: IO[bytes]) -> None:
    need = tally.need
    missing = [name for name in need.columns if name not in row]
    if missing:
        raise UserError(
            f"dataset {need.folder!r}: has no column {missing[0]!r}, but {', '.join(row)}"
        )
    kept = {name: row[name] for name in need.columns} if need.columns else dict(row)
    try:
        line = json.dumps(kept, ensure_ascii=False).encode() + b"\n"
    except (TypeError, UnicodeEncodeError) as error:
        raise UserError(f"dataset {need.folder!r}: a row cannot be written: {error}") from error
    file.write(line)
    tally.add(row, line)


def _noted(note: Path, part: Path, need: DataNeed, commit: str) -> Tally:
    """How far the file is, or the start if what is there is of something else."""
    try:
        tally: Tally = build(Tally, json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, UserError):
        return Tally(need, commit)
    is_same = (tally.need, tally.commit) == (need, commit)
    is_there = part.is_file() and part.stat().st_size >= tally.n_bytes
    return tally if is_same and is_there else Tally(need, commit)


def _check(tally: Tally, is_whole: bool) -> None:
    need, counts = tally.need, Counter(tally.per_group)
    few = [f"{g} has {counts[g]}" for g in need.groups if counts[g] < need.n_per_group]
    if is_whole and few:
        raise UserError(
            f"dataset {need.folder!r}: too few rows, {', '.join(few)}, {need.n_per_group} needed"
        )
    if tally.n_rows == 0:
        raise UserError(f"dataset {need.folder!r}: its split {need.split!r} has no rows")


def _placed(
    part: Path, need: DataNeed, commit: str, tally: Tally, root: Path, *, is_whole: bool
) -> Entry:
    name = f"{DATA}/{need.file}"
    target = mirror.inside(root, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    found = mirror.record(part)
    os.replace(part, target)
    return Entry(
        kind="dataset",
        hub_id=need.hub_id,
        commit=commit,
        files={name: found},
        is_complete=True,
        need=need,
        n_rows=tally.n_rows,
        is_whole=is_whole,
    )
