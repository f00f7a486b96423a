"""Trains SAEs that are too small for threads in processes of their own, a thread in each.

In steps as short as those of the nano world, PyTorch's threads mostly wait for one another: two
have 1.2 times the speed of one, two processes twice its speed. A process shares the activations
that its parent has in memory, and hands over nothing but checkpoints, from which the parent goes
on. So a process that dies or fails costs time and nothing else.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch
from torch import Tensor

from bench.signals import ENDING
from bench.trainee import Trainee
from bench.variant import Batch, Stream

LOG = logging.getLogger(__name__)
Report = Callable[[int, int, Sequence[str]], None]
"""Gets steps done, steps in all and a note on each SAE that is being trained."""
Work = Callable[[Sequence[Trainee], Stream, Report], object]
"""Takes the steps of some SAEs on the batches of a stream, and reports."""
SMALL_FLOPS = 2e9
"""Of a step: 0.45e9 on nano. Where threads gain much less than twice the speed (measured)."""
SILENT_S = 60.0
"""A process from which nothing is heard for so long is given up."""
ALIVE_EVERY_S = 1.0
"""Between two signs of life of a process."""
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


class Message(NamedTuple):
    """A report on its way from a process to its parent, which gets None as a sign of life."""

    done: int
    total: int
    notes: tuple[str, ...]


def is_small(stream: Stream) -> bool:
    """Whether steps on this stream are short, on a CPU, and all activations fit into memory.

    It does not depend on how many SAEs there are: with one thread or with more, sums are rounded
    differently, and an SAE's weights must not depend on its company.
    """
    config = stream.config
    if not getattr(stream, "is_in_memory", False) or stream.sample.device.type != "cpu":
        return False
    return 12.0 * config.batch_size * stream.sample.shape[1] * config.d_sae <= SMALL_FLOPS


@contextlib.contextmanager
def one_thread(is_wanted: bool) -> Iterator[int]:
    """A block with one PyTorch thread, if wanted; gets how many processes may be used in it."""
    before = torch.get_num_threads()
    if is_wanted:
        torch.set_num_threads(1)
    try:
        yield before if is_wanted and _can_fork() else 1
    finally:
        torch.set_num_threads(before)


def advance(
    work: Work,
    trainees: Sequence[Trainee],
    stream: Stream,
    n_processes: int,
    report: Report | None = None,
) -> None:
    """Bring the checkpoints of all to the end of training, in as many processes.

    How far they are afterwards, only the checkpoints tell. One SAE alone stays in this process.
    """
    n_processes = min(n_processes, len(trainees))
    if n_processes < 2:
        return
    assert len(stream.sample)  # read now, so that the processes share it
    groups = [trainees[i::n_processes] for i in range(n_processes)]
    with _children(work, groups, stream) as children:
        _follow(children, report)


class _Child:
    """A process in which some of the SAEs are trained."""

    def __init__(self, process: BaseProcess, messages: Connection):
        self.process, self.messages = process, messages
        self.last: Message | None = None
        self._heard_at = time.monotonic()

    def listen(self) -> bool:
        """Take the newest message; False once there are no more to come."""
        try:
            while self.messages.poll():
                self.last = self.messages.recv() or self.last
                self._heard_at = time.monotonic()
        except (EOFError, OSError):
            return False
        if time.monotonic() - self._heard_at <= SILENT_S:
            return True
        LOG.warning("a training process was silent for %g s; going on without it", SILENT_S)
        return False


@contextlib.contextmanager
def _children(
    work: Work, groups: Sequence[Sequence[Trainee]], stream: Stream
) -> Iterator[list[_Child]]:
    """A forked process per group; none is left behind the block."""
    context = multiprocessing.get_context("fork")
    children: list[_Child] = []
    try:
        for group in groups:
            heard, told = context.Pipe(duplex=False)
            process = context.Process(
                target=_main, args=(work, group, stream, told, os.getpid()), daemon=True
            )
            with warnings.catch_warnings():
                # Python 3.12 warns of threads: PyTorch's, which a child with one never calls
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            told.close()
            children.append(_Child(process, heard))
        yield children
    finally:
        for child in children:
            child.process.kill()
            child.process.join()
            child.messages.close()


def _follow(children: Sequence[_Child], report: Report | None) -> None:
    """Pass the reports on until every process has ended or is given up."""
    running = list(children)
    n_done = 0
    while running:
        wait([child.messages for child in running], timeout=ALIVE_EVERY_S)
        running = [child for child in running if child.listen()]
        last = [child.last for child in children if child.last or child in running]
        heard = [message for message in last if message]
        if report and len(heard) == len(last) and (done := min(m.done for m in heard)) > n_done:
            report(done, heard[0].total, [note for m in heard for note in m.notes])
            n_done = done


class _Alive:
    """A stream that gives a sign of life between its batches."""

    def __init__(self, stream: Stream, told: Connection):
        self.config, self.n_steps = stream.config, stream.n_steps
        self._stream, self._told = stream, told

    @property
    def sample(self) -> Tensor:
        return self._stream.sample

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        told_at = 0.0
        for batch in self._stream.batches(start):
            if time.monotonic() - told_at >= ALIVE_EVERY_S:
                self._told.send(None)
                told_at = time.monotonic()
            yield batch


def _main(
    work: Work, trainees: Sequence[Trainee], stream: Stream, told: Connection, parent: int
) -> None:
    """In a process of its own."""
    _end_with(parent)
    logging.disable()  # what fails here fails in the parent again, which tells it
    torch.set_num_threads(1)

    def tell(done: int, total: int, notes: Sequence[str]) -> None:
        told.send(Message(done, total, tuple(notes)))

    with contextlib.suppress(Exception):
        work(trainees, _Alive(stream, told), tell)
    told.close()


def _end_with(parent: int) -> None:
    """End when the parent does, in whatever way, and on a signal at once."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _can_fork() -> bool:
    # beside CUDA, autograd has threads of its own, which a fork does not have
    return sys.platform == "linux" and not torch.cuda.is_available()
