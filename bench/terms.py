"""What terms added to an SAE's objective share: their scale, their ramp, groups of latents.

Variants reach these functions through `bench.ops`.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bench.variant import Step


def variance(x: Tensor) -> Tensor:
    """E||x - Ex||^2, by which a dimensionless term is multiplied. x [n, d_in] -> []."""
    return (x - x.mean(0)).pow(2).sum(-1).mean()


def sampled(n: int, size: int, step: "Step") -> Tensor:
    """`size` of n latents, another sample in every step; all in order where there are no more."""
    device = step.dead.device
    if size >= n:
        return torch.arange(n, device=device)
    return torch.randperm(n, generator=step.generator("latents"))[:size].to(device)


def ramp(progress: float, over: float) -> float:
    """From 0 to 1 over the first `over` of training, then 1."""
    return min(progress / over, 1.0) if over else 1.0


def running(mean: Tensor, value: Tensor, length: float, memory: float, *, is_first: bool) -> Tensor:
    """An exponential mean with a time constant of `memory`, the fraction of training.

    `length` is the fraction that one step is. The first value is taken as it is.
    """
    return value if is_first else mean.lerp(value, min(length / memory, 1.0))


@torch.no_grad()
def balanced_groups(
    vectors: Tensor, members: Tensor, size: int, generator: torch.Generator, n_iter: int = 10
) -> Tensor:
    """Group of each vector by seeded spherical k-means, at most `size` in each, -1 for no member.

    vectors [m, d], members [m] bool -> [m] int32. Every round the vectors without a group propose
    to the nearest centre that has room, which takes the nearest of them.
    """
    groups = torch.full((len(vectors),), -1, dtype=torch.int32, device=vectors.device)
    chosen = members.nonzero().squeeze(1)
    if not len(chosen):
        return groups
    unit = torch.nn.functional.normalize(vectors[chosen], dim=-1)
    n_groups = -(-len(chosen) // size)
    seeds = torch.randperm(len(chosen), generator=generator)[:n_groups].to(vectors.device)
    centres = unit[seeds]
    assigned = torch.zeros(len(chosen), dtype=torch.long, device=vectors.device)
    for _ in range(n_iter):
        assigned = _with_room(unit @ centres.T, size)
        sums = torch.zeros_like(centres).index_add_(0, assigned, unit)
        centres = torch.nn.functional.normalize(sums, dim=-1)
    groups[chosen] = assigned.int()
    return groups


def _with_room(similarity: Tensor, size: int) -> Tensor:
    """Group of each row, none with more than `size`. similarity [m, n_groups] -> [m]."""
    m, n_groups = similarity.shape
    assigned = torch.full((m,), -1, dtype=torch.long, device=similarity.device)
    room = torch.full((n_groups,), size, device=similarity.device)
    waiting = torch.arange(m, device=similarity.device)
    while len(waiting):
        best, wish = similarity[waiting].masked_fill(room <= 0, -torch.inf).max(1)
        nearest_first = best.argsort(descending=True, stable=True)
        order = nearest_first[wish[nearest_first].argsort(stable=True)]  # by wish, then nearness
        wishes = wish[order]
        starts = torch.searchsorted(wishes, torch.arange(n_groups, device=wishes.device))
        rank = torch.arange(len(order), device=order.device) - starts[wishes]
        taken = rank < room[wishes]
        assigned[waiting[order[taken]]] = wishes[taken]
        room -= torch.bincount(wishes[taken], minlength=n_groups)
        waiting = waiting[order[~taken]].sort().values
    return assigned


def welch_bound(m: int, d: int) -> float:
    """The least mean squared cosine over pairs of m rows in d dimensions (Welch 1974)."""
    return max(0.0, (m - d) / (d * (m - 1))) if m > 1 else 0.0


def mean_squared_cosine(D: Tensor, rows: Tensor) -> Tensor:
    """Mean of C_ij^2 over i in `rows` and all j != i. Unit rows D [m, d], rows [s] -> []."""
    cosines = D[rows] @ D.T  # [s, m]
    return (cosines.pow(2).sum() - len(rows)) / (len(rows) * (len(D) - 1))


@torch.no_grad()
def nearest_rows(D: Tensor, rows: Tensor) -> Tensor:
    """The other row with the largest cosine, for each of `rows`. Unit rows D [m, d] -> [s] int."""
    return _cosines(D, rows).argmax(1)


@torch.no_grad()
def nearest_by_group(D: Tensor, rows: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """As `nearest_rows`, outside of the row's own group and within it; -1 where there is none.

    groups [m] int; rows of group -1 are in no group.
    """
    cosines, own = _cosines(D, rows), groups[rows][:, None]
    is_within = (groups[None] == own) & (own >= 0)  # [s, m]
    best, outside = cosines.masked_fill(is_within, -torch.inf).max(1)
    best_within, inside = cosines.masked_fill(~is_within, -torch.inf).max(1)
    return outside.masked_fill(best.isinf(), -1), inside.masked_fill(best_within.isinf(), -1)


def _cosines(D: Tensor, rows: Tensor) -> Tensor:
    """Cosines of some unit rows with all, -inf with themselves. [s, m]."""
    return (D[rows] @ D.T).scatter(1, rows[:, None], -torch.inf)


@torch.no_grad()
def reset_latents(
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    directions: Tensor,
    dead: Tensor,
    generator: torch.Generator,
    *,
    errors: Tensor,
) -> Tensor:
    """Point dead latents in place at badly reconstructed inputs; returns those it has, [m] bool.

    Bricken et al. 2023, "Neuron resampling": rows are drawn in proportion to `errors` [n], their
    squared error. directions [n, d] are the inputs less the decoder bias, dead [m] bool. Decoder
    rows get the mean norm of the living, encoder columns a fifth of theirs.
    """
    latents = dead.nonzero().squeeze(1)[: len(directions)]
    reset = torch.zeros_like(dead).index_fill(0, latents, True)
    alive = ~dead
    if not len(latents) or not alive.any():
        return reset & alive.any()
    rows = torch.multinomial(errors.cpu(), len(latents), generator=generator).to(dead.device)
    unit = torch.nn.functional.normalize(directions[rows], dim=-1)
    W_dec[latents] = unit * torch.linalg.vector_norm(W_dec[alive], dim=-1).mean()
    W_enc[:, latents] = unit.T * torch.linalg.vector_norm(W_enc[:, alive], dim=0).mean() * 0.2
    b_enc[latents] = 0.0
    return reset
