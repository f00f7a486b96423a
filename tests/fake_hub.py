"""A hub in a folder, at the boundary where a mirror meets the real one; it counts what it gives."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.mirror.source import RemoteFile
from bench.needs import DataNeed
from bench.sources import Kind


@dataclass
class FolderSource:
    """Models in `root/models/ID`, data in `root/datasets/PATH/[CONFIG/]SPLIT.jsonl`."""

    root: Path
    commits: dict[str, str] = field(default_factory=dict)
    """Hub id -> commit, where it is not `c0ffee`."""
    stop_after: int | None = None
    """Rows after which the network fails."""
    rows_given: int = 0
    downloads: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(hub id, commit) of every read."""

    def commit(self, kind: Kind, hub_id: str) -> str:
        return self.commits.get(hub_id, "c0ffee")

    def model_files(self, hub_id: str, commit: str) -> list[RemoteFile]:
        folder = self.root / "models" / hub_id
        if not folder.is_dir():
            raise UserError(f"model {hub_id!r}: is not on the hub")
        return [
            RemoteFile(
                p.relative_to(folder).as_posix(),
                p.stat().st_size,
                hashlib.sha256(p.read_bytes()).hexdigest() if p.suffix == ".safetensors" else None,
            )
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        ]

    def download(self, hub_id: str, commit: str, name: str, into: Path) -> Path:
        self.downloads.append(name)
        self.asked.append((hub_id, commit))
        into.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(self.root / "models" / hub_id / name, into / name))

    def splits(self, need: DataNeed, commit: str) -> list[str]:
        folder = self.root / "datasets" / need.folder
        return sorted(file.stem for file in folder.glob("*.jsonl"))

    def rows(self, need: DataNeed, commit: str, start: int) -> Iterator[dict[str, Any]]:
        self.asked.append((need.hub_id, commit))
        path = self.root / "datasets" / need.file
        if not path.is_file():
            raise UserError(f"dataset {need.path!r}: is not on the hub")
        with path.open() as lines:
            for i, line in enumerate(lines):
                if i >= start:
                    if self.rows_given == self.stop_after:
                        raise UserError("the network is gone")
                    self.rows_given += 1
                    yield json.loads(line)
