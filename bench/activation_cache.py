"""Activations on disk, so that a variant which is added later costs no pass of the language model.

One file per pass of the model, named after the hash of all that decides its content: the model's
files, the hook, precision, packages and the token ids. So nothing in it is ever stale.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.files import write_atomic
from bench.keys import content_key

LOG = logging.getLogger(__name__)
ENDING = ".safetensors"


class ActivationCache:
    """Files below `folder` that take at most `budget_bytes` together.

    When it is full, the files that were used longest ago make room, but never those of this run: a
    pass reads its files in one order, and each would push out the one that is needed next. What
    does not fit is computed again. A file that is damaged is deleted and made anew.
    """

    def __init__(self, folder: Path, budget_bytes: int, identity: Any):
        """`identity` is JSON-like: everything beside the tokens that decides the activations."""
        self._folder, self._budget, self._identity = folder, budget_bytes, identity
        self._ours: set[Path] = set()
        self._n_bytes = sum(size for *_, size in self._files())

    def get(self, tokens: Tensor, is_text: Tensor) -> Tensor | None:
        """[n, d_in] activations of the text tokens among `tokens` [b, T]; None if not there."""
        path = self._path(tokens, is_text)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return None
        rows = _read(path, int(is_text.sum()))
        if rows is None:
            LOG.warning("%s is damaged and is made anew", path)
            path.unlink(missing_ok=True)
            self._n_bytes -= size
            return None
        path.touch()  # the time of its last use
        self._ours.add(path)
        return rows

    def put(self, tokens: Tensor, is_text: Tensor, rows: Tensor) -> None:
        """Keep `rows` [n, d_in] if the budget allows it; a full disk costs only the speed."""
        from safetensors.torch import save

        rows = rows.contiguous().cpu()
        data = save({"rows": rows}, metadata={"sha256": _digest(rows)})
        path = self._path(tokens, is_text)
        if not self._make_room(len(data)):
            return
        try:
            write_atomic(path, data)
        except OSError as error:
            LOG.warning("activations are not kept on disk any more: %s", error)
            self._budget = 0
            return
        self._ours.add(path)
        self._n_bytes += len(data)

    def _make_room(self, n_bytes: int) -> bool:
        """Whether there is room, after deleting what was used longest ago."""
        if n_bytes > self._budget:
            return False
        if self._n_bytes + n_bytes <= self._budget:
            return True
        for path, _, size in sorted(self._files(), key=lambda file: file[1]):
            if path not in self._ours:
                path.unlink(missing_ok=True)
                self._n_bytes -= size
            if self._n_bytes + n_bytes <= self._budget:
                return True
        return False

    def _files(self) -> list[tuple[Path, float, int]]:
        """(path, time of last use, bytes) of each."""
        found = []
        for path in self._folder.glob(f"*{ENDING}"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another run made room
                continue
            found.append((path, stat.st_mtime, stat.st_size))
        return found

    def _path(self, tokens: Tensor, is_text: Tensor) -> Path:
        content = [self._identity, list(tokens.shape), _digest(tokens), _digest(is_text)]
        return self._folder / f"{content_key(content)}{ENDING}"


def _read(path: Path, n_rows: int) -> Tensor | None:
    """The activations, or None unless they are those that were written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            rows: Tensor = file.get_tensor("rows")
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    return rows if len(rows) == n_rows and _digest(rows) == expected else None


def _digest(values: Tensor) -> str:
    raw = values.contiguous().cpu().view(torch.uint8).numpy().data
    return hashlib.sha256(raw).hexdigest()
