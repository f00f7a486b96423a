"""Times sides in turn, in one process, so that all meet the same machine."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch


class Times(NamedTuple):
    """Seconds per repetition of one side, one entry per round."""

    cpu_s: list[float]
    """Of the process, all threads together: what other programs do matters less here."""
    wall_s: list[float]

    @property
    def cpu_ms(self) -> float:
        """The median."""
        return 1e3 * median(self.cpu_s)


def interleaved(runs: Sequence[Callable[[], object]], n_rounds: int) -> list[Times]:
    """Each side once per round, in reverse in every second one (A B B A), after a warm-up."""
    times = [Times([], []) for _ in runs]
    for run in runs:
        run()
    for i in range(n_rounds):
        order = range(len(runs)) if i % 2 == 0 else reversed(range(len(runs)))
        for j in order:
            cpu, wall = time.process_time(), time.perf_counter()
            runs[j]()
            times[j].cpu_s.append(time.process_time() - cpu)
            times[j].wall_s.append(time.perf_counter() - wall)
    return times


def products(n: int, d_in: int, d_sae: int, n_products: int) -> Callable[[], None]:
    """The matrix products of an SAE's step and nothing else: the floor."""
    x, W = torch.randn(n, d_in), torch.randn(d_in, d_sae)
    f, V = torch.randn(n, d_sae), torch.randn(d_sae, d_in)
    steps: list[Callable[[], torch.Tensor]] = [
        lambda: x @ W,
        lambda: f @ V,
        lambda: x @ V.T,
        lambda: f.T @ x,
        lambda: x.T @ f,
    ]

    def run() -> None:
        for step in steps[:n_products]:
            step()

    return run
