"""L0 on a suite's own inputs: recorded beside its scores, by the same code for both engines.

Scores are compared at the L0 of held-out text; here is what the SAE did on what it was scored on.
It is measured outside what `bench.counters` counts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.suite import Scored

if TYPE_CHECKING:
    from torch import Tensor

    from bench.fast.probe_data import Split

L0_SUITE = "l0_suite"
"""The metric's name in every suite."""
TEXTS_PER_CLASS = 8
"""The first training texts of each class that sparse probing looks at."""
ROWS_PER_CALL = 4096


def active_per_token(sae: Any, x: "Tensor") -> float | None:
    """Mean number of latents that are not zero, as core and sae_bench count; None if n is 0.

    x [n, d_in] on any device; the SAE is in the precision that the suite left it in.
    """
    import torch

    if not len(x):
        return None
    with torch.no_grad():
        n_active = sum(
            torch.count_nonzero(sae.encode(rows.to(device=sae.device, dtype=sae.dtype))).item()
            for rows in x.split(ROWS_PER_CALL)
        )
    return n_active / len(x)


def with_l0(scored: Scored, l0: float | None) -> Scored:
    """The answer with its L0, or with why there is none."""
    missing = {} if l0 is not None else {L0_SUITE: "no token of the inputs counts"}
    return scored._replace(
        metrics=scored.metrics | {L0_SUITE: l0}, reasons=scored.reasons | missing
    )


def first_tokens(split: "Split") -> "Tensor":
    """[n, d_in] the tokens that count in the first texts of each class, on the CPU."""
    import torch

    pairs = [(x[:TEXTS_PER_CLASS], mask[:TEXTS_PER_CLASS]) for x, mask in split.classes()]
    return torch.cat([x[mask].cpu() for x, mask in pairs])


def first_tokens_of_sae_bench(folder: Path, datasets: Iterable[str]) -> "Tensor":
    """The same of all data sets, from the activations that sae_bench keeps in `folder`.

    It keeps zeros where a token does not count. Raises FileNotFoundError where a file is missing.
    """
    import torch
    from sae_bench.sae_bench_utils.dataset_info import chosen_classes_per_dataset

    kept = []
    for name in datasets:
        path = folder / f"{name}_activations.pt".replace("/", "_")
        # mapped: a file can take many GB, of which little is read
        train = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["train"]
        texts = [train[c][:TEXTS_PER_CLASS] for c in chosen_classes_per_dataset[name]]
        kept += [x[(x != 0).any(-1)] for x in texts]
    return torch.cat(kept)
