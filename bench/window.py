"""The tokens of the training text that are in memory: a ring that is filled in reading order."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.packing import Group


class Read(NamedTuple):
    """A group of contexts and what the model saw of it."""

    first: int
    """Tokens of text before it, special ones not counted."""
    first_context: int
    """Contexts before it."""
    group: Group
    rows: Tensor
    """[n, d_in] activations of its text tokens."""


class Held(NamedTuple):
    """One context in memory."""

    first: int
    """Tokens of text before it."""
    number: int
    """Contexts before it."""
    tokens: Tensor
    """[T] ids."""
    is_text: Tensor
    """[T] bool."""
    paraphrase_id: Tensor
    """[] int."""


class Window:
    """The last `size` text tokens read, and the contexts they are from if `keep_contexts`."""

    def __init__(self, reads: Iterator[Read], size: int, *, keep_contexts: bool = False):
        self._reads, self._size, self._keep_contexts = reads, size, keep_contexts
        self._contexts: deque[Held] = deque()
        self._rows: Tensor | None = None
        self._norms = torch.zeros(size)
        self.n_read = 0
        """Text tokens that were read up to here, counted from the start of the text."""

    def read_one(self) -> bool:
        """Read the next group; False if there is none. What does not fit pushes out the oldest."""
        found = next(self._reads, None)
        if found is None:
            return False
        rows = found.rows
        if self._rows is None:
            self._rows = rows.new_empty(self._size, rows.shape[1])
        at = torch.arange(found.first, found.first + len(rows)) % self._size
        self._rows[at.to(rows.device)] = rows
        self._norms[at] = norms(rows).cpu()
        self.n_read = found.first + len(rows)
        if self._keep_contexts:
            self._contexts.extend(_contexts(found))
        return True

    def take(self, tokens: Tensor) -> Tensor:
        """Activations [n, d_in] of `tokens` [n] in float32."""
        assert self._rows is not None
        return self._rows[(tokens % self._size).to(self._rows.device)].float()

    def are_below(self, tokens: Tensor, max_norm: float) -> Tensor:
        """Whether the norms of `tokens` [n] are at most this. [n] bool, on the CPU."""
        return self._norms[tokens % self._size] <= max_norm

    def contexts(self, start: int, end: int) -> list[Held]:
        """Those whose first text token is in [start, end); all before `start` are forgotten."""
        while self._contexts and self._contexts[0].first < start:
            self._contexts.popleft()
        return [c for c in self._contexts if c.first < end]


def norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row in float32. [n, d_in] -> [n]."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)


def _contexts(found: Read) -> Iterator[Held]:
    first = found.first
    for i, (tokens, is_text, paraphrase_id) in enumerate(zip(*found.group)):
        n = int(is_text.sum())
        if n:  # a context of special tokens alone has nothing to train on
            yield Held(first, found.first_context + i, tokens, is_text, paraphrase_id)
        first += n
