"""sparse_probing for many SAEs: each data set is read, and run through the model, once for all.

With the same seed every accuracy is sae_bench's own (evals/sparse_probing/main.py of 0.6.0, its
activations already cached): an SAE's draws come from a generator of its own, in sae_bench's order,
so that they do not depend on its place in the list. What differs:

- tokens that do not count are known from their ids, not from activations that sum to zero;
- padding behind the longest text of a batch is not encoded;
- a probe on k latents copies the columns that it uses, not the whole matrix several times;
- the probe on all latents is not tried on its training texts, which changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.context import EvalContext
from bench.counters import Work
from bench.fast.l0 import active_per_token, first_tokens
from bench.fast.part import Part
from bench.fast.probe_data import (
    Activations,
    Settings,
    Split,
    activations,
    mean_over_tokens,
    model_accuracies,
)
from bench.fast.probes import Table, full_accuracies, top_k_accuracies
from bench.suite import SaeHandle

if TYPE_CHECKING:
    from torch import Generator, Tensor

Accuracies = dict[str, dict[str, float]]
"""sae_bench's metric -> class -> accuracy."""
SKIPPED = {"-1": -1.0}
"""What sae_bench writes in place of accuracies that it left out."""


@dataclass
class Probed:
    """One SAE on its way through the data sets."""

    handle: SaeHandle
    sae: Any
    """In the precision of the language model."""
    part: Part
    generator: "Generator"
    by_dataset: dict[str, Accuracies] = field(default_factory=dict)
    l0: float | None = None
    """On the inputs; None until it is measured."""


class AllProbed(NamedTuple):
    """What came out of all data sets."""

    saes: list[Probed]
    inputs: "Tensor"
    """[n, d_in] the tokens that L0 is measured on, on the CPU."""


def probe_all(
    ctx: EvalContext, cfg: Any, hook: str, saes: Sequence[tuple[SaeHandle, Any]], total: Work
) -> AllProbed:
    """Every SAE (handle, SAE in the model's precision) of one hook on every data set.

    `cfg` is sparse_probing's Config; `total` counts what the model, SAEs and probes do.
    """
    import torch

    settings = Settings(
        cfg.probe_train_set_size,
        cfg.probe_test_set_size,
        cfg.context_length,
        cfg.llm_batch_size,
        ctx.seed,
    )
    probed = [
        Probed(handle, sae, Part(total), torch.Generator().manual_seed(ctx.seed))
        for handle, sae in saes
    ]
    inputs = []
    for name in cfg.dataset_names:
        acts = activations(ctx, hook, name, settings)
        inputs.append(first_tokens(acts.train))
        llm = model_accuracies(ctx, hook, name, settings, cfg.k_values, acts)
        for one in (p for p in probed if p.part.error is None):
            with one.part:
                one.by_dataset[name] = _accuracies(cfg, one, acts, llm)
    return AllProbed(probed, torch.cat(inputs))


def measure_l0(probed: AllProbed) -> None:
    """Set `l0` of every SAE that has not failed; one that fails here does not stop the others."""
    for one in (p for p in probed.saes if p.part.error is None):
        with one.part:
            one.l0 = active_per_token(one.sae, probed.inputs)


def _accuracies(cfg: Any, one: Probed, acts: Activations, llm: Accuracies) -> Accuracies:
    """In sae_bench's order, which is also that of the draws."""
    train, test = (latents(one.sae, split, cfg.sae_batch_size) for split in acts)
    found: Accuracies = {"sae_test_accuracy": SKIPPED}
    if not cfg.lower_vram_usage:
        found["sae_test_accuracy"] = full_accuracies(train, test, one.generator)
    found |= llm
    for k in cfg.k_values:
        found[f"sae_top_{k}_test_accuracy"] = top_k_accuracies(train, test, k, one.generator)
    return found


def latents(sae: Any, split: Split, batch_size: int) -> Table:
    """The mean activation of every latent over the tokens of each text.

    Texts of like length go together, so that little of the padding behind them is encoded.
    """
    import torch

    parts = []
    with torch.no_grad():
        for x, mask in split.classes():
            lengths = _lengths(mask)
            order = lengths.argsort()
            means = [
                _means(sae, x[rows, :length], mask[rows, :length])
                for rows in order.split(batch_size)
                for length in lengths[rows[-1:]].tolist()
            ]
            parts.append(torch.cat(means)[order.argsort()])
    return Table(torch.cat(parts), split.sizes)


def _means(sae: Any, x: "Tensor", mask: "Tensor") -> "Tensor":
    """x [B, T, d_in], mask [B, T] -> [B, d_sae]."""
    f = sae.encode(x)  # [B, T, d_sae]
    return mean_over_tokens(f * mask[:, :, None], mask).to(sae.dtype)


def _lengths(mask: "Tensor") -> "Tensor":
    """mask [n, T] -> [n] position behind the last token that counts, at least 1."""
    import torch

    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * positions).amax(dim=1).clamp(min=1)
