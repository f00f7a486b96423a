"""Finds the knob that gives a target L0, from a few pilot SAEs that are never reported.

The pilots train in full at constant knobs with a seed of their own, and the knob is interpolated
between them. A knob that moved while a reported SAE trains would answer what a variant adds to the
loss, and comparisons would be confounded.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import UserError
from bench.files import write_atomic
from bench.variant import Variant

SEED = -1
"""Not one that a config may hold, so that no reported SAE is a pilot."""
FACTORS = (0.25, 0.7, 2.0, 6.0)
"""Pilots' knobs as multiples of the variant's default."""
ROWS_PER_BATCH = 4096


@dataclass(frozen=True)
class Curve:
    """What L0 the pilots of one variant reached."""

    knob: str
    points: tuple[tuple[float, float], ...]
    """(knob, L0 on the held-out split) of each pilot that was trained to its end."""

    def knob_for(self, target_l0: float) -> float:
        """The knob for a target, linear in log(knob) and log(L0) between the two pilots around it.

        Raises UserError for a target that no two pilots lie around; nothing is extrapolated.
        """
        target = math.log(target_l0)
        logs = [(math.log(knob), math.log(l0)) for knob, l0 in sorted(self.points) if l0 > 0]
        for (knob, l0), (next_knob, next_l0) in pairwise(logs):
            if min(l0, next_l0) <= target <= max(l0, next_l0) and l0 != next_l0:
                share = (target - l0) / (next_l0 - l0)
                return math.exp(knob + share * (next_knob - knob))
        found = ", ".join(f"{l0:.3g} at {knob:.3g}" for knob, l0 in sorted(self.points))
        raise UserError(
            f"target_l0={target_l0:g}: pilots had L0 {found or 'none'}; set {self.knob} by hand"
        )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_atomic(path, json.dumps({"knob": self.knob, "points": self.points}))

    @classmethod
    def load(cls, path: Path) -> "Curve | None":
        """Read a saved one; None if there is none or it cannot be read."""
        try:
            raw = json.loads(path.read_text())
            return cls(raw["knob"], tuple((float(knob), float(l0)) for knob, l0 in raw["points"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None


def curve(knob: str, pilots: Sequence[Variant], x: Tensor) -> Curve:
    """The curve of trained pilots. x [n, d_in] are held-out activations, scaled as in training."""
    return Curve(knob, tuple((getattr(p.cfg, knob), _l0(p, x)) for p in pilots))


@torch.no_grad()
def _l0(variant: Variant, x: Tensor) -> float:
    n_active = sum(torch.count_nonzero(variant.encode(rows)) for rows in x.split(ROWS_PER_BATCH))
    return float(n_active) / len(x)
