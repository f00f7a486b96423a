"""Probes for first letters on a few latents, and how well each number of latents does.

The probes are sae_bench's: latents are picked by an L1 probe on all of them, trained with the same
random numbers on the same batches, and each probe on k of them is fitted by scikit-learn.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.absorption.config import AbsorptionConfig
from bench.absorption.latent_acts import LatentActs
from bench.absorption.letters import LETTERS

if TYPE_CHECKING:
    from torch import Tensor

LR, LAST_LR, L2_DECAY = 0.01, 1e-5, 1e-6
"""sae_bench's, of the L1 probe."""


class KProbe(NamedTuple):
    """A probe on k latents."""

    latents: "Tensor"
    """[k], best first."""
    weight: "Tensor"
    """[k]"""
    bias: "Tensor"


def l1_probe(acts: LatentActs, y: "Tensor", cfg: AbsorptionConfig) -> "Tensor":
    """Weights [26, d_sae] of a probe for every letter. acts [n, d_sae], y [n].

    As `train_sparse_multi_probe` does it, which encodes every batch of every epoch anew.
    """
    import torch
    from sae_bench.evals.absorption.probing import LinearProbe
    from torch.utils.data import DataLoader

    targets = torch.nn.functional.one_hot(y)  # [n, 26]
    n_right = targets.sum(0)
    n, n_letters = targets.shape
    device = acts.device
    numbers: Any = range(n)
    loader = DataLoader(numbers, batch_size=cfg.k_sparse_probe_batch_size, shuffle=True)
    probe = LinearProbe(acts.shape[1], n_letters).to(device, dtype=acts.dtype)
    targets = targets.to(device, dtype=acts.dtype)
    loss_of = torch.nn.BCEWithLogitsLoss(pos_weight=((n - n_right) / n_right).to(device))
    optimiser = torch.optim.Adam(probe.parameters(), lr=LR, weight_decay=L2_DECAY)
    decay = math.exp(math.log(LAST_LR / LR) / cfg.k_sparse_probe_num_epochs)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, gamma=decay)
    with torch.enable_grad():
        for _ in range(cfg.k_sparse_probe_num_epochs):
            for batch in loader:
                optimiser.zero_grad()
                loss = loss_of(probe(acts.rows(batch)), targets[batch])
                loss += cfg.k_sparse_probe_l1_decay * probe.weights.abs().sum(dim=-1).mean()
                loss.backward()
                optimiser.step()
            schedule.step()
    return probe.weights.detach().float().cpu()


def k_probes(acts: LatentActs, y: "Tensor", picked_by: "Tensor", max_k: int) -> list[list[KProbe]]:
    """For each letter the probes on its best 1, 2, ... max_k latents. picked_by [26, d_sae]."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression

    found = []
    for letter, weights in enumerate(picked_by):
        is_letter = (y == letter).numpy().astype(np.int64)
        probes = []
        for k in range(1, max_k + 1):
            latents = weights.topk(k).indices
            x = acts.columns(latents).float().cpu().numpy()
            fitted = LogisticRegression(max_iter=500, class_weight="balanced").fit(x, is_letter)
            weight, bias = torch.tensor(fitted.coef_[0]), torch.tensor(fitted.intercept_[0])
            probes.append(KProbe(latents, weight.float(), bias.float()))
        found.append(probes)
    return found


def f1_of_probes(acts: LatentActs, y: "Tensor", probes: list[list[KProbe]]) -> "Tensor":
    """F1 [26, max_k] of each probe on other words."""
    import torch

    scores = torch.stack(
        [
            torch.stack([acts.columns(p.latents).float().cpu() @ p.weight + p.bias for p in some])
            for some in probes
        ]
    )  # [26, max_k, n]
    is_letter = y == torch.arange(len(probes))[:, None]  # [26, n]
    return f1(scores > 0, is_letter[:, None])


def f1_of_letters(scores: "Tensor", y: "Tensor") -> "Tensor":
    """F1 [26] of the letter probe. scores [n, 26], y [n]."""
    import torch

    return f1(scores.T > 0, y == torch.arange(len(LETTERS))[:, None])


def f1(predicted: "Tensor", actual: "Tensor") -> "Tensor":
    """F1 over the last axis, 0 where nothing is predicted or there, as in scikit-learn. [..., n]"""
    hits = (predicted & actual).sum(-1).double()
    total = (predicted.sum(-1) + actual.sum(-1)).double()
    return 2 * hits / total.clamp_min(1)


def split_latents(
    probes: list[list[KProbe]], f1_by_k: "Tensor", threshold: float
) -> list[list[int]]:
    """For each letter the latents it is split over: one more counts while F1 jumps by more."""
    found = []
    for some, scores in zip(probes, f1_by_k.tolist(), strict=True):
        best, latents = -math.inf, list[int]()
        for probe, score in zip(some, scores, strict=True):
            if score <= best + threshold:
                break
            best, latents = score, probe.latents.tolist()
        found.append(latents)
    return found
