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
from pathlib import Path
from typing import NamedTuple

import torch

from bench.signals import ENDING
from bench.trainee import Trainee
from bench.variant import Stream

LOG = logging.getLogger(__name__)
Report = Callable[[int, int, Sequence[str]], None]
"""Gets steps done, steps in all and a note on each SAE that is being trained."""
Work = Callable[[Sequence[Trainee], Stream, Report], object]
"""Takes the steps of some SAEs on the batches of a stream, and reports."""
SMALL_FLOPS = 2e9
"""Of a step: 0.45e9 on nano. Where threads gain much less than twice the speed (measured)."""
IDLE_S = 60.0
"""A process that neither computes nor reports for so long is given up."""
LOOK_EVERY_S = 1.0
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


class Message(NamedTuple):
    """A report on its way from a process to its parent."""

    done: int
    total: int
    notes: tuple[str, ...]


def is_small(stream: Stream) -> bool:
    """Whether steps on this stream are short, on a CPU, and all activations fit into memory.

    It does not depend on how many SAEs there are: with one thread or with more, sums are rounded
    differently, and an SAE's weights must not depend on its company.
    """
    config = stream.config
    if not _has_fork() or not getattr(stream, "is_in_memory", False):
        return False
    sample = stream.sample
    flops = 12.0 * config.batch_size * sample.shape[1] * config.d_sae
    return sample.device.type == "cpu" and flops <= SMALL_FLOPS


@contextlib.contextmanager
def one_thread(is_wanted: bool) -> Iterator[int]:
    """A block with one PyTorch thread, if wanted; gets how many processes may be used in it."""
    before = torch.get_num_threads()
    if is_wanted:
        torch.set_num_threads(1)
    try:
        # a daemon, such as a worker of a pool, may not have children
        yield before if is_wanted and not multiprocessing.current_process().daemon else 1
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
    groups = [trainees[i::n_processes] for i in range(n_processes)]
    with _children(work, groups, stream) as children:
        _follow(children, report)


class _Child:
    """A process in which some of the SAEs are trained."""

    def __init__(self, process: BaseProcess, messages: Connection):
        self.process, self.messages = process, messages
        self.last: Message | None = None
        self._looked_at, self._cpu_s, self._idle_s = time.monotonic(), 0.0, 0.0

    @property
    def is_finished(self) -> bool:
        """Whether its last report was of the last step."""
        return self.last is not None and self.last.done == self.last.total

    def listen(self) -> bool:
        """Take the newest message; False once there are no more to come."""
        now, cpu_s = time.monotonic(), _cpu_s(self.process.pid)
        is_idle, self._cpu_s = cpu_s <= self._cpu_s, cpu_s
        try:
            while self.messages.poll():
                self.last = self.messages.recv()
                is_idle = False
        except (EOFError, OSError):
            self._tell_of_its_end()
            return False
        # a look after a long while, as when all were suspended, says no more than a usual one
        looked_for = min(now - self._looked_at, 2 * LOOK_EVERY_S)
        self._looked_at = now
        self._idle_s = self._idle_s + looked_for if is_idle else 0.0
        if self._idle_s <= IDLE_S:
            return True
        LOG.warning("a training process was idle for %g s; going on without it", IDLE_S)
        return False

    def _tell_of_its_end(self) -> None:
        self.process.join(LOOK_EVERY_S)
        if self.process.exitcode:
            LOG.warning(
                "a training process ended with exit status %d; going on without it",
                self.process.exitcode,
            )


@contextlib.contextmanager
def _children(
    work: Work, groups: Sequence[Sequence[Trainee]], stream: Stream
) -> Iterator[list[_Child]]:
    """A forked process per group, as far as the system allows; none is left behind the block."""
    children: list[_Child] = []
    try:
        for group in groups:
            try:
                children.append(_started(work, group, stream))
            except OSError as error:  # too many processes or open files, too little memory
                LOG.warning("no training process can be started: %s", error)
                break
        yield children
    finally:
        for child in children:
            child.process.kill()
            child.process.join()
            child.messages.close()


def _started(work: Work, group: Sequence[Trainee], stream: Stream) -> _Child:
    context = multiprocessing.get_context("fork")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(
        target=_main, args=(work, group, stream, told, os.getpid()), daemon=True
    )
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads: PyTorch's, which a child with one never calls
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    except OSError:
        heard.close()
        raise
    finally:
        told.close()
    return _Child(process, heard)


def _follow(children: Sequence[_Child], report: Report | None) -> None:
    """Pass the reports on until every process has ended or is given up."""
    running = list(children)
    n_done = 0
    while running:
        wait([child.messages for child in running], timeout=LOOK_EVERY_S)
        running = [child for child in running if child.listen()]
        # one that ended early is left to the parent
        last = [c.last for c in children if c in running or c.is_finished]
        heard = [message for message in last if message]
        done = min((message.done for message in heard), default=0)
        if report and len(heard) == len(last) and done > n_done:
            report(done, heard[0].total, [note for m in heard for note in m.notes])
            n_done = done


def _main(
    work: Work, trainees: Sequence[Trainee], stream: Stream, told: Connection, parent: int
) -> None:
    """In a process of its own."""
    _end_with(parent)
    logging.disable()  # what fails here fails in the parent again, which tells it
    torch.set_num_threads(1)

    def tell(done: int, total: int, notes: Sequence[str]) -> None:
        if any(trainee.has_lost_a_checkpoint for trainee in trainees):
            raise OSError("what is trained here cannot be handed over")
        told.send(Message(done, total, tuple(notes)))

    with contextlib.suppress(Exception):
        work(trainees, stream, tell)
    told.close()


def _end_with(parent: int) -> None:
    """End when the parent does, in whatever way, and on a signal at once."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _cpu_s(pid: int | None) -> float:
    """Seconds that a process has computed for; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _has_fork() -> bool:
    # beside CUDA, autograd has threads of its own, which a fork does not have
    return sys.platform == "linux" and not torch.cuda.is_available()
