"""Checkpoints of a training that is under way: atomic, checksummed, never the only copy at risk.

A checkpoint is a pair of files, `<step>.safetensors` and then `<step>.json`, which holds the hash
of the first and of itself: without a JSON file that fits, there is no checkpoint. The one before
stays until the next pair after the new one is begun, so that a write that fails (a full disk, a
crash) or a file that rots leaves a whole one. Nothing is pickled.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bench.files import write_atomic
from bench.keys import content_key

LOG = logging.getLogger(__name__)
SCHEMA = 1
TENSORS, RECORD = ".safetensors", ".json"
DIGITS = 9
"""Of the step in a file name, so that names sort as steps do."""


class Snapshot(NamedTuple):
    """The state of one training after `n_steps` steps."""

    n_steps: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    """Whatever JSON holds exactly: floats keep all their digits."""


class Snapshots:
    """The last two checkpoints of one training, in a folder of its own."""

    def __init__(self, folder: Path, key: str):
        """`key` is the hash of all that decides the training: others' checkpoints are passed by."""
        self._folder, self._key = folder, key

    def save(self, snapshot: Snapshot) -> None:
        """Write one and keep the newest whole one before it. Raises OSError if it cannot be."""
        from safetensors.torch import save

        older = list(islice(self._whole(), 1))
        self._prune(older)  # makes room first: two of them is the most that lies there
        name = f"{snapshot.n_steps:0{DIGITS}}"
        tensors = {n: t.detach().cpu().contiguous() for n, t in snapshot.tensors.items()}
        data = save(tensors)
        try:
            write_atomic(self._folder / f"{name}{TENSORS}", data)
            write_atomic(self._folder / f"{name}{RECORD}", self._record(snapshot, data))
        except OSError:
            self._prune(older)
            raise

    def load(self) -> Snapshot | None:
        """The newest whole one; None if there is none. A damaged one is told in the log."""
        from safetensors.torch import load

        for n_steps in self._whole():
            record = self._read_record(n_steps)
            assert record is not None  # _whole has read it
            tensors = load(self._path(n_steps, TENSORS).read_bytes())
            return Snapshot(n_steps, tensors, record["values"])
        return None

    def clear(self) -> None:
        """Remove all, when the training is over and its outcome written."""
        self._prune([])
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _whole(self) -> Iterator[int]:
        """Steps of the undamaged checkpoints with our key, newest first."""
        stems = sorted((p.stem for p in self._folder.glob(f"*{RECORD}")), reverse=True)
        return (int(stem) for stem in stems if stem.isdigit() and self._is_whole(int(stem)))

    def _is_whole(self, n_steps: int) -> bool:
        path = self._path(n_steps, TENSORS)
        record = self._read_record(n_steps)
        if record is not None and record.get("key") != self._key:
            return False
        try:
            if record is not None and record["tensors"] == _hash(path.read_bytes()):
                return True
        except OSError as error:
            LOG.warning("checkpoint %s: cannot be read: %s", path, error)
            return False
        LOG.warning("checkpoint %s: is damaged, the one before it is used", path)
        return False

    def _record(self, snapshot: Snapshot, data: bytes) -> str:
        content = {
            "schema": SCHEMA,
            "key": self._key,
            "n_steps": snapshot.n_steps,
            "tensors": _hash(data),
            "values": snapshot.values,
        }
        return json.dumps({**content, "checksum": content_key(content)}, allow_nan=False)

    def _read_record(self, n_steps: int) -> dict[str, Any] | None:
        """The JSON file; None if it is not what was written."""
        try:
            record = json.loads(self._path(n_steps, RECORD).read_text(encoding="utf-8"))
            checksum = record.pop("checksum")
            fits = checksum == content_key(record) and record["n_steps"] == n_steps
            return record if fits and record["schema"] == SCHEMA else None
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None

    def _path(self, n_steps: int, suffix: str) -> Path:
        return self._folder / f"{n_steps:0{DIGITS}}{suffix}"

    def _prune(self, keep: list[int]) -> None:
        """Remove every file that belongs to none of `keep`, those of interrupted writes too."""
        if not self._folder.is_dir():
            return
        kept = {f"{n:0{DIGITS}}{suffix}" for n in keep for suffix in (TENSORS, RECORD)}
        for path in self._folder.iterdir():
            if path.name not in kept and path.is_file():
                path.unlink(missing_ok=True)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
