"""Makes batches in a background thread, so that the language model and the SAEs overlap on a GPU.

The batches are the same with and without it: one thread makes them, in order.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch

from bench.variant import Batch

NAME = "batches ahead"
"""Of the thread, in a debugger and in the tests."""
POLL_S = 0.1
"""How soon the thread sees that nobody waits any more, in seconds."""


class _End(NamedTuple):
    error: BaseException | None


def prefetched(batches: Iterator[Batch], n_ahead: int, device: torch.device) -> Iterator[Batch]:
    """The same batches, up to `n_ahead` of them made before they are asked for.

    On a CUDA device they are made on a stream of their own. What `batches` raises is raised here;
    closing this iterator ends the thread.
    """
    done = threading.Event()
    ready: queue.Queue = queue.Queue(maxsize=n_ahead)
    maker = threading.Thread(
        target=_make, args=(batches, ready, done, _side_stream(device)), daemon=True, name=NAME
    )
    maker.start()
    try:
        while not isinstance(item := ready.get(), _End):
            batch, made = item
            _use_here(batch, made)
            yield batch
        if item.error is not None:
            raise item.error
    finally:
        done.set()
        maker.join()


def _make(
    batches: Iterator[Batch],
    ready: queue.Queue,
    done: threading.Event,
    side: "torch.cuda.Stream | None",
) -> None:
    """Fill the queue until the batches end or nobody waits for them."""
    error: BaseException | None = None
    try:
        with torch.cuda.stream(side) if side else contextlib.nullcontext():
            for batch in batches:
                _put(ready, (batch, side.record_event() if side else None), done)
                if done.is_set():
                    return
    except BaseException as raised:  # handed to the thread that waits
        error = raised
    _put(ready, _End(error), done)


def _put(ready: queue.Queue, item: object, done: threading.Event) -> None:
    while not done.is_set():
        with contextlib.suppress(queue.Full):
            ready.put(item, timeout=POLL_S)
            return


def _side_stream(device: torch.device) -> "torch.cuda.Stream | None":
    """A CUDA stream that starts where the current one stands; None on another device."""
    if device.type != "cuda":
        return None
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    return side


def _use_here(batch: Batch, made: "torch.cuda.Event | None") -> None:
    """Let the current stream wait for the batch, and keep its memory until it is done with it."""
    if made is None:
        return
    here = torch.cuda.current_stream(batch.x.device)
    here.wait_event(made)
    for value in batch:
        if value is not None and value.is_cuda:
            value.record_stream(here)
