"""One SAE in training: its optimiser, which of its latents are alive, its log and checkpoints."""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import ops
from bench.config import TrainConfig
from bench.gradients import WEIGHTS, gradient_ratios
from bench.schedules import checkpoint_every, lr_factor, report_every, sparsity_factor
from bench.snapshot import Snapshot, Snapshots
from bench.training_log import TrainingLog
from bench.variant import Batch, Step, Stream, Variant

LOG = logging.getLogger(__name__)
N_REPORTS = 100
"""How often in a training the device is waited for: to log, to check and to count the dead."""
DIVERGED = 100.0
"""An SAE is stopped when its error is this many times the worse of its first and the variance."""
COLLAPSED_L0 = 0.01
"""An SAE with a smaller L0 does nothing: 99 of 100 tokens have no latent."""
COLLAPSED_FOR = 0.25
"""An SAE is stopped when it has done nothing for this fraction of training. Longer than the dead
window and the time between two resamplings, so that what revives latents has had its chance."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam remembers of a parameter."""


class Outcome(NamedTuple):
    """How the training of one SAE ended, or how far it is."""

    n_steps: int
    """Steps that it took."""
    stop_reason: str | None = None
    """Why it was stopped before the end; None if it was not."""
    is_collapsed: bool = False
    """Whether it was stopped because its L0 went to 0."""


