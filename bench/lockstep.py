"""The training loop: every SAE of the group takes a step on the same batch, then the next batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from bench import parallel
from bench.allocator import keep_freed_memory
from bench.parallel import Report
from bench.trainee import Trainee, is_report
from bench.variant import Stream, Variant


def train_lockstep(
    trainees: Sequence[Trainee], stream: Stream, report: Report | None = None
) -> None:
    """Train all on the batches of one pass; those with a training of their own get a pass each.

    Goes on from the checkpoint of each. What fails in one stops that one only, see its `outcome`.
    """
    if not trainees:
        return
    own = [t for t in trainees if type(t.variant).train is not Variant.train]
    together = [t for t in trainees if t not in own]
    with parallel.one_thread(parallel.is_small(stream)) as n_processes:
        lasting = [t for t in together if t.has_checkpoints]
        parallel.advance(_start_and_step, lasting, stream, n_processes, report)
        train_in_loop(together, stream, report)
        with _own_random_numbers():
            for trainee in own:
                trainee.train_itself(stream)
                trainee.close()


def train_in_loop(
    trainees: Sequence[Trainee], stream: Stream, report: Report | None = None
) -> None:
    """As `train_lockstep`, with gradient steps for all."""
    if not trainees:
        return
    with _own_random_numbers():
        _start_and_step(trainees, stream, report)
        for trainee in trainees:
            if trainee.is_running:
                trainee.finish(stream)
    for trainee in trainees:
        trainee.close()


def _start_and_step(
    trainees: Sequence[Trainee], stream: Stream, report: Report | None = None
) -> None:
    keep_freed_memory()
    sample = stream.sample
    for trainee in trainees:
        trainee.start(sample)
    _take_steps(trainees, stream, report)


def _take_steps(trainees: Sequence[Trainee], stream: Stream, report: Report | None) -> None:
    # a crash while checkpoints are written leaves some SAEs further than others
    first = min(t.outcome.n_steps if t.is_running else stream.n_steps for t in trainees)
    if first == stream.n_steps:
        return
    for i, batch in enumerate(stream.batches(first), first):
        running = [t for t in trainees if t.is_running and t.outcome.n_steps < stream.n_steps]
        if not running:
            return
        for trainee in running:
            trainee.step(i, batch)
        if report and is_report(i + 1, stream.n_steps):
            report(i + 1, stream.n_steps, [t.note for t in running])


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave torch's global generators as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield
