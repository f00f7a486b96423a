"""Random latents that are needed as rarely on benign text as the ones that were chosen.

A latent that seldom fires on benign text cannot do much harm there, whatever it stands for. So the
choice by the texts to be forgotten has to beat a choice by benign frequency alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

N_NEAREST = 10
"""Latents of nearly the same frequency that one is drawn from."""
RESOLUTION = 1e-6
"""Frequencies are known to this."""


def matched(
    chosen: Sequence[int],
    forget: "np.ndarray[Any, Any]",
    retain: "np.ndarray[Any, Any]",
    seed: int,
) -> list[int]:
    """One other latent for each of `chosen`, in their order; fewer if too few ever fire.

    `forget`, `retain` [d_sae] are shares of tokens that a latent fires on. Drawn from the
    N_NEAREST by the ratio of their retain frequencies, among latents that fire on either corpus.
    """
    draws = np.random.default_rng(seed)
    alive = (forget > 0) | (retain > 0)
    alive[list(chosen)] = False
    left = draws.permutation(np.flatnonzero(alive))  # equal frequencies in no order
    rarity = np.log(retain + RESOLUTION)
    found: list[int] = []
    for latent in chosen[: len(left)]:
        nearest = np.argsort(np.abs(rarity[left] - rarity[latent]), kind="stable")[:N_NEAREST]
        drawn = draws.choice(nearest)
        found.append(int(left[drawn]))
        left = np.delete(left, drawn)
    return found
