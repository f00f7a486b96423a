"""The training loop: every SAE of the group takes a step on the same batch, then the next batch."""

import csv
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench import ops
from bench.config import TrainConfig
from bench.variant import Batch, Step, Stream, Variant

LOG = logging.getLogger(__name__)
N_REPORTS = 100
"""How often in a training the device is waited for: to log, to check and to count the dead."""
DIVERGED = 100.0
"""An SAE is stopped when its error is this many times the worse of its first and the variance."""


class Outcome(NamedTuple):
    """How the training of one SAE ended."""

    n_steps: int
    """Steps that it took."""
    stop_reason: str | None
    """Why it was stopped before the end; None if it was not."""


def train_lockstep(
    trainees: "Sequence[Trainee]",
    stream: Stream,
    report: Callable[[int, int, str], None] | None = None,
) -> None:
    """Train all on the batches of one pass; those with a training of their own get a pass each.

    What fails in one stops that one only, see its `outcome`. `report` gets steps done, steps in all
    and a note on the last SAE.
    """
    own = [t for t in trainees if type(t.variant).train is not Variant.train]
    train_in_loop([t for t in trainees if t not in own], stream, report)
    for trainee in own:
        trainee.train_itself(stream)


def train_in_loop(
    trainees: "Sequence[Trainee]",
    stream: Stream,
    report: Callable[[int, int, str], None] | None = None,
) -> None:
    """As `train_lockstep`, with gradient steps for all."""
    if not trainees:
        return
    sample = stream.sample
    for trainee in trainees:
        trainee.start(sample)
    every = max(1, stream.n_steps // N_REPORTS)
    for i, batch in enumerate(stream):
        running = [t for t in trainees if t.outcome.stop_reason is None]
        if not running:
            return
        is_report = (i + 1) % every == 0 or i + 1 == stream.n_steps
        for trainee in running:
            trainee.step(i, batch, is_report)
        if is_report and report:
            report(i + 1, stream.n_steps, running[-1].note)


class Trainee:
    """One SAE in training: its optimiser, which of its latents are alive, and its log."""

    def __init__(
        self,
        label: str,
        variant: Variant,
        config: TrainConfig,
        n_steps: int,
        log: Path | None = None,
    ):
        """`log` is a CSV file to write: one row per report."""
        self.label, self.variant = label, variant
        self.outcome = Outcome(0, None)
        self.note = ""
        self._config, self._n_steps = config, n_steps
        self._log = _Log(log)
        self._optimiser = torch.optim.Adam(
            variant.parameters(), lr=config.lr, betas=config.betas, fused=True
        )
        self._device = variant.W_dec.device
        self._silent_steps = torch.zeros(variant.d_sae, dtype=torch.long, device=self._device)
        self._dead = torch.zeros(variant.d_sae, dtype=torch.bool, device=self._device)
        self._n_dead = 0
        self._sums: dict[str, Tensor] = {}
        self._n_summed = 0
        self._worst_allowed = math.nan

    def start(self, sample: Tensor) -> None:
        self._guarded(0, lambda: self.variant.start(sample))

    def train_itself(self, stream: Stream) -> None:
        """Leave the whole training to the variant."""
        self.outcome = Outcome(self._n_steps, None)
        self._guarded(self._n_steps, lambda: self.variant.train(stream))

    def step(self, i: int, batch: Batch, is_report: bool) -> None:
        """Step `i`, counted from 0."""
        self._guarded(i, lambda: self._step(i, batch))
        if is_report and self.outcome.stop_reason is None:
            self._guarded(i + 1, lambda: self._report(i + 1, batch))

    def _step(self, i: int, batch: Batch) -> None:
        variant, at = self.variant, self._at(i)
        for group in self._optimiser.param_groups:
            group["lr"] = self._config.lr * lr_factor(self._config, i, self._n_steps)
        with _Watch(variant, batch.x) as watch:
            terms = variant.losses(batch, at)
        loss = torch.stack(list(terms.values())).sum()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        variant.after_backward(at)
        norm = torch.nn.utils.clip_grad_norm_(variant.parameters(), self._config.grad_clip)
        self._optimiser.step()
        variant.after_step(batch, at)
        self._count(watch.f, {**terms, "loss": loss, "grad_norm": norm})
        self.outcome = Outcome(i + 1, None)

    @torch.no_grad()
    def _count(self, f: Tensor, values: dict[str, Tensor]) -> None:
        """Add to the running sums; nothing here waits for the device."""
        fired = torch.count_nonzero(f, dim=0)  # [d_sae]
        self._silent_steps = (self._silent_steps + 1) * (fired == 0)
        values = {**values, "l0": fired.sum() / len(f)}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._n_summed += 1

    @torch.no_grad()
    def _report(self, n_steps: int, batch: Batch) -> None:
        """Wait for the device: log the means, refresh the dead, stop what has gone wrong."""
        means = {name: (s / self._n_summed).item() for name, s in self._sums.items()}
        self._sums, self._n_summed = {}, 0
        self._dead = self._silent_steps >= self._config.dead_window_fraction * self._n_steps
        self._n_dead = int(self._dead.sum())
        x_hat = self.variant.decode(self.variant.encode(batch.x))
        unexplained = ops.unexplained_variance(batch.x, x_hat).item()
        means |= {"explained_variance": 1 - unexplained, "n_dead": self._n_dead}
        self._log.write({"step": n_steps, "tokens": n_steps * self._config.batch_size, **means})
        self.note = (
            f"{self.label}: loss {means['loss']:.3f}, L0 {means['l0']:.1f}, "
            f"EV {means['explained_variance']:.2f}, {self._n_dead} dead"
        )
        self._check(n_steps, means["loss"], unexplained)

    def _check(self, n_steps: int, loss: float, unexplained: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(unexplained)):
            self._stop(n_steps, f"loss is {loss} and error {unexplained}")
        elif math.isnan(self._worst_allowed):
            self._worst_allowed = DIVERGED * max(unexplained, 1.0)
        elif unexplained > self._worst_allowed:
            self._stop(n_steps, f"diverged: the error is {unexplained:.3g} times the variance")

    def _stop(self, n_steps: int, reason: str) -> None:
        self.outcome = Outcome(n_steps, f"{reason} at step {n_steps} of {self._n_steps}")
        LOG.warning("%s stopped: %s", self.label, self.outcome.stop_reason)

    def _guarded(self, n_steps: int, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a variant is foreign code, and its failure is its own
            LOG.exception("%s failed", self.label)
            self._stop(n_steps, f"{type(error).__name__}: {error}")

    def _at(self, i: int) -> Step:
        warmup = self._config.sparsity_warmup_fraction * self._n_steps
        return Step(
            progress=i / self._n_steps,
            sparsity_warmup=min(1.0, (i + 1) / warmup) if warmup else 1.0,
            dead=self._dead,
            n_dead=self._n_dead,
            revive=self._revive,
            length=1 / self._n_steps,
        )

    @torch.no_grad()
    def _revive(self, latents: Tensor) -> None:
        self._silent_steps = self._silent_steps * ~latents
        self._dead = self._dead & ~latents
        self._n_dead = int(self._dead.sum())
        for name, axis in self.variant.latent_axis.items():
            parameter = self.variant.get_parameter(name)
            for moment in ("exp_avg", "exp_avg_sq"):
                state = self._optimiser.state[parameter][moment]
                state.movedim(axis, 0)[latents] = 0.0


def lr_factor(config: TrainConfig, i: int, n_steps: int) -> float:
    """Share of the peak learning rate in step `i`: a linear rise, flat, a linear fall to 0."""
    warmup, decay_from = config.warmup_fraction * n_steps, config.decay_from * n_steps
    rise = (i + 1) / warmup if warmup else 1.0
    fall = (n_steps - i) / (n_steps - decay_from) if decay_from < n_steps else 1.0
    return min(1.0, rise, fall)


class _Watch:
    """Sees the feature acts that `losses` computes of a batch, so that counting costs no pass."""

    def __init__(self, variant: Variant, x: Tensor):
        self._variant, self._x = variant, x
        self._encode = variant.encode
        self.f = x.new_zeros(0)
        """[n, d_sae] feature acts; computed at the end if `losses` did without `encode`."""

    def __enter__(self) -> "_Watch":
        vars(self._variant)["encode"] = self._encode_and_see
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        del vars(self._variant)["encode"]
        if kind is None and not len(self.f):
            with torch.no_grad():
                self.f = self._encode(self._x)

    def _encode_and_see(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        f = self._encode(x, positions)
        if x is self._x:
            self.f = f.detach()
        return f


class _Log:
    """A CSV file whose columns are those of its first row."""

    def __init__(self, path: Path | None):
        self._path = path
        self._columns: list[str] | None = None

    def write(self, row: dict[str, float]) -> None:
        if self._path is None:
            return
        is_first = self._columns is None
        self._columns = self._columns or list(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("w" if is_first else "a", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore")
            if is_first:
                writer.writeheader()
            writer.writerow(row)
