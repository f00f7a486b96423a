"""What races against what, and the gate: both sides must do the same maths before any is timed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from recipes import CentredReLU, FreeTopK
from sides import LR, DictionaryLearning, Ours, SAELensMulti, SAELensSingle, Side, batches_of
from torch import Tensor

from bench import ops
from bench.variant import Variant
from variants.relu import ReLU
from variants.topk import TopK

L1 = 0.1
SAME = 1e-5
"""Largest relative difference of two loss curves: float32 sums in another order."""


class Size(NamedTuple):
    name: str
    d_in: int
    d_sae: int
    batch: int
    k: int


class Race(NamedTuple):
    """One objective and those who train it."""

    name: str
    ours: type[Variant]
    config: dict
    rivals: tuple[str, ...]
    n_products: int
    """[n, d_in] x [d_in, d_sae] matrix products that a step cannot do without."""
    dead: float = 0.0
    """Share of latents that are dead, so that AuxK acts."""
    rescale: bool = True
    is_sparse: bool = False
    """SAELens's `use_sparse_activations`, which does not go with its default rescaling."""


SAELENS = ("SAELens, MultiSAETrainer", "SAELens, one at a time")
THEIRS = "dictionary_learning"
RACES = (
    Race("ReLU, norm-weighted L1", ReLU, {"l1": L1}, SAELENS, 5),
    Race("ReLU as SAELens has it, bias before the encoder", CentredReLU, {"l1": L1},
         (*SAELENS, THEIRS), 5),
    Race("TopK as SAELens has it, norms rescaled", FreeTopK, {}, SAELENS, 1),
    Race("TopK, norms rescaled, AuxK for 10 % dead", FreeTopK, {}, SAELENS, 1, dead=0.1),
    Race("TopK, no norms, SAELens's sparse activations", FreeTopK, {"rescale": False}, SAELENS, 1,
         rescale=False, is_sparse=True),
    Race("TopK, unit rows", TopK, {}, (THEIRS,), 1),
)  # fmt: skip


class Field(NamedTuple):
    """Everything of one race at one size."""

    race: Race
    size: Size
    sides: tuple[Side, ...]
    reference: Variant
    """To compute a loss with anybody's weights."""


def line_up(race: Race, size: Size, n_saes: int) -> Field:
    """All sides at the start, with ours first."""
    batches = list(batches_of(size.batch, size.d_in))
    config = race.config | ({"k": size.k} if "k" in race.ours.Config.__annotations__ else {})
    n_dead = round(race.dead * size.d_sae)

    def make() -> Variant:
        cfg = race.ours.Config(**config)
        return race.ours(size.d_in, size.d_sae, cfg, generator=ops.generator(0, "weights"))

    start = make().state_dict()
    start["b_enc"] = start["b_enc"] - 0.05
    start["b_enc"][:n_dead] = -2.0
    make_theirs: dict[str, Callable[[], Side]] = {
        SAELENS[0]: lambda: SAELensMulti(_saelens(race, size), start, batches, n_saes, n_dead),
        SAELENS[1]: lambda: SAELensSingle(_saelens(race, size), start, batches, n_saes, n_dead),
        THEIRS: lambda: DictionaryLearning(
            _dictionary_learning(race, size), start, batches, n_saes
        ),
    }
    chosen = [make_theirs[name]() for name in race.rivals]
    return Field(race, size, (Ours(make, start, batches, n_saes, n_dead), *chosen), make())


def difference(field: Field, n_steps: int) -> float:
    """Of the loss after each step, relative, the largest among rivals; the largest over steps.

    For a top-k the median over steps: where two pre-activations are equal but for rounding, sides
    keep different ones of them, and the loss of that step differs by more.
    """
    x = next(batches_of(field.size.batch, field.size.d_in))
    curves = torch.stack([_curve(side, field.reference, x, n_steps) for side in field.sides])
    assert (curves[:, -1] < curves[:, 0]).all(), "nothing was learnt"
    by_step = ((curves - curves[0]).abs() / curves[0]).amax(0)
    return (by_step.median() if field.race.n_products == 1 else by_step.max()).item()


@torch.no_grad()
def _curve(side: Side, reference: Variant, x: Tensor, n_steps: int) -> Tensor:
    errors = []
    for _ in range(n_steps):
        with torch.enable_grad():
            side.run(1)
        reference.load_state_dict(side.weights())
        errors.append(ops.squared_error(x, reference(x)))
    return torch.stack(errors)


def _saelens(race: Race, size: Size) -> Callable[[], object]:
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    if race.ours is FreeTopK:
        return lambda: TopKTrainingSAE(
            TopKTrainingSAEConfig(
                d_in=size.d_in,
                d_sae=size.d_sae,
                k=size.k,
                rescale_acts_by_decoder_norm=race.rescale,
                use_sparse_activations=race.is_sparse,
            )
        )
    return lambda: StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=size.d_in,
            d_sae=size.d_sae,
            l1_coefficient=L1,
            apply_b_dec_to_input=race.ours is CentredReLU,
        )
    )


def _dictionary_learning(race: Race, size: Size) -> Callable[[], object]:
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import TopKTrainer

    shared = {
        "steps": 10**6,
        "activation_dim": size.d_in,
        "dict_size": size.d_sae,
        "layer": 0,
        "lm_name": "none",
        "lr": LR,
        "warmup_steps": 0,
        "device": "cpu",
    }
    if race.ours is CentredReLU:
        return lambda: StandardTrainerAprilUpdate(
            **shared, l1_penalty=L1, sparsity_warmup_steps=None
        )
    return lambda: TopKTrainer(**shared, k=size.k)
