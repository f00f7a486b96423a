"""What each variant's step costs beside a step of `relu`: `pytest -m perf tests/perf -k cost -s`.

An eighth of d_in 2304, d_sae 16384 and 4096 tokens in contexts of 128, with every sample that a
term draws an eighth too: each product then has the same share of a step as at full size. Steps are
taken in turn, and no time is asserted. Masks and groups that are found anew every hundredth of
training are left out: at 244,000 steps they are one step in 2,440.
"""

import statistics
import time

import pytest
import torch

from bench import registry
from bench.ops import generator
from bench.variant import Batch, Step

D_IN, D_SAE, B, T = 288, 2_048, 4, 129
N_ROUNDS = 15
CONFIGS = {
    "directional": {"n_sample": 256, "n_rows": 128},
    "fixed_orthogonal": {"n_sample": 64},
    "adaptive_orthogonal": {"n_sample": 64},
    "contrastive": {"n_anchors": 32},
    "temporal_consistency": {"n_contexts": 1},
    "ortho_sae": {"chunk_size": 1_024},
    "t_sae": {"n_pairs": 32},
}


class Racer:
    """One variant with an optimiser, that takes a step on demand."""

    def __init__(self, name: str, batch: Batch):
        config = CONFIGS.get(name, {})
        variant = registry.load("variants", name, config)
        draws = generator(0, "weights")
        self.sae = variant(D_IN, D_SAE, variant.Config(**config), generator=draws)
        self.sae.start(batch.x)
        self.batch, self.times = batch, []
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=3e-4, fused=True)

    def step(self, i: int) -> None:
        dead = torch.zeros(D_SAE, dtype=torch.bool)
        step = Step(progress=0.3, sparsity_warmup=1.0, dead=dead, length=1e-6, number=i + 1)
        start = time.process_time()
        loss = torch.stack(list(self.sae.losses(self.batch, step).values())).sum()
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.sae.after_backward(step)
        self.adam.step()
        self.sae.after_step(self.batch, step)
        self.times.append(time.process_time() - start)


@pytest.mark.perf
def test_cost_of_each_variant(scoreboard, monkeypatch):
    monkeypatch.setattr("variants.contrastive.N_NEGATIVES", 32)
    for module in ("contrastive", "adaptive_orthogonal", "temporal_consistency"):
        monkeypatch.setattr(f"variants.{module}.EV_ROWS", 64)
    x = torch.randn(B, T, D_IN, generator=generator(0, "x")) / D_IN**0.5
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, 0] = False
    places = torch.arange(T).expand(B, T)
    batch = Batch(x[mask], x, places, places, mask, torch.arange(B), torch.full((B,), -1))
    racers = {name: Racer(name, batch) for name in registry.names("variants")}
    for i in range(N_ROUNDS + 2):
        for racer in racers.values():
            racer.step(i)
    medians = {name: statistics.median(r.times[2:]) for name, r in racers.items()}
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        low = min(racers[name].times[2:])
        scoreboard.append(
            {
                "race": "step of each variant",
                "size": f"d_in {D_IN}, d_sae {D_SAE}, {B * (T - 1)} tokens",
                "n_saes": 1,
                "side": name,
                "cpu_ms": 1e3 * median,
                "min_cpu_ms": 1e3 * low,
                "wall_ms": 1e3 * median,
                "ratio": median / medians["relu"],
            }
        )
    assert len(medians) == len(registry.names("variants"))
