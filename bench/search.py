"""Trains the pilots of a run, in as many rounds as its target L0s need."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import checkpoint
from bench.errors import UserError
from bench.job import PILOTS, Job
from bench.keys import content_key
from bench.lockstep import train_lockstep
from bench.pilot import FACTORS, MAX_ROUNDS, SEED, Curve
from bench.roster import TrainedEntry
from bench.trainee import Trainee

LOG = logging.getLogger(__name__)


@dataclass
class _Search:
    """The search of the knob for all targets of one variant with one set of settings."""

    key: str
    entry: TrainedEntry
    """One of those that the knob is for."""
    curve: Curve
    path: Path
    targets: set[float] = field(default_factory=set)
    lost: set[float] = field(default_factory=set)
    """Knobs that failed in this run; a later run tries them again."""

    def next_knobs(self) -> list[float]:
        knob = self.entry.variant.knob
        assert knob is not None  # or there would be no target
        if not self.curve.points and not self.curve.refused:
            return [factor * (self.entry.knob_value or 1.0) for factor in FACTORS]
        return [k for k in self.curve.next_knobs(self.targets, knob) if k not in self.lost]


def find_curves(job: Job, entries: Sequence[TrainedEntry]) -> Mapping[str, Curve]:
    """Pilot key -> L0 by knob, for every entry whose knob is to be found.

    What an earlier run found is kept and widened for new targets. All pilots of a round go in
    lockstep.
    """
    searches = _searches(job, [e for e in entries if e.pilot is not None])
    for _ in range(MAX_ROUNDS):
        pilots = [p for s in searches.values() for p in _pilots(job, s)]
        if not pilots:
            break
        train_lockstep([p.trainee for p in pilots], job.stream, job.report("pilot"))
        for search in searches.values():
            _take_in(job, search, [p for p in pilots if p.key == search.key])
    for search in searches.values():
        if not search.lost:
            search.curve = search.curve.give_up(search.targets)
            search.curve.save(search.path)
    return {key: search.curve for key, search in searches.items()}


@dataclass(frozen=True)
class _Pilot:
    key: str
    entry: TrainedEntry
    trainee: Trainee


def _searches(job: Job, entries: Sequence[TrainedEntry]) -> dict[str, _Search]:
    found: dict[str, _Search] = {}
    for entry in entries:
        assert entry.pilot is not None and entry.what.target_l0 is not None
        path = job.out / PILOTS / f"{entry.pilot}.json"
        curve = Curve.load(path) or Curve(str(entry.knob_name))
        search = found.setdefault(entry.pilot, _Search(entry.pilot, entry, curve, path))
        search.targets.add(entry.what.target_l0)
    return found


def _pilots(job: Job, search: _Search) -> list[_Pilot]:
    """The next pilots, untrained; a knob that the variant refuses is noted in the curve."""
    made = []
    for value in search.next_knobs():
        try:
            entry = search.entry.with_knob(value)
            name = f"{search.entry.what.name}_{entry.knob_name}{entry.knob_value:.4g}_{search.key}"
            entry = replace(entry, label=f"pilot {name}", seed=SEED)
            key = content_key([search.key, entry.knob_value])
            log = job.out / PILOTS / f"{name}.csv"
            made.append(_Pilot(search.key, entry, job.trainee(entry, seed=SEED, key=key, log=log)))
        except (ValueError, UserError) as error:
            LOG.info("%s: no pilot at %.3g: %s", search.entry.what.name, value, error)
            search.curve = search.curve.with_points([], refused=[value])
    return made


def _take_in(job: Job, search: _Search, pilots: Sequence[_Pilot]) -> None:
    """Add the L0 of trained pilots to the curve, measured as for any SAE from its saved file."""
    points = []
    for pilot in pilots:
        value = pilot.entry.knob_value or 0.0
        with tempfile.TemporaryDirectory() as folder:
            outcome = job.save(pilot.entry, pilot.trainee, Path(folder))
            if outcome.stop_reason is None:
                points.append((value, checkpoint.read_info(Path(folder)).l0 or 0.0))
            elif outcome.is_collapsed:
                points.append((value, 0.0))
                pilot.trainee.forget()
            else:
                search.lost.add(value)
    search.curve = search.curve.with_points(points)
    search.curve.save(search.path)
