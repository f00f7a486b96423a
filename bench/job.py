"""What the SAEs of a run have in common, and the way of one of them from config to its folder."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import checkpoint, controls, ops, saelens_import
from bench.config import RunConfig
from bench.errors import UserError
from bench.lockstep import Report
from bench.models import ModelSpec
from bench.progress import Progress
from bench.result import SaeInfo
from bench.roster import ControlEntry, ImportedEntry, TrainedEntry
from bench.snapshot import Snapshots
from bench.trainee import Outcome, Trainee
from bench.training_log import TrainingLog, sinks
from bench.variant import Exported

if TYPE_CHECKING:
    from bench.activations import ActivationStream

LOG = logging.getLogger(__name__)
SAES, LOSSES, PILOTS, TRAINING = "saes", "losses", "pilots", "training"
"""Folders of a run: checkpoints, a CSV of the losses of each, knobs found for a target L0, and what
an interrupted training goes on from."""


@dataclass(frozen=True)
class Job:
    """A run that is being trained."""

    config: RunConfig
    spec: ModelSpec
    stream: "ActivationStream"
    out: Path
    progress: Progress

    def report(self, stage: str) -> Report:
        """Shows the progress of a training, with a row per SAE."""

        def show(done: int, total: int, notes: Sequence[str]) -> None:
            self.progress(stage, done, total, f"{len(notes)} SAEs", notes)

        return show

    def trainee(self, entry: TrainedEntry, *, seed: int, key: str, log: Path) -> Trainee:
        """Ready to train, or to go on. Equal seeds give equal first weights, whatever the variant.

        `log` is its CSV file. Raises UserError for settings that the variant refuses.
        """
        train = self.config.train
        generator = ops.generator(seed, "weights")
        try:
            variant = entry.variant(self.stream.d_in, train.d_sae, entry.cfg, generator=generator)
        except ValueError as error:
            raise UserError(f"variant {entry.what.name!r}: {error}") from error
        variant.to(self.config.device)
        shown = sinks(train.log_to, run=self.config.name, label=log.stem, key=key, out=self.out)
        return Trainee(
            entry.label,
            variant,
            train,
            self.stream.n_steps,
            seed=seed,
            generator=generator,
            log=TrainingLog(log, shown),
            snapshots=Snapshots(self.out / TRAINING / log.stem, key),
        )

    def save(self, entry: TrainedEntry, trainee: Trainee, folder: Path) -> Outcome:
        """Write the SAE, or why there is none, to `folder`; how it ended.

        Raises OSError for what is the disk's fault: the checkpoints stay, a rerun goes on.
        """
        outcome = trainee.outcome
        if outcome.stop_reason is None:
            try:
                exported = checkpoint.in_units_of_model(trainee.variant.export(), self.stream.scale)
                self._write(folder, self._record(entry, outcome), exported)
            except OSError:
                raise
            except Exception as error:
                LOG.exception("%s cannot be saved", entry.label)
                reason = f"cannot be saved: {type(error).__name__}: {error}"
                outcome = outcome._replace(stop_reason=reason)
        if outcome.stop_reason is None:
            trainee.forget()
        else:  # its checkpoints stay: a rerun need not repeat what went well
            self.save_stopped(entry, outcome, folder)
        return outcome

    def save_stopped(self, entry: TrainedEntry, outcome: Outcome, folder: Path) -> None:
        """Write why there is no SAE."""
        checkpoint.save_record(folder, self._record(entry, outcome))

    def make_control(self, entry: ControlEntry, folder: Path) -> None:
        """Make and write a control."""
        sample, d_sae = self.stream.raw_sample, self.config.train.d_sae
        exported = controls.make(entry.what, sample, d_sae, entry.seed)
        self._write(folder, self._record(entry, Outcome(0)), exported)

    def import_sae(self, entry: ImportedEntry, folder: Path) -> None:
        """Write an SAE of others; its L0 and explained variance are measured as ours are.

        Raises UserError for one that cannot be loaded, or is of another model, hook or width.
        """
        found = saelens_import.load(entry.what)
        config = self.config
        saelens_import.check_fits(entry.what, found, self.spec, config.hook_name, self.stream.d_in)
        info = SaeInfo(
            label=entry.label,
            role="imported",
            variant=entry.label,
            world=self.spec.world,
            model=self.spec.name,
            hook_name=config.hook_name,
            d_in=found.d_in,
            d_sae=found.d_sae,
        )
        record = checkpoint.Record(
            info=info,
            key=entry.key,
            source=entry.source,
            dataset=found.dataset,
            context_size=found.context_size,
            n_steps=0,
            scale=1.0,
        )
        self._write(folder, record, found.exported)

    def _write(self, folder: Path, record: checkpoint.Record, exported: Exported) -> None:
        checkpoint.save_sae(folder, record, exported, self.stream.heldout)

    def _record(self, entry: TrainedEntry | ControlEntry, outcome: Outcome) -> checkpoint.Record:
        train = self.config.train
        info = SaeInfo(
            label=entry.label,
            role="control",
            variant=entry.what.name,
            world=self.spec.world,
            model=self.spec.name,
            hook_name=self.config.hook_name,
            d_in=self.stream.d_in,
            d_sae=train.d_sae,
            init_seed=entry.seed,
            data_seed=self.config.data_seed,
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
            scale=self.stream.scale,
            sink_norm=train.sink_norm,
            sink_fraction=self.stream.sink_fraction,
            stop_reason=outcome.stop_reason,
        )
