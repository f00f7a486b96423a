"""In which step each token of a pass is trained on: pure index arithmetic, no activations.

Tokens are counted in reading order. Blocks of tokens are shuffled and half of each block waits for
the next one, so that a step mixes tokens from two blocks, and any step can be reached by reading
two blocks. If all tokens fit into memory there is one round, in which everything is mixed.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Round(NamedTuple):
    """Steps that are fed from the same tokens."""

    first_step: int
    n_steps: int
    oldest: int
    """First token that must still be in memory."""
    newest: int
    """All tokens before this one must have been read."""
    tokens: Tensor
    """[n_steps * batch_size] the tokens of these steps, in the order of training."""


def rounds(
    n_steps: int, batch_size: int, buffer_tokens: int, generator: torch.Generator
) -> Iterator[Round]:
    """The rounds of a pass; at most `buffer_tokens` are in memory, but never less than four steps.

    Equal generators give equal rounds. Drawing them costs little, so a later step is reached by
    leaving out the rounds before it.
    """
    n_tokens = n_steps * batch_size
    if n_tokens <= buffer_tokens:
        yield Round(0, n_steps, 0, n_tokens, torch.randperm(n_tokens, generator=generator))
        return
    half = half_block(batch_size, buffer_tokens)
    waiting = torch.zeros(0, dtype=torch.long)
    first_step, oldest = 0, 0
    for start in range(0, n_tokens, 2 * half):
        end = min(start + 2 * half, n_tokens)
        block = start + torch.randperm(end - start, generator=generator)
        n_now = len(block) if end == n_tokens else half
        ready = torch.cat([waiting, block[:n_now]])
        waiting = block[n_now:]
        order = torch.randperm(len(ready), generator=generator)
        n_here = len(ready) // batch_size
        yield Round(first_step, n_here, oldest, end, ready[order])
        first_step, oldest = first_step + n_here, start


def half_block(batch_size: int, buffer_tokens: int) -> int:
    """Tokens of half a block: whole steps, a quarter of the memory."""
    return max(1, buffer_tokens // (4 * batch_size)) * batch_size


def deal(sizes: Sequence[int], n_hands: int) -> list[list[int]]:
    """Indices of units to `n_hands` in order, so that all get about the same summed size.

    A unit goes whole to the hand in which it begins.
    """
    hands: list[list[int]] = [[] for _ in range(n_hands)]
    total = sum(sizes)
    for i, end in enumerate(accumulate(sizes)):
        hands[(end - sizes[i]) * n_hands // total].append(i)
    return hands
