"""What plugins are rehearsed on: sparse sums of known directions, which a working SAE can learn.

White noise would not do: an SAE that learns nothing and one that learns all there is look alike.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from bench import ops
from bench.config import TrainConfig
from bench.variant import Batch

D_IN, D_SAE = 64, 128
L0 = 4
"""Directions that a token is the sum of, on average."""
CONTEXT = 17
"""Tokens per context, of which the first is special and never trained on."""
STAYS = 0.8
"""Chance that a direction of a token is one of the next token too."""
NOISE = 0.02
MEAN = 0.1
"""Of every dimension: streams of language models are not centred."""
BATCH = 256


class Views(NamedTuple):
    """The same tokens in both views."""

    contexts: Tensor
    """[b, T, d_in], zero where `mask` is False."""
    mask: Tensor
    """[b, T] bool."""

    @property
    def in_order(self) -> Tensor:
        """[n, d_in] in reading order."""
        return self.contexts[self.mask]


def views(n_tokens: int, *, d_in: int = D_IN, seed: int = 0) -> Views:
    """At least `n_tokens` tokens of unit mean squared norm, whose neighbours are alike."""
    generator = ops.generator(seed, "rehearsal")
    n_contexts, n_directions = -(-n_tokens // (CONTEXT - 1)), 2 * d_in
    rows = torch.randn(n_directions, d_in, generator=ops.generator(0, "rehearsal directions"))
    ops.normalise_rows_(rows)
    rate = L0 / n_directions
    draws = torch.rand(2, CONTEXT, n_contexts, n_directions, generator=generator)
    active = [draws[0, 0] < rate]
    for t in range(1, CONTEXT):
        active.append(torch.where(draws[0, t] < STAYS, active[-1], draws[1, t] < rate))
    sizes = 0.5 + torch.rand(n_contexts, CONTEXT, n_directions, generator=generator)
    says = torch.stack(active, dim=1)[torch.arange(n_contexts) // 2 * 2]  # every second one repeats
    contexts = (says * sizes) @ rows + MEAN  # [b, T, d_in]
    contexts += NOISE * torch.randn(contexts.shape, generator=generator)
    contexts /= contexts.pow(2).sum(-1).mean().sqrt()
    mask = torch.ones(n_contexts, CONTEXT, dtype=torch.bool)
    mask[:, 0] = False
    contexts[~mask] = 0.0
    return Views(contexts, mask)


def batch_of(some: Views, *, in_sequence: bool, seed: int = 0) -> Batch:
    """Shuffled tokens, and the whole contexts if they are asked for."""
    x = some.in_order
    x = x[torch.randperm(len(x), generator=ops.generator(seed, "rehearsal order"))]
    return Batch(x, *_sequences(some)) if in_sequence else Batch(x)


class RehearsalStream:
    """`n_steps` batches, the same ones in every pass."""

    def __init__(self, n_steps: int, *, in_sequence: bool, batch_size: int = BATCH):
        self.config = TrainConfig(
            d_sae=D_SAE, tokens=n_steps * batch_size, batch_size=batch_size, lr=3e-3
        )
        self.n_steps = n_steps
        self._views = views(n_steps * batch_size)
        self._in_sequence = in_sequence

    @property
    def sample(self) -> Tensor:
        """[n, d_in] the first activations."""
        return self._views.in_order[: 4 * BATCH]

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches from step `start` on."""
        return islice(self._pass(), start, None)

    def _pass(self) -> Iterator[Batch]:
        x = self._views.in_order
        n = self.config.batch_size
        order = torch.randperm(len(x), generator=ops.generator(0, "rehearsal order"))
        per_step = n // (CONTEXT - 1)
        for i in range(self.n_steps):
            rows = x[order[i * n : (i + 1) * n]]
            part = Views(*(t[i * per_step : (i + 1) * per_step] for t in self._views))
            yield Batch(rows, *_sequences(part)) if self._in_sequence else Batch(rows)


def heldout() -> Tensor:
    """[n, d_in] tokens that no rehearsal trains on."""
    return views(4 * BATCH, seed=1).in_order


def _sequences(some: Views) -> tuple[Tensor, ...]:
    """The other fields of a Batch; every second context says what the one before it says."""
    n_contexts, size = some.mask.shape
    ids = torch.arange(n_contexts)
    tokens = torch.arange(n_contexts * size).reshape(n_contexts, size) % 97
    positions = torch.arange(size).expand(n_contexts, -1)
    return some.contexts, tokens, positions, some.mask, ids, ids // 2
