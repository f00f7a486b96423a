"""A stream of random activations with planted directions, small enough to train on in a test."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from bench.config import TrainConfig
from bench.ops import generator
from bench.variant import Batch, Step

D_IN, D_SAE = 8, 24


class FakeStream:
    """Sparse sums of more directions than dimensions; every pass gives the same batches."""

    def __init__(self, n_steps: int = 50, **settings):
        known = {"d_sae": D_SAE, "batch_size": 32, "lr": 3e-3, "tokens": 32 * n_steps}
        self.config = TrainConfig(**(known | settings))
        self.n_steps = n_steps
        self.x = activations(self.config.batch_size * n_steps)

    @property
    def sample(self) -> Tensor:
        return self.x[:64]

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return islice(self._pass(), start, None)

    def _pass(self) -> Iterator[Batch]:
        for rows in self.x.split(self.config.batch_size):
            yield Batch(rows)


def activations(n: int, d_in: int = D_IN, seed: int = 0) -> Tensor:
    """[n, d_in] with a mean, of unit mean squared norm."""
    g = generator(seed, "test data")
    directions = torch.nn.functional.normalize(torch.randn(2 * d_in, d_in, generator=g), dim=-1)
    active = torch.rand(n, 2 * d_in, generator=g) < 0.15
    x = (active * torch.rand(n, 2 * d_in, generator=g)) @ directions + 0.2
    return x / x.pow(2).sum(-1).mean().sqrt()


def make(variant: type, seed: int = 0, d_in: int = D_IN, d_sae: int = D_SAE, **config):
    """An untrained variant with these settings."""
    return variant(d_in, d_sae, variant.Config(**config), generator=generator(seed, "weights"))


def at(d_sae: int = D_SAE, dead: list[int] | None = None, **fields) -> Step:
    """A step in the middle of training with these latents dead."""
    mask = torch.zeros(d_sae, dtype=torch.bool)
    mask[dead or []] = True
    known = {"progress": 0.5, "sparsity_warmup": 1.0, "dead": mask, "n_dead": len(dead or [])}
    return Step(**(known | fields))


def set_weights(variant, **weights) -> None:
    """Write nested lists or tensors into parameters."""
    with torch.no_grad():
        for name, value in weights.items():
            variant.get_parameter(name).copy_(torch.as_tensor(value))
