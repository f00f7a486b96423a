"""What suites compute once and share on disk: tensors named after everything that decides them.

The name of a file is the hash of its key, so nothing in it is ever stale; its checksum is read
back, so nothing in it is ever damaged.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.keys import content_key

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)
ENDING = ".safetensors"
CHECKSUM, CONTENT = "sha256", "content"
"""Entries of a file's header: hash of its tensors, and the key in plain words."""
GB = 10**9


class Cache:
    """Files below `folder` that take at most `budget_gb` together; 0 keeps none.

    When it is full, the files that were used longest ago make room. Processes may share it: each
    reads whole files or none, and what two compute at once is written twice, with equal content.
    """

    def __init__(self, folder: Path, budget_gb: float):
        self._folder, self._budget = folder, int(budget_gb * GB)

    def tensors(
        self, key: Mapping[str, Any], make: Callable[[], "dict[str, Tensor]"]
    ) -> "dict[str, Tensor]":
        """What `make()` gave for this key, now or earlier, on the CPU.

        `key` is JSON-like and holds everything that decides the content. Raises TypeError where it
        is not JSON-like, and what `make` raises; a file that is damaged is made anew.
        """
        path = self._folder / f"{content_key(dict(key))}{ENDING}"
        found = self._read(path)
        if found is not None:
            return found
        made = {name: value.contiguous().cpu() for name, value in make().items()}
        self._write(path, made, key)
        return made

    def keeps(self, n_bytes: int) -> bool:
        """Whether content of this size would be kept; what is larger is better streamed."""
        return n_bytes <= self._budget

    def _read(self, path: Path) -> "dict[str, Tensor] | None":
        """The tensors, or None unless they are exactly those that were written."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                found = {name: file.get_tensor(name) for name in names}
                expected = (file.metadata() or {}).get(CHECKSUM)
            if _digest(found) == expected:
                os.utime(path)  # the time of its last use
                return found
        except (SafetensorError, OSError) as error:
            LOG.info("%s: %s", path, error)
        LOG.warning("%s is damaged and is made anew", path)
        path.unlink(missing_ok=True)
        return None

    def _write(self, path: Path, tensors: "dict[str, Tensor]", key: Mapping[str, Any]) -> None:
        """Keep the tensors if the budget allows it; a full disk costs only the speed."""
        from safetensors.torch import save_file

        n_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
        if not self.keeps(n_bytes):
            return
        header = {CHECKSUM: _digest(tensors), CONTENT: json.dumps(dict(key), sort_keys=True)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, prefix=f"{path.name}.")
            os.close(handle)
            temporary = Path(name)
            try:
                save_file(tensors, temporary, metadata=header)
                self._make_room(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            LOG.warning("%s is not kept: %s", path, error)

    def _make_room(self, new: Path) -> None:
        """Delete what was used longest ago, and what a killed process left, until `new` fits."""
        files = sorted(self._files(), key=lambda file: file[1])
        used = sum(size for *_, size in files)
        for path, _, size in files:
            if used <= self._budget:
                return
            if path != new:
                path.unlink(missing_ok=True)
                used -= size

    def _files(self) -> list[tuple[Path, float, int]]:
        """(path, time of last use, bytes) of each, half-written ones included."""
        found = []
        for path in self._folder.glob(f"*{ENDING}*"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process made room
                continue
            found.append((path, stat.st_mtime, stat.st_size))
        return found


def _digest(tensors: "dict[str, Tensor]") -> str:
    """Hash of names, types, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
