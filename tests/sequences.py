"""Hand-made batches with whole contexts, as a variant that `needs_sequences` gets them."""

from collections.abc import Iterator

import torch
from torch import Tensor
from training import D_IN, FakeStream, activations

from bench.variant import Batch


def contexts(b: int = 4, T: int = 8, d_in: int = D_IN, seed: int = 0) -> Batch:
    """b contexts of T tokens, the first of each a BOS; x holds the others in another order."""
    x = activations(b * T, d_in, seed).view(b, T, d_in)
    return batch_of(x)


def batch_of(x: Tensor, paraphrase_id: Tensor | None = None) -> Batch:
    """A batch of these contexts. x [b, T, d_in]."""
    b, T, _ = x.shape
    mask = torch.ones(b, T, dtype=torch.bool)
    mask[:, 0] = False
    order = torch.randperm(int(mask.sum()), generator=torch.Generator().manual_seed(0))
    return Batch(
        x=x[mask][order],
        contexts=x,
        token_ids=torch.arange(b * T).view(b, T),
        positions=torch.arange(T).expand(b, T),
        mask=mask,
        context_id=torch.arange(b),
        paraphrase_id=torch.full((b,), -1) if paraphrase_id is None else paraphrase_id,
    )


class FakeSequences(FakeStream):
    """As FakeStream, with whole contexts; each one is about something, so that tokens are alike."""

    def _pass(self) -> Iterator[Batch]:
        b, T = 4, 9  # BOS and 8 tokens
        per_batch = b * (T - 1)
        assert self.config.batch_size == per_batch
        topics = activations(self.n_steps * b, seed=1).view(self.n_steps, b, 1, D_IN)
        tokens = self.x[: self.n_steps * per_batch].view(self.n_steps, b, T - 1, D_IN)
        for topic, token in zip(topics, tokens):
            x = torch.cat([torch.zeros(b, 1, D_IN), 0.6 * topic + 0.4 * token], 1)
            yield batch_of(x)
