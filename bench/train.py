"""Trains every variant of a run on one activation stream, and makes the controls.

An SAE's weights depend on its own settings and seed and on the stream, never on the other SAEs of
the run: their order, their number and their failures change nothing. A run that was killed goes on
from the checkpoints of each SAE, and ends with the same weights, bit for bit on a CPU.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import checkpoint, training_log
from bench.config import RunConfig
from bench.datasets import Hub
from bench.errors import UserError
from bench.job import LOSSES, SAES, Job
from bench.lockstep import train_in_loop, train_lockstep
from bench.models import ModelSpec
from bench.progress import Progress
from bench.result import CACHE
from bench.roster import ControlEntry, Entry, ImportedEntry, TrainedEntry, roster
from bench.search import find_curves
from bench.texts import text_revision
from bench.trainee import Outcome, Trainee
from bench.variant import Stream, Variant

if TYPE_CHECKING:
    from bench.activations import ActivationStream


def train_all(
    config: RunConfig,
    spec: ModelSpec,
    hub: Hub,
    out: Path,
    progress: Progress,
    *,
    retry_failed: bool = False,
) -> list[Path]:
    """Train every variant of `config` once per seed and make the controls, below out/saes/.

    Returns one checkpoint folder per SAE, variants first, in the order of the config. One that an
    earlier run finished with the same content is kept. An SAE that fails in training has a folder
    too: loading it tells the reason; it is kept as well, unless `retry_failed`. Raises UserError
    before any work for what cannot be trained.
    """
    training_log.check(config.train.log_to)
    entries = roster(config, spec, text_revision(config.train, hub))
    folders = [out / SAES / entry.label for entry in entries]
    todo = [
        (entry, folder)
        for entry, folder in zip(entries, folders)
        if not checkpoint.is_saved(folder, entry.key)
        and (retry_failed or not checkpoint.is_stopped(folder, entry.key))
    ]
    if todo:
        stream = _open(config, spec, hub, out, [e for e, _ in todo], progress)
        job = Job(config, spec, stream, out, progress)
        for entry, folder in todo:  # what cannot be imported is told before hours of training
            if isinstance(entry, ImportedEntry):
                job.import_sae(entry, folder)
        _train(job, [(e, f) for e, f in todo if isinstance(e, TrainedEntry)])
        for entry, folder in todo:
            if isinstance(entry, ControlEntry):
                job.make_control(entry, folder)
    return folders


def train_one(variant: Variant, stream: Stream) -> Outcome:
    """Train a single SAE in place, with the recipe of the stream."""
    trainee = Trainee(type(variant).__name__, variant, stream.config, stream.n_steps)
    train_in_loop([trainee], stream)
    return trainee.outcome


def _open(
    config: RunConfig,
    spec: ModelSpec,
    hub: Hub,
    out: Path,
    entries: Sequence[Entry],
    progress: Progress,
) -> "ActivationStream":
    from bench.activations import open_stream

    return open_stream(
        config,
        spec,
        hub,
        out.parent / CACHE,
        lambda done, total: progress("activations", done, total, spec.name),
        needs_sequences=any(
            isinstance(e, TrainedEntry) and e.variant.needs_sequences for e in entries
        ),
    )


def _train(job: Job, todo: Sequence[tuple[TrainedEntry, Path]]) -> None:
    """Train and save; what fails in one SAE is the end of that one only."""
    curves = find_curves(job, [entry for entry, _ in todo])
    training = []
    for entry, folder in todo:
        if entry.pilot is not None:
            try:
                entry = entry.with_knob(curves[entry.pilot].knob_for(entry.what.target_l0 or 0.0))
            except UserError as error:
                job.save_stopped(entry, Outcome(0, str(error)), folder)
                continue
        # the knob is part of the key: pilots that were lost may have given another one
        key, log = f"{entry.key}-{entry.knob_value}", job.out / LOSSES / f"{entry.label}.csv"
        trainee = job.trainee(entry, seed=entry.seed, key=key, log=log)
        training.append((entry, folder, trainee))
    train_lockstep([trainee for *_, trainee in training], job.stream, job.report("train"))
    for entry, folder, trainee in training:
        job.save(entry, trainee, folder)
