"""Races of our training step against SAELens and dictionary_learning; see docs/performance.md.

Nothing here fails for being slow. What fails is the gate: a race between sides that do not do the
same maths has no time.
"""

import os
from statistics import median

import pytest
import torch
from races import RACES, SAME, Race, Size, difference, line_up
from timing import interleaved, products

from bench.allocator import keep_freed_memory

pytestmark = pytest.mark.perf

N_ROUNDS = int(os.environ.get("PERF_ROUNDS", "6"))
MAIN = Size("256 x 2048, batch 4096", d_in=256, d_sae=2048, batch=4096, k=32)
NANO = Size("nano, 96 x 768, batch 256", d_in=96, d_sae=768, batch=256, k=16)
GATE_STEPS = 20


@pytest.fixture(autouse=True, scope="module")
def _same_machine_for_all():
    """One thread, and an allocator that keeps freed memory: for all sides alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if os.environ.get("PERF_MALLOC") != "default":
        keep_freed_memory()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("n_saes", [1, 6, 12], ids="n{}".format)
@pytest.mark.parametrize("size", [MAIN, NANO], ids=lambda size: size.name)
@pytest.mark.parametrize("race", RACES, ids=lambda race: race.name)
def test_step(race: Race, size: Size, n_saes: int, benchmark, scoreboard):
    gate = line_up(race, size._replace(batch=256), 1)
    assert difference(gate, GATE_STEPS) < SAME

    field = line_up(race, size, n_saes)
    n_steps = 1 if size is MAIN else 20
    floor = products(size.batch, size.d_in, size.d_sae, race.n_products)
    runs = [lambda side=side: side.run(n_steps) for side in field.sides]
    runs.append(lambda: [floor() for _ in range(n_steps * n_saes)])
    times = benchmark.pedantic(interleaved, (runs, N_ROUNDS), rounds=1)

    names = [side.name for side in field.sides] + [f"{race.n_products} matrix products"]
    for name, taken in zip(names, times, strict=True):
        ratios = [b / a for a, b in zip(times[0].cpu_s, taken.cpu_s, strict=True)]
        row = {
            "race": race.name,
            "size": size.name,
            "n_saes": n_saes,
            "side": name,
            "cpu_ms": taken.cpu_ms / n_steps / n_saes,
            "min_cpu_ms": 1e3 * min(taken.cpu_s) / n_steps / n_saes,
            "wall_ms": 1e3 * median(taken.wall_s) / n_steps / n_saes,
            "ratio": median(ratios),
        }
        benchmark.extra_info[name] = row
        scoreboard.append(row)
