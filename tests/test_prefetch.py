"""Batches made in the background are the same, end with their errors, and leave no thread."""

import threading

import pytest
import torch

from bench.prefetch import NAME, prefetched
from bench.variant import Batch

CPU = torch.device("cpu")


def batches(n, made=None):
    for i in range(n):
        if made is not None:
            made.append(i)
        yield Batch(torch.full((2, 3), float(i)))


@pytest.mark.parametrize("n_ahead", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 10])
def test_the_batches_are_the_same_in_the_same_order(n, n_ahead):
    found = [batch.x[0, 0].item() for batch in prefetched(batches(n), n_ahead, CPU)]
    assert found == list(range(n))
    assert NAME not in [thread.name for thread in threading.enumerate()]


def test_they_are_made_elsewhere_before_they_are_asked_for():
    where, third = [], threading.Event()

    def watched():
        for i, batch in enumerate(batches(5)):
            where.append(threading.current_thread())
            if i == 2:
                third.set()
            yield batch

    ahead = prefetched(watched(), 2, CPU)
    next(ahead)
    assert third.wait(timeout=20)  # one given, two waiting
    assert threading.main_thread() not in where
    ahead.close()


def test_no_more_than_asked_for_are_ahead():
    made: list[int] = []
    ahead = prefetched(batches(50, made), 2, CPU)
    next(ahead)
    assert len(made) <= 4  # one given, two waiting, one in the making
    ahead.close()
    assert NAME not in [thread.name for thread in threading.enumerate()]


def test_an_error_is_raised_where_the_batch_is_wanted():
    def broken():
        yield from batches(2)
        raise RuntimeError("the text is too short")

    ahead = prefetched(broken(), 4, CPU)
    assert len([next(ahead), next(ahead)]) == 2
    with pytest.raises(RuntimeError, match="the text is too short"):
        next(ahead)
    assert NAME not in [thread.name for thread in threading.enumerate()]
