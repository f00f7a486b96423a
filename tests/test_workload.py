"""What the formulas of work say of Gemma-2-2B, and that the documentation says the same."""

from pathlib import Path

import pytest

from bench.counters import Work
from bench.fast import workload
from bench.shapes import GEMMA_2_2B

D_SAE = 16_384
PER_TOKEN = {
    "block": GEMMA_2_2B.layer_params,
    "unembed": GEMMA_2_2B.vocab_params,
    "sae": GEMMA_2_2B.d_model * D_SAE,
}
DOCS = Path(__file__).parents[1] / "docs/performance.md"
COLUMNS = ("lm_block_tokens", "unembed_tokens", "sae_encoded_tokens", "sae_decoded_tokens")


def petaflop(work: Work) -> float:
    """Two operations per multiplication."""
    return 2e-15 * workload.multiplications(work, **PER_TOKEN)


def table() -> list[str]:
    """Rows of the table in docs/performance.md: millions of tokens, probe fits, PFLOP."""
    rows = []
    for engine, name in (("reference", "sae_bench"), ("fast", "ours")):
        costs = dict(workload.gemma_costs(engine))
        costs["all four"] = workload.Cost(*(sum(works, Work()) for works in zip(*costs.values())))
        for suite, cost in costs.items():
            works = {"set-up": cost.setup} | {f"N = {n}": cost.warm(n) for n in (1, 8, 48)}
            rows += [
                _row(suite, name, when, work) for when, work in works.items() if work != Work()
            ]
    return rows


def _row(suite: str, name: str, when: str, work: Work) -> str:
    counts = [f"{getattr(work, column) / 1e6:,.1f}" for column in COLUMNS]
    cells = [suite, name, when, *counts, f"{work.probe_fits:,}", f"{petaflop(work):,.1f}"]
    return f"| {' | '.join(cells)} |"


def test_the_documentation_has_the_table_of_the_formulas():
    text = DOCS.read_text()
    missing = [row for row in table() if row not in text]
    assert not missing, "\n".join(["docs/performance.md lacks:", *table()])


@pytest.mark.parametrize(
    ("suite", "pflop"), [("core", 15.4), ("unlearning", 17.6), ("absorption", 16.8)]
)
def test_sae_bench_takes_per_sae_what_its_readme_says_in_minutes(suite, pflop):
    """At 28.5 TFLOP/s core's 15.4 are the 9 minutes of the README."""
    assert petaflop(workload.gemma_costs("reference")[suite].own) == pytest.approx(pflop, rel=0.02)


def test_the_set_up_of_unlearning_takes_what_the_readme_says():
    setup = petaflop(workload.gemma_costs("reference")["unlearning"].setup)
    assert setup / 28.5e-3 / 60 == pytest.approx(33, rel=0.1)


@pytest.mark.parametrize("suite", ["core", "absorption", "unlearning"])
def test_an_added_sae_costs_less_than_the_first(suite):
    cost = workload.gemma_costs("fast")[suite]
    per_sae = [petaflop(cost.warm(n)) / n for n in (1, 2, 4, 8, 16, 48)]
    assert per_sae == sorted(per_sae, reverse=True)
    assert per_sae[-1] < 0.8 * per_sae[0]


def test_work_adds_up():
    cost = workload.Cost(Work(1), Work(2, 3), Work(4, probe_fits=5))
    assert cost.warm(3) == Work(14, 3, probe_fits=15)
    assert workload.times(Work(2, 1), 3) == Work(6, 3)
