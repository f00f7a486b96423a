"""Finds the knob that gives a target L0, from pilot SAEs that are never reported.

The pilots train in full at constant knobs with a seed of their own, and the knob is interpolated
between them. A knob that moved while a reported SAE trains would answer what a variant adds to the
loss, and comparisons would be confounded.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from bench.errors import UserError
from bench.files import write_atomic
from bench.variant import Knob

SEED = -1
"""Not one that a config may hold, so that no reported SAE is a pilot."""
FACTORS = (0.7, 2.0, 4.0)
"""Knobs of the first pilots, as multiples of the variant's default."""
BRACKET = 1.25
"""The pilots' L0s reach from target / BRACKET to target * BRACKET."""
MARGIN = 1.1
"""Later pilots aim beyond the bracket by this factor: the L0 of a new SAE is never quite met."""
STEPS = (1.5, 8.0)
"""Least and most by which a later pilot's knob lies beyond the outermost one."""
WIDEST_GAP = 3.0
"""Two neighbouring pilots' L0s around a target differ by this factor at most; L0 is not quite a
power of the knob, and over a wider gap the interpolated knob misses the target."""
MAX_ROUNDS = 5
"""Groups of pilots, the first one included, before a target counts as out of reach."""


@dataclass(frozen=True)
class Curve:
    """What L0 the pilots of one variant reached."""

    knob: str
    points: tuple[tuple[float, float], ...] = ()
    """(knob, L0 on the held-out split, from the saved file) of each; 0 where it collapsed."""
    refused: tuple[float, ...] = ()
    """Knobs that the variant does not accept or with which it cannot be trained."""
    given_up: tuple[float, ...] = ()
    """Targets that `MAX_ROUNDS` did not bring within reach."""

    def knob_for(self, target_l0: float) -> float:
        """The knob for a target, linear in log(knob) and log(L0) between the two pilots around it.

        Raises UserError for a target that the pilots do not bracket; nothing is extrapolated.
        """
        target = math.log(target_l0)
        if self.brackets(target_l0):
            logs = [(math.log(knob), math.log(l0)) for knob, l0 in self._active]
            for (knob, l0), (next_knob, next_l0) in pairwise(logs):
                if min(l0, next_l0) <= target <= max(l0, next_l0) and l0 != next_l0:
                    share = (target - l0) / (next_l0 - l0)
                    return math.exp(knob + share * (next_knob - knob))
        found = ", ".join(f"{l0:.3g} at {knob:.3g}" for knob, l0 in sorted(self.points))
        not_tried = f" ({_listed(self.refused)} cannot be trained)" if self.refused else ""
        raise UserError(
            f"target_l0={target_l0:g}: pilots had L0 {found or 'none'}{not_tried}, which does not "
            f"reach from {target_l0 / BRACKET:.3g} to {target_l0 * BRACKET:.3g}; "
            f"set {self.knob} by hand or choose a target that it reaches"
        )

    def brackets(self, target_l0: float) -> bool:
        """Whether the curve runs from target / BRACKET to target * BRACKET."""
        found = [l0 for _, l0 in self._active]
        return bool(found) and (
            min(found) <= target_l0 / BRACKET and target_l0 * BRACKET <= max(found)
        )

    def next_knobs(self, targets: Iterable[float], knob: Knob) -> list[float]:
        """Knobs of the pilots to train next so that all targets are bracketed; none where they are.

        Beyond the outermost pilot the knob follows the slope of the outermost two; towards a pilot
        that collapsed or was refused the interval is halved.
        """
        wanted = [t for t in targets if t not in self.given_up]
        new = [] if not wanted else [self._outward(min(wanted) / BRACKET, knob, is_low=True)]
        new += [] if not wanted else [self._outward(max(wanted) * BRACKET, knob, is_low=False)]
        new += [self._between(t) for t in wanted if self.brackets(t)]
        known = {k for k, _ in self.points} | set(self.refused)
        return sorted({k for k in new if k is not None and k not in known})

    def with_points(
        self, points: Iterable[tuple[float, float]], refused: Iterable[float] = ()
    ) -> "Curve":
        """The curve with the outcome of more pilots."""
        return replace(
            self,
            points=tuple(sorted({*self.points, *points})),
            refused=tuple(sorted({*self.refused, *refused})),
        )

    def give_up(self, targets: Iterable[float]) -> "Curve":
        """The curve with a note of those targets that are still out of reach."""
        lost = {t for t in targets if not self.brackets(t)}
        return replace(self, given_up=tuple(sorted({*self.given_up, *lost})))

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = {name: getattr(self, name) for name in ("knob", "points", "refused", "given_up")}
        write_atomic(path, json.dumps(content))

    @classmethod
    def load(cls, path: Path) -> "Curve | None":
        """Read a saved one; None if there is none or it cannot be read."""
        try:
            raw = json.loads(path.read_text())
            return cls(
                raw["knob"],
                tuple((float(knob), float(l0)) for knob, l0 in raw["points"]),
                tuple(map(float, raw["refused"])),
                tuple(map(float, raw["given_up"])),
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @property
    def _active(self) -> list[tuple[float, float]]:
        """Points of SAEs that do something, by knob."""
        return [(knob, l0) for knob, l0 in sorted(self.points) if l0 > 0]

    def _outward(self, l0: float, knob: Knob, *, is_low: bool) -> float | None:
        """A knob for an L0 that lies beyond all pilots; None if it lies within."""
        found = [x for _, x in self._active]
        if found and (min(found) <= l0 if is_low else l0 <= max(found)):
            return None
        rises = knob.raises_l0 != is_low  # the knob goes up to get there
        active = self._active if rises else self._active[::-1]
        if not active:  # all collapsed: to where something fires
            tried = [k for k, _ in self.points] or [1.0]
            return max(tried) * STEPS[1] if knob.raises_l0 else min(tried) / STEPS[1]
        edge = active[-1][0]
        bound = _nearest_beyond(edge, rises, self._walls)
        if bound is not None:
            return math.sqrt(edge * bound)
        factor = _extrapolated(active, l0 / MARGIN if is_low else l0 * MARGIN)
        return edge * factor if rises else edge / factor

    @property
    def _walls(self) -> list[float]:
        """Knobs behind which there is nothing."""
        return [k for k, l0 in self.points if l0 <= 0] + list(self.refused)

    def _between(self, target_l0: float) -> float | None:
        """The knob half way through a gap around the target that is too wide to interpolate in."""
        for (knob, l0), (next_knob, next_l0) in pairwise(self._active):
            low, high = sorted((l0, next_l0))
            if low <= target_l0 <= high:
                return math.sqrt(knob * next_knob) if high > WIDEST_GAP * low else None
        return None


def _extrapolated(active: Sequence[tuple[float, float]], l0: float) -> float:
    """How far beyond the last pilot's knob a power law through the last two meets `l0`."""
    low, high = STEPS
    if len(active) < 2:
        return high
    (knob, start), (next_knob, end) = active[-2:]
    slope = math.log(end / start) / math.log(next_knob / knob)
    if slope == 0 or math.log(l0 / end) / slope * math.log(next_knob / knob) <= 0:
        return high  # not monotonic there: look far
    return math.exp(min(max(abs(math.log(l0 / end) / slope), math.log(low)), math.log(high)))


def _nearest_beyond(edge: float, rises: bool, walls: Sequence[float]) -> float | None:
    beyond = [w for w in walls if (w > edge) == rises and w != edge]
    return (min(beyond) if rises else max(beyond)) if beyond else None


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{v:.3g}" for v in values)
