"""How large the largest temporary is that some code makes, forwards and backwards."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(NamedTuple):
    """The largest tensor."""

    shape: tuple[int, ...] = ()
    line: int | None = None
    """Of the plugin's file; None where it was made by nobody in it, as in a backward pass."""

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel() if self.shape else 0


def largest_temporary(action: Callable[[], object], path: Path) -> Largest:
    """Run `action`; `path` is the file whose lines to name."""
    with _Recorder(path) as recorder:
        action()
    return recorder.largest


class _Recorder(TorchDispatchMode):
    """Sees the result of every operation below autograd, those of backward passes too."""

    def __init__(self, path: Path):
        super().__init__()
        self._path = str(path)
        self.largest = Largest()

    def __torch_dispatch__(  # type: ignore[override]
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, list | tuple) else (result,):
            # a view, such as expand gives, takes no memory of its own
            is_new = isinstance(made, Tensor) and not made._is_view()
            if is_new and _n_stored(made) > self.largest.numel:
                self.largest = Largest(tuple(made.shape), self._line())
        return result

    def _line(self) -> int | None:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename == self._path:
                return frame.f_lineno
            frame = frame.f_back
        return None


def _n_stored(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:
        return 0
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())
