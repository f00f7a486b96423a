"""The losses of one SAE in training: a CSV file always, wandb and TensorBoard when asked for."""

import csv
import importlib.util
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench.errors import UserError
from bench.files import write_atomic

LOG = logging.getLogger(__name__)
PROJECT = "sae-verdict"
"""Where wandb collects the runs."""


class Sink(Protocol):
    """Somewhere else that rows go."""

    def write(self, step: int, row: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TrainingLog:
    """A CSV file with a row per report; it can go back to where a checkpoint was written."""

    def __init__(self, path: Path | None = None, sinks: Sequence[Sink] = ()):
        self._path, self._sinks = path, list(sinks)
        self._columns: list[str] = []

    @property
    def has_sinks(self) -> bool:
        """Whether rows go to other places than the file."""
        return bool(self._sinks)

    def write(self, row: dict[str, float]) -> None:
        """Add a row, which has a `step`. A term that appears late becomes a column from there."""
        for sink in list(self._sinks):
            try:
                sink.write(int(row["step"]), row)
            except Exception as error:  # a server's failure is not the training's
                LOG.warning("%s: no more losses are shown there: %s", type(sink).__name__, error)
                self._sinks.remove(sink)
        if self._path is not None:
            try:
                self._write_csv(self._path, row)
            except OSError as error:  # a full disk costs the row, not the training
                LOG.warning("%s: step %g is left out: %s", self._path, row["step"], error)

    def rewind(self, n_steps: int) -> None:
        """Forget what was written after step `n_steps`; 0 forgets all."""
        if self._path is None:
            return
        rows = [row for row in self._read(self._path) if int(row["step"]) <= n_steps]
        self._columns = list(rows[0]) if rows else []
        if rows:
            write_atomic(self._path, _text(self._columns, rows))
        else:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Finish with the other places."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def _write_csv(self, path: Path, row: dict[str, float]) -> None:
        new = [name for name in row if name not in self._columns]
        if new:
            rows = self._read(path) if self._columns else []
            write_atomic(path, _text([*self._columns, *new], rows))
            self._columns += new
        size = path.stat().st_size
        try:
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(row)
        except OSError:
            os.truncate(path, size)  # half a row would spoil the next one
            raise

    def _read(self, path: Path) -> list[dict[str, str]]:
        """Whole rows; one that a crash cut off is left out."""
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except FileNotFoundError:
            return []
        return [r for r in rows if (r.get("step") or "").isdigit() and None not in r.values()]


def check(log_to: Sequence[str]) -> None:
    """Raise UserError in one line for a logger whose package is missing."""
    for name in log_to:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"train.log_to: {name} is not installed, run `pip install {name}`")


def sinks(log_to: Sequence[str], *, run: str, label: str, key: str, out: Path) -> list[Sink]:
    """The loggers of one SAE. Raises UserError in one line for one that cannot be opened."""
    opened: list[Sink] = []
    for name in log_to:
        try:
            opened.append(
                _Wandb(run, label, key, out) if name == "wandb" else _TensorBoard(label, out)
            )
        except Exception as error:  # a missing login, an unwritable folder: theirs to say
            reason = " ".join(str(error).split())
            raise UserError(f"train.log_to: {name} cannot be used: {reason}") from error
    return opened


class _TensorBoard:
    def __init__(self, label: str, out: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard" / label))

    def write(self, step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run: str, label: str, key: str, out: Path):
        import wandb

        out.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            group=run,
            name=label,
            id=f"{run}-{label}-{key}"[:128],
            dir=str(out),
            resume="allow",
            reinit="create_new",  # one per SAE, all at the same time
        )

    def write(self, step: int, row: dict[str, float]) -> None:
        self._run.log(row, step=step)

    def close(self) -> None:
        self._run.finish()


def _text(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
