"""Points about training: it moves, it learns, and it can be repeated and interrupted."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bench.check.rehearsal import INTERRUPTED_AT, N_SHORT, N_STEPS, Rehearsal, same
from bench.check.report import Point, Problem
from bench.check.source_points import explained
from bench.trainee import COLLAPSED_L0

ENOUGH = 0.9
"""The error after training is below this share of the error before."""
FACTOR = 10.0
"""Between the knobs whose L0s are compared."""
MANY = 0.5
"""More than this share of latents active, or never active, is worth a warning."""
NEAR = 1.3
"""A native knob's L0 is met within this factor."""


def takes_steps(r: Rehearsal) -> Iterator[Problem]:
    done = r.trained
    if done.outcome.is_collapsed:
        return  # the next point says so
    if done.outcome.stop_reason is not None:
        why = explained(r.plugin.path, done.error) if done.error else done.outcome.stop_reason
        yield Problem(f"training was stopped: {why}", "correct the line that is named")
        return
    after = done.variant.state_dict()
    weights = [n for n in done.before if n in ("W_enc", "W_dec")]
    if weights and all(torch.equal(done.before[n], after[n]) for n in weights):
        yield Problem(f"training ended and no weight has changed: {N_STEPS} steps were to be taken")


def descends(r: Rehearsal) -> Iterator[Problem]:
    before, after = r.trained.unexplained
    if not after < ENOUGH * min(before, 1.0):  # 1 is what the mean alone reaches
        yield Problem(
            f"error / variance on held-out tokens is {before:.3g} before and {after:.3g} after "
            f"{N_STEPS} steps"
        )


@torch.no_grad()
def something_fires(r: Rehearsal) -> Iterator[Problem]:
    variant = r.trained.variant
    fired = variant.encode(r.x) != 0
    l0, d_sae = fired.sum().item() / len(fired), variant.d_sae
    n_dead = int((~fired.any(0)).sum())
    if l0 < COLLAPSED_L0:
        yield Problem(f"dead on arrival: L0 is {l0:.3g} after {N_STEPS} steps")
    elif l0 > MANY * d_sae:
        yield Problem(
            f"L0 is {l0:.3g} of {d_sae} latents after {N_STEPS} steps",
            "is the penalty strong enough?",
            is_warning=True,
        )
    elif n_dead > MANY * d_sae:
        yield Problem(
            f"{n_dead} of {d_sae} latents never fire after {N_STEPS} steps",
            "revive dead latents, or let the penalty rise more slowly",
            is_warning=True,
        )


def repeats(r: Rehearsal) -> Iterator[Problem]:
    (first, outcome), (second, _) = r.trained_shortly(), r.trained_shortly()
    if outcome.stop_reason is not None:
        yield Problem(f"training was stopped: {outcome.stop_reason}")
        return
    for name in _different(first, second):
        yield Problem(f"{name} differs between two trainings with one seed")


def resumes(r: Rehearsal) -> Iterator[Problem]:
    if r.trains_itself:
        return
    straight, _ = r.trained_shortly()
    for n_steps in (INTERRUPTED_AT, N_SHORT):  # behind the last step too, as another process does
        resumed, outcome = r.trained_shortly(interrupted_at=n_steps)
        if outcome.stop_reason is not None:
            yield Problem(f"training that goes on was stopped: {outcome.stop_reason}")
            return
        for name in _different(straight, resumed):
            yield Problem(
                f"{name} ends up different when training goes on from a checkpoint at step "
                f"{n_steps} of {N_SHORT}"
            )


def knob_moves_l0(r: Rehearsal) -> Iterator[Problem]:
    """The declared direction is right, and a native knob is the L0."""
    if r.knob is None:
        return
    name, value = r.knob.name, getattr(r.cfg, r.knob.name)
    if r.knob.native:
        l0 = r.saved.l0
        if not value / NEAR <= l0 <= value * NEAR:
            yield Problem(
                f"{name}={value} gives an L0 of {l0:.3g}, though it is declared native",
                "declare native=False, so that the knob is searched for",
            )
        return
    if not value:
        yield Problem(f"{name}=0 by default: its direction cannot be checked", is_warning=True)
        return
    low, high = (_l0(r, type(value)(value * f)) for f in (1 / FACTOR, 1.0))
    if (high > low) is not r.knob.raises_l0:
        yield Problem(
            f"L0 is {low:.3g} at {name}={value / FACTOR:.3g} and {high:.3g} at {value:.3g}, but "
            f"raises_l0={r.knob.raises_l0}",
            f"declare raises_l0={not r.knob.raises_l0}",
        )


@torch.no_grad()
def _l0(r: Rehearsal, value: float) -> float:
    assert r.knob is not None
    with torch.enable_grad():
        variant = r.train(replace(r.cfg, **{r.knob.name: value})).variant
    return (variant.encode(r.x) != 0).sum().item() / len(r.x)


def _different(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [n for n, v in a.items() if n not in b or not same(v, b[n])]


POINTS: tuple[Point[Rehearsal], ...] = (
    Point(
        "trains",
        "training takes its steps and changes the weights",
        takes_steps,
        "take a step per batch of the stream, with a learning rate above 0",
        needs=("losses", "attached"),
    ),
    Point(
        "alive",
        "latents fire after training",
        something_fires,
        "lower the penalty, check the first weights and the threshold",
        needs=("trains",),
    ),
    Point(
        "descent",
        f"{N_STEPS} steps explain variance that the first weights do not",
        descends,
        "check the sign of the loss, its weight against the penalties, and what encode gives",
        needs=("alive",),
    ),
    Point(
        "repeats",
        "two trainings with one seed give the same weights",
        repeats,
        "draw random numbers from step.generator('purpose') alone",
        needs=("alive",),
    ),
    Point(
        "resume",
        "training that goes on from a checkpoint ends with the same weights",
        resumes,
        "keep what the next step depends on in a buffer: self.register_buffer(name, tensor)",
        needs=("trains", "repeats"),
    ),
    Point(
        "knob",
        "the knob moves L0 as declared",
        knob_moves_l0,
        "correct the declaration of the knob",
        needs=("descent", "save"),
        is_slow=True,
    ),
)
