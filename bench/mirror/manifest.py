"""manifest.json of a mirror: what lies in it, from which commit, and the checksum of every file."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.errors import UserError
from bench.files import write_atomic
from bench.keys import content_key
from bench.needs import DataNeed
from bench.sources import DATA, MANIFEST_FILE, MODELS, Kind
from bench.strict import build

SCHEMA = 1
UNFINISHED = ".unfinished"
"""Folder of a mirror for what is still being fetched."""


@dataclass(frozen=True)
class FileRecord:
    """One file."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One model, or one split of a data set."""

    kind: Kind
    hub_id: str
    """Where it was fetched from; the user's file name where it was given."""
    commit: str
    """On the hub; `file` for a file that the user gave."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    """Path below the mirror -> size and checksum."""
    is_complete: bool = False
    """False while its files are still being fetched."""
    need: DataNeed | None = None
    """Of a data set: what of it is here."""
    n_rows: int | None = None
    is_whole: bool = False
    """Of a data set: whether the split has no more rows than these."""

    def satisfies(self, need: DataNeed) -> bool:
        """Whether nothing of `need` is missing."""
        if not self.is_complete or self.need is None:
            return False
        has = replace(self.need, n_rows=None, n_chars=None) if self.is_whole else self.need
        return has.covers(need)


@dataclass(frozen=True)
class Manifest:
    """Everything in a mirror."""

    schema: int = SCHEMA
    entries: dict[str, Entry] = field(default_factory=dict)
    """`models/ID` or `datasets/PATH/[CONFIG/]SPLIT` -> what it holds."""

    def with_entry(self, name: str, entry: Entry) -> "Manifest":
        """The same with one entry more, or another in its place."""
        return replace(self, entries=self.entries | {name: entry})

    def data(self, path: str) -> dict[str, Entry]:
        """The splits of a data set."""
        return {
            name: entry
            for name, entry in self.entries.items()
            if entry.need is not None and entry.need.path == path
        }

    def model(self, hub_id: str) -> Entry | None:
        """A model, if it is complete."""
        entry = self.entries.get(f"{MODELS}/{hub_id}")
        return entry if entry is not None and entry.is_complete else None


def data_name(need: DataNeed) -> str:
    """The entry of a split of a data set."""
    return f"{DATA}/{need.folder}/{need.split}"


def read(root: Path) -> Manifest:
    """The manifest of a mirror. Raises UserError for a folder that is none, or a broken one."""
    path = root / MANIFEST_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise UserError(f"is not a manifest of schema {SCHEMA}")
        manifest: Manifest = build(Manifest, raw)
        for entry in manifest.entries.values():
            for name in entry.files:
                inside(root, name)
    except FileNotFoundError:
        raise UserError(f"mirror={str(root)!r}: has no {MANIFEST_FILE}") from None
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from error
    return manifest


def read_or_new(root: Path) -> Manifest:
    """The manifest of a mirror, an empty one where there is none yet."""
    return read(root) if (root / MANIFEST_FILE).exists() else Manifest()


def write(root: Path, manifest: Manifest) -> None:
    """Write the manifest, atomically."""
    write_atomic(root / MANIFEST_FILE, json.dumps(asdict(manifest), indent=1))


def inside(root: Path, name: str) -> Path:
    """The file `name` below `root`. Raises UserError for one that leads out of it.

    Names come from hubs and from manifests that others made.
    """
    path = root / name
    if ".." in path.parts or not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"path {name!r}: leads outside {root}")
    return path


def record(path: Path) -> FileRecord:
    """Size and checksum of a file as it is."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, sha256)


def revision(manifest: Manifest, names: "list[str]") -> str:
    """What tells two states of these entries apart, from the checksums that were recorded."""
    return content_key({name: _content(manifest.entries[name]) for name in sorted(names)})


def _content(entry: Entry) -> list[Any]:
    return [[name, file.sha256] for name, file in sorted(entry.files.items())]


class Damage(NamedTuple):
    """A file that is not what was fetched."""

    file: str
    problem: str


def verify(root: Path) -> Iterator[Damage]:
    """Recompute every checksum: each file that is missing, altered or unknown, as it is found."""
    manifest = read(root)
    listed = set()
    for entry in manifest.entries.values():
        for name, expected in entry.files.items():
            listed.add(name)
            if problem := _problem(inside(root, name), expected):
                yield Damage(name, problem)
    for path in sorted(p for p in root.rglob("*") if p.is_file() or p.is_symlink()):
        name = path.relative_to(root).as_posix()
        if name not in listed | {MANIFEST_FILE} and not name.startswith(f"{UNFINISHED}/"):
            yield Damage(name, "is not in the manifest")


def _problem(path: Path, expected: FileRecord) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != expected.size:
        return f"has {path.stat().st_size} bytes instead of {expected.size}"
    found = record(path).sha256
    if found != expected.sha256:
        return f"has sha256 {found[:12]}... instead of {expected.sha256[:12]}..."
    return None
