"""Races of whole suites against sae_bench's own functions; see docs/performance.md.

Nothing here fails for being slow. What fails is the gate: sides that do not come to the same
numbers have no time.
"""

import os
import time
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from suite_sides import SUITES, Fast, Reference, Side, assert_same
from suite_table import Row, lines, total
from timing import Times, interleaved
from worlds import WORLDS

from bench.allocator import keep_freed_memory

pytestmark = pytest.mark.perf

N_ROUNDS = int(os.environ.get("PERF_ROUNDS", "2"))
N_WORDS, MAX_K = 2000, 10


@pytest.fixture(autouse=True, scope="module")
def _same_machine_for_all():
    """One thread, and an allocator that keeps freed memory: for both sides, as in our workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if os.environ.get("PERF_MALLOC") != "default":
        keep_freed_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rows(request):
    """Shown when the module is done."""
    found: list[Row] = []
    yield found
    plugin = request.config.pluginmanager.get_plugin
    with plugin("capturemanager").global_and_fixture_disabled():
        for line in lines(found):
            plugin("terminalreporter").write_line(line)


@pytest.mark.parametrize("n_saes", [1, 2, 4, 8, 16], ids="n{:02}".format)
@pytest.mark.parametrize("suite", [*SUITES, "all"])
@pytest.mark.parametrize("world", list(WORLDS))
def test_suite(world, suite, n_saes, tmp_path, benchmark, rows):
    suites = SUITES if suite == "all" else (suite,)
    sides = [
        _Timed(partial(kind, WORLDS[world](), name, n_saes, tmp_path / f"{name}-{kind.__name__}"))
        for name in suites
        for kind in (Reference, Fast)
    ]
    times = benchmark.pedantic(interleaved, ([side.run for side in sides], N_ROUNDS), rounds=1)

    found = []
    for name, pair, taken in zip(suites, in_pairs(sides), in_pairs(times), strict=True):
        theirs, ours = (timed.side for timed in pair)
        assert_same(name, theirs.found, ours.found)
        setup = tuple(timed.setup_s(t) for timed, t in zip(pair, taken, strict=True))
        found.append(Row(f"{world}, {n_saes}", name, *taken, setup, (theirs.work, ours.work)))
    if suite == "all":
        found.append(total(found))
    benchmark.extra_info["rows"] = [row.record() for row in found]
    rows += found


def test_absorption_scoring(benchmark, rows):
    """Scores, F1 and the choice of latents of fitted probes: what sae_bench does word by word."""
    from bench.absorption import k_sparse
    from bench.absorption.latent_acts import LatentActs

    words = _Words()
    found = {}

    def theirs() -> None:
        found["theirs"] = words.by_saebench()

    def ours() -> None:
        acts = LatentActs(words.sae, words.x, 4096)
        with torch.no_grad():
            of_letters = k_sparse.f1_of_letters(words.probe(words.x), words.y)
        f1 = k_sparse.f1_of_probes(acts, words.y, words.probes)
        k_sparse.split_latents(words.probes, f1, 0.03)
        found["ours"] = [of_letters.tolist(), *f1.T.tolist()]

    times = benchmark.pedantic(interleaved, ([theirs, ours], N_ROUNDS), rounds=1)
    names = ["f1_probe", *(f"f1_sparse_sae_{k}" for k in range(1, MAX_K + 1))]
    assert found["ours"] == [list(found["theirs"][name]) for name in names]
    row = Row(f"toy, 1 ({N_WORDS} words)", "absorption: scoring", *times, (0, 0), words.no_work())
    benchmark.extra_info["rows"] = [row.record()]
    rows.append(row)


def in_pairs(both: list) -> list[tuple]:
    """Pairs of theirs and ours."""
    return list(zip(both[::2], both[1::2], strict=True))


class _Words:
    """Words of known first letters, an SAE, and probes on its latents, fitted on the same words."""

    def __init__(self):
        from sae_bench.evals.absorption.probing import LinearProbe
        from worlds import TOY, toy

        from bench.absorption import k_sparse
        from bench.absorption.latent_acts import LatentActs

        draws = torch.Generator().manual_seed(0)
        self.sae = toy().handles(1)[0].sae
        directions = torch.randn(26, TOY.d_model, generator=draws)
        self.y = torch.arange(N_WORDS) % 26
        noise = torch.randn(N_WORDS, TOY.d_model, generator=draws)
        self.x = 3 * directions[self.y] + 2 * noise + self.sae.b_dec.detach()
        self.probe = LinearProbe(TOY.d_model, 26)
        with torch.no_grad():
            self.probe.weights.copy_(directions)
            acts = LatentActs(self.sae, self.x, 4096)
        picked_by = torch.stack([self._contrast(acts, i) for i in range(26)])
        self.probes = k_sparse.k_probes(acts, self.y, picked_by, MAX_K)

    def by_saebench(self):
        """Its table of F1."""
        from sae_bench.evals.absorption import k_sparse_probing as theirs

        from bench.absorption.letters import LETTERS

        probes = {
            k: {
                i: theirs.KSparseProbe(p.weight, p.bias, p.latents)
                for i, some in enumerate(self.probes)
                for p in some[k - 1 : k]
            }
            for k in range(1, MAX_K + 1)
        }
        labels = [(f"{LETTERS[y]}-{i}", y) for i, y in enumerate(self.y.tolist())]
        scores = theirs.eval_probe_and_sae_k_sparse_raw_scores(
            self.sae, self.probe, probes, labels, self.x, eval_batch_size=512
        )
        metadata = theirs.sae_k_sparse_metadata(self.sae, self.probe, probes, "sae", 2)
        return theirs.build_metrics_df(scores, metadata, MAX_K)

    @staticmethod
    def no_work():
        from bench.counters import Work

        return Work(), Work()

    def _contrast(self, acts, letter: int) -> torch.Tensor:
        """[d_sae] how much more each latent fires on this letter than on others."""
        dense = acts.rows(torch.arange(N_WORDS))
        mine = self.y == letter
        return dense[mine].mean(0) - dense[~mine].mean(0)


class _Timed:
    """A side whose first run is timed: it finds nothing on disk."""

    def __init__(self, make: Callable[[], Side]):
        start = time.process_time()
        self.side, self.cold_s = make(), None
        self.built_s = time.process_time() - start

    def run(self) -> None:
        start = time.process_time()
        self.side.run()
        if self.cold_s is None:
            self.cold_s = self.built_s + time.process_time() - start

    def setup_s(self, warm: Times) -> float:
        """CPU seconds that the first run took more than a later one."""
        assert self.cold_s is not None
        return self.cold_s - min(warm.cpu_s)
