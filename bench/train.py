"""Trains every variant of a run on one activation stream, and makes the controls.

An SAE's weights depend on its own settings and seed and on the stream, never on the other SAEs of
the run: their order, their number and their failures change nothing.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import checkpoint, controls, ops
from bench.config import RunConfig
from bench.datasets import Hub
from bench.errors import UserError
from bench.lockstep import Outcome, Trainee, train_in_loop, train_lockstep
from bench.models import ModelSpec, load_model
from bench.pilot import FACTORS, Curve, curve
from bench.pilot import SEED as PILOT_SEED
from bench.progress import Progress
from bench.result import SaeInfo
from bench.roster import ControlEntry, TrainedEntry, roster
from bench.variant import Exported, Stream, Variant

if TYPE_CHECKING:
    from bench.activations import ActivationStream

LOG = logging.getLogger(__name__)
SAES, LOSSES, PILOTS = "saes", "losses", "pilots"
"""Folders of a run: checkpoints, a CSV of the losses of each, knobs found for a target L0."""


def train_all(
    config: RunConfig, spec: ModelSpec, hub: Hub, out: Path, progress: Progress
) -> list[Path]:
    """Train every variant of `config` once per seed and make the controls, below out/saes/.

    Returns one checkpoint folder per SAE, variants first, in the order of the config. One that an
    earlier run finished with the same content is kept. An SAE that fails in training has a folder
    too: loading it tells the reason. Raises UserError before any work for what cannot be trained.
    """
    entries = roster(config, spec, hub.revision)
    folders = [out / SAES / entry.label for entry in entries]
    todo = [e for e, f in zip(entries, folders) if not checkpoint.is_saved(f, e.key)]
    if todo:
        job = _Job(config, spec, _open(config, spec, hub, progress), out, progress)
        _train(job, [e for e in todo if isinstance(e, TrainedEntry)])
        for entry in todo:
            if isinstance(entry, ControlEntry):
                _make_control(job, entry)
    return folders


def train_one(variant: Variant, stream: Stream) -> Outcome:
    """Train a single SAE in place, with the recipe of the stream."""
    trainee = Trainee(type(variant).__name__, variant, stream.config, stream.n_steps)
    train_in_loop([trainee], stream)
    return trainee.outcome


@dataclass(frozen=True)
class _Job:
    """What the SAEs of a run have in common."""

    config: RunConfig
    spec: ModelSpec
    stream: "ActivationStream"
    out: Path
    progress: Progress

    def report(self, stage: str) -> Callable[[int, int, str], None]:
        return lambda done, total, note: self.progress(stage, done, total, note)


def _open(config: RunConfig, spec: ModelSpec, hub: Hub, progress: Progress) -> "ActivationStream":
    from bench.activations import ActivationStream

    def texts() -> Iterator[str]:
        # on the hub, openwebtext comes with a script; a mirror has none
        rows = hub.load_dataset(
            config.train.dataset, split="train", streaming=True, trust_remote_code=True
        )
        return (row["text"] for row in rows)

    return ActivationStream(
        load_model(spec, config.device, config.dtype),
        config.hook_name,
        texts,
        config.train,
        data_seed=config.data_seed,
        report=lambda done, total: progress("activations", done, total, spec.name),
    )


def _train(job: _Job, entries: Sequence[TrainedEntry]) -> None:
    """Train and save; what fails in one SAE is the end of that one only."""
    curves = _curves(job, entries)
    trainees = []
    for entry in entries:
        if entry.pilot is not None:
            try:
                entry = entry.with_knob(curves[entry.pilot].knob_for(entry.what.target_l0 or 0.0))
            except UserError as error:
                _save_stopped(job, entry, Outcome(0, str(error)))
                continue
        log = job.out / LOSSES / f"{entry.label}.csv"
        trainees.append((entry, _trainee(job, entry, entry.seed, log)))
    train_lockstep([trainee for _, trainee in trainees], job.stream, job.report("train"))
    for entry, trainee in trainees:
        _save(job, entry, trainee)


def _curves(job: _Job, entries: Sequence[TrainedEntry]) -> dict[str, Curve]:
    """Pilot key -> L0 by knob; all pilots that no earlier run has trained go in lockstep."""
    folder = job.out / PILOTS
    first = {e.pilot: e for e in entries if e.pilot is not None}
    curves = {key: c for key in first if (c := Curve.load(folder / f"{key}.json"))}
    pilots = {key: _pilots(job, e) for key, e in first.items() if key not in curves}
    everyone = [trainee for group in pilots.values() for trainee in group]
    train_lockstep(everyone, job.stream, job.report("pilot"))
    heldout = job.stream.heldout / job.stream.scale
    for key, group in pilots.items():
        whole = [t.variant for t in group if t.outcome.stop_reason is None]
        curves[key] = curve(str(first[key].knob_name), whole, heldout)
        if len(whole) == len(group):  # what failed is tried again in the next run
            curves[key].save(folder / f"{key}.json")
    return curves


def _pilots(job: _Job, entry: TrainedEntry) -> list[Trainee]:
    at = [entry.with_knob(factor * (entry.knob_value or 0.0)) for factor in FACTORS]
    logs = [job.out / PILOTS / f"{entry.pilot}_{e.knob_value:.3g}.csv" for e in at]
    return [_trainee(job, e, PILOT_SEED, log) for e, log in zip(at, logs)]


def _trainee(job: _Job, entry: TrainedEntry, seed: int, log: Path) -> Trainee:
    """Ready to train. Equal seeds give equal first weights, whatever the variant."""
    generator = ops.generator(seed, "weights")
    try:
        variant = entry.variant(
            job.stream.d_in, job.config.train.d_sae, entry.cfg, generator=generator
        )
    except ValueError as error:
        raise UserError(f"variant {entry.what.name!r}: {error}") from error
    variant.to(job.config.device)
    return Trainee(entry.label, variant, job.config.train, job.stream.n_steps, log)


def _save(job: _Job, entry: TrainedEntry, trainee: Trainee) -> None:
    outcome = trainee.outcome
    if outcome.stop_reason is not None:
        _save_stopped(job, entry, outcome)
        return
    try:
        exported = checkpoint.in_units_of_model(trainee.variant.export(), job.stream.scale)
        _write(job, entry, _record(job, entry, outcome), exported)
    except OSError:  # the disk, not the variant
        raise
    except Exception as error:
        LOG.exception("%s cannot be saved", entry.label)
        reason = f"cannot be saved: {type(error).__name__}: {error}"
        _save_stopped(job, entry, outcome._replace(stop_reason=reason))


def _save_stopped(job: _Job, entry: TrainedEntry, outcome: Outcome) -> None:
    checkpoint.save_record(job.out / SAES / entry.label, _record(job, entry, outcome))


def _make_control(job: _Job, entry: ControlEntry) -> None:
    sample, d_sae = job.stream.raw_sample, job.config.train.d_sae
    exported = controls.make(entry.what, sample, d_sae, entry.seed)
    _write(job, entry, _record(job, entry, Outcome(0, None)), exported)


def _write(
    job: _Job, entry: TrainedEntry | ControlEntry, record: checkpoint.Record, exported: Exported
) -> None:
    checkpoint.save_sae(job.out / SAES / entry.label, record, exported, job.stream.heldout)


def _record(job: _Job, entry: TrainedEntry | ControlEntry, outcome: Outcome) -> checkpoint.Record:
    train = job.config.train
    info = SaeInfo(
        label=entry.label,
        role="control",
        variant=entry.what.name,
        world=job.spec.world,
        model=job.spec.name,
        hook_name=job.config.hook_name,
        d_in=job.stream.d_in,
        d_sae=train.d_sae,
        init_seed=entry.seed,
        data_seed=job.config.data_seed,
        target_l0=entry.what.target_l0,
    )
    if isinstance(entry, TrainedEntry):
        info = replace(
            info,
            role="trained",
            knob_name=entry.knob_name,
            knob_value=entry.knob_value,
            train_tokens=outcome.n_steps * train.batch_size,
        )
    return checkpoint.Record(
        info=info,
        key=entry.key,
        source=entry.source,
        dataset=train.dataset,
        context_size=train.context_size,
        n_steps=outcome.n_steps,
        scale=job.stream.scale,
        stop_reason=outcome.stop_reason,
    )