class Trainee:
    """Takes the steps of one SAE. What fails in it becomes its outcome and reaches nobody else."""

    def __init__(
        self,
        label: str,
        variant: Variant,
        config: TrainConfig,
        n_steps: int,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        log: TrainingLog | None = None,
        snapshots: Snapshots | None = None,
    ):
        """`generator` is the one that the variant was made with, if it may go on drawing from it;
        `snapshots` is where to save what to go on from, and to look for it."""
        self.label, self.variant = label, variant
        self.outcome = Outcome(0)
        self.note = ""
        """Loss, L0, explained variance and dead latents at the last report."""
        self.has_lost_a_checkpoint = False
        """Whether one could not be written."""
        self._config, self._n_steps, self._seed = config, n_steps, seed
        self._generator, self._log, self._snapshots = generator, log or TrainingLog(), snapshots
        self._optimiser = torch.optim.Adam(
            variant.parameters(), lr=config.lr, betas=config.betas, fused=True
        )
        self._device = variant.W_dec.device
        self._silent_steps = torch.zeros(variant.d_sae, dtype=torch.long, device=self._device)
        self._dead = torch.zeros(variant.d_sae, dtype=torch.bool, device=self._device)
        self._n_dead = 0
        self._sums: dict[str, Tensor] = {}
        self._n_summed = 0
        self._ratios: dict[str, Tensor] = {}
        self._worst_allowed: float | None = None
        self._inactive_since: int | None = None

    @property
    def is_running(self) -> bool:
        return self.outcome.stop_reason is None

    @property
    def has_checkpoints(self) -> bool:
        """Whether all of it can go on from a file: it writes them, and reports to files only."""
        return bool(self._snapshots and self._config.checkpoint_every and not self._log.has_sinks)

    def start(self, sample: Tensor) -> None:
        """Prepare for the first step, or for the one after the last checkpoint."""
        self._guarded(0, lambda: self._start(sample))

    def train_itself(self, stream: Stream) -> None:
        """Leave the whole training to the variant."""
        self.outcome = Outcome(self._n_steps)
        _seed_draws(self._seed, "training of its own", self._device)
        self._guarded(self._n_steps, lambda: self.variant.train(stream))

    def step(self, i: int, batch: Batch) -> None:
        """Step `i`, counted from 0; one that a checkpoint holds already is passed over."""
        if i < self.outcome.n_steps:
            return
        self._guarded(i, lambda: self._step(i, batch))
        n_steps = i + 1
        if self.is_running and is_report(n_steps, self._n_steps):
            self._guarded(n_steps, lambda: self._report(n_steps, batch))
            every = checkpoint_every(self._config, self._n_steps, N_REPORTS)
            if self.is_running and every and (n_steps % every == 0 or n_steps == self._n_steps):
                self._save()

    def finish(self, stream: Stream) -> None:
        """All steps are taken: let the variant set what inference needs."""
        _seed_draws(self._seed, "finish", self._device)
        with torch.no_grad():
            self._guarded(self.outcome.n_steps, lambda: self.variant.finish(stream))

    def close(self) -> None:
        """The training is over."""
        self._log.close()

    def forget(self) -> None:
        """Remove the checkpoints, now that the outcome is written."""
        if self._snapshots:
            self._snapshots.clear()

    def _start(self, sample: Tensor) -> None:
        _seed_draws(self._seed, "start", self._device)
        self.variant.start(sample)
        if self._snapshots and (snapshot := self._snapshots.load()):
            self._restore(snapshot)
            if snapshot.n_steps < self._n_steps:
                LOG.info("%s goes on after step %d", self.label, snapshot.n_steps)
        self._log.rewind(self.outcome.n_steps)

    def _step(self, i: int, batch: Batch) -> None:
        variant, counted = self.variant, _Counted()
        at = self._at(i, counted)
        for group in self._optimiser.param_groups:
            group["lr"] = self._config.lr * lr_factor(self._config, i, self._n_steps)
        _seed_draws(self._seed, f"step {i}", self._device)
        with _Watch(variant, batch.x, counted):
            terms = variant.losses(batch, at)
        loss = torch.stack(list(terms.values())).sum()
        if is_report(i + 1, self._n_steps):
            parameters = dict(variant.named_parameters())
            weights = {n: parameters[n] for n in WEIGHTS if n in parameters}
            self._ratios = gradient_ratios(terms, weights)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        variant.after_backward(at)
        norm = torch.nn.utils.clip_grad_norm_(variant.parameters(), self._config.grad_clip)
        self._optimiser.step()
        variant.after_step(batch, at)
        self._count(counted.get(), len(batch.x), {**terms, "loss": loss, "grad_norm": norm})
        self.outcome = Outcome(i + 1)

    @torch.no_grad()
    def _count(self, fired: Tensor, n_rows: int, values: dict[str, Tensor]) -> None:
        """Add to the running sums; nothing here waits for the device. fired [d_sae] int."""
        self._silent_steps = (self._silent_steps + 1) * (fired == 0)
        for name, value in {**values, "l0": fired.sum() / n_rows}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._n_summed += 1

    @torch.no_grad()
    def _report(self, n_steps: int, batch: Batch) -> None:
        """Wait for the device: log the means, refresh the dead, stop what has gone wrong."""
        self._dead = self._silent_steps >= self._config.dead_window_fraction * self._n_steps
        x_hat = self.variant.decode(self.variant.encode(batch.x))
        values = {name: total / self._n_summed for name, total in self._sums.items()}
        values |= self._ratios
        values["unexplained"] = ops.unexplained_variance(batch.x, x_hat)
        values["n_dead"] = self._dead.sum()
        # in one transfer; float64 holds each of them exactly
        fetched = torch.stack([v.double() for v in values.values()]).tolist()
        means = dict(zip(values, fetched, strict=True))
        self._sums, self._n_summed = {}, 0
        unexplained, self._n_dead = means.pop("unexplained"), int(means.pop("n_dead"))
        means |= {"explained_variance": 1 - unexplained, "n_dead": self._n_dead}
        self._log.write({"step": n_steps, "tokens": n_steps * self._config.batch_size, **means})
        self.note = (
            f"{self.label}: loss {means['loss']:.3f}, L0 {means['l0']:.1f}, "
            f"EV {means['explained_variance']:.2f}, {self._n_dead} dead"
        )
        self._check(n_steps, means["loss"], unexplained, means["l0"])

    def _check(self, n_steps: int, loss: float, unexplained: float, l0: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(unexplained)):
            self._stop(n_steps, f"loss is {loss} and error {unexplained}")
            return
        if self._worst_allowed is None:
            self._worst_allowed = DIVERGED * max(unexplained, 1.0)
        if unexplained > self._worst_allowed:
            self._stop(n_steps, f"diverged: the error is {unexplained:.3g} times the variance")
        if l0 >= COLLAPSED_L0:
            self._inactive_since = None
        elif self._inactive_since is None:
            self._inactive_since = n_steps
        elif n_steps - self._inactive_since >= COLLAPSED_FOR * self._n_steps:
            self._stop(
                n_steps,
                f"collapsed: L0 below {COLLAPSED_L0} since step {self._inactive_since}, "
                f"{self._n_dead} of {self.variant.d_sae} latents dead,",
                is_collapsed=True,
            )

    def _stop(self, n_steps: int, reason: str, *, is_collapsed: bool = False) -> None:
        reason = f"{reason} at step {n_steps} of {self._n_steps}"
        self.outcome = Outcome(n_steps, reason, is_collapsed)
        LOG.warning("%s stopped: %s", self.label, reason)

    def _guarded(self, n_steps: int, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a variant is foreign code, and its failure is its own
            LOG.exception("%s failed", self.label)
            self._stop(n_steps, f"{type(error).__name__}: {error}")

    def _at(self, i: int, counted: "_Counted") -> Step:
        return Step(
            progress=i / self._n_steps,
            sparsity_warmup=sparsity_factor(self._config, i, self._n_steps),
            dead=self._dead,
            n_dead=self._n_dead,
            revive=self._revive,
            length=1 / self._n_steps,
            number=i,
            seed=self._seed,
            fired=counted.set,
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

    def _save(self) -> None:
        """Write a checkpoint; one that cannot be written costs only what it would have saved."""
        if self._snapshots is None:
            return
        try:
            self._snapshots.save(self._snapshot())
        except (OSError, ValueError, TypeError) as error:
            self.has_lost_a_checkpoint = True
            LOG.warning("%s: no checkpoint at %d: %s", self.label, self.outcome.n_steps, error)

    def _snapshot(self) -> Snapshot:
        """All that the next step depends on and that does not follow from the config.

        Only ever taken right after a report, when the running sums are empty.
        """
        state = self.variant.state_dict()
        tensors = {f"variant.{n}": v for n, v in state.items() if isinstance(v, Tensor)}
        for name, parameter in self.variant.named_parameters():
            for moment, value in self._optimiser.state[parameter].items():
                tensors[f"adam.{moment}.{name}"] = value
        tensors |= {"silent_steps": self._silent_steps, "dead": self._dead}
        if self._generator is not None:
            tensors["generator"] = self._generator.get_state()
        values = {
            # what a variant's own `get_extra_state` gives, as far as JSON can hold it
            "extra": {n: v for n, v in state.items() if not isinstance(v, Tensor)},
            "n_dead": self._n_dead,
            "worst_allowed": self._worst_allowed,
            "inactive_since": self._inactive_since,
            "note": self.note,
        }
        return Snapshot(self.outcome.n_steps, tensors, values)

    def _restore(self, snapshot: Snapshot) -> None:
        tensors, values = snapshot.tensors, snapshot.values
        state: dict[str, Any] = _below("variant.", tensors) | values["extra"]
        self.variant.load_state_dict(state)
        for moment in MOMENTS:
            for name, value in _below(f"adam.{moment}.", tensors).items():
                parameter = self.variant.get_parameter(name)
                # fused Adam reads memory in order: a moment has its parameter's strides
                like = parameter if value.shape == parameter.shape else value
                restored = torch.empty_like(like, dtype=value.dtype, device=self._device)
                self._optimiser.state[parameter][moment] = restored.copy_(value).detach()
        self._silent_steps = tensors["silent_steps"].to(self._device)
        self._dead = tensors["dead"].to(self._device)
        if self._generator is not None:
            self._generator.set_state(tensors["generator"])
        self._n_dead, self._worst_allowed = values["n_dead"], values["worst_allowed"]
        self._inactive_since, self.note = values["inactive_since"], values["note"]
        self.outcome = Outcome(snapshot.n_steps)


def is_report(n_done: int, n_steps: int) -> bool:
    """Whether the device is waited for once `n_done` steps of `n_steps` are done."""
    return n_done % report_every(n_steps, N_REPORTS) == 0 or n_done == n_steps


class _Counted:
    """How many rows each latent fired for in one step."""

    def __init__(self):
        self._fired: Tensor | None = None

    def set(self, fired: Tensor) -> None:
        self._fired = fired

    @property
    def is_known(self) -> bool:
        return self._fired is not None

    def get(self) -> Tensor:
        assert self._fired is not None  # _Watch has seen to it
        return self._fired


class _Watch:
    """Counts in the feature acts that `losses` computes of a batch, so that it costs no pass."""

    def __init__(self, variant: Variant, x: Tensor, counted: _Counted):
        self._variant, self._x, self._counted = variant, x, counted
        self._encode = variant.encode
        self._f: Tensor | None = None

    def __enter__(self) -> None:
        vars(self._variant)["encode"] = self._encode_and_see

    def __exit__(self, kind: type | None, *error: object) -> None:
        del vars(self._variant)["encode"]
        if kind is not None or self._counted.is_known:
            return
        with torch.no_grad():
            f = self._encode(self._x) if self._f is None else self._f
            self._counted.set(torch.count_nonzero(f, dim=0))

    def _encode_and_see(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        f = self._encode(x, positions)
        if x is self._x:
            self._f = f.detach()
        return f


def _seed_draws(seed: int, purpose: str, device: torch.device) -> None:
    """Seed torch's global generators, for variants that draw from them.

    Then such draws too depend on the SAE and its step alone, neither on the other SAEs nor on an
    interruption.
    """
    number = ops.derived_seed(seed, purpose)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(number)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
