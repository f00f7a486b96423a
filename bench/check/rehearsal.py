"""The life of one variant on a small scale, each part of it lived at most once."""

import ast
import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import checkpoint, ops, registry
from bench.check import data
from bench.check.data import D_IN, D_SAE, RehearsalStream
from bench.lockstep import train_in_loop, train_lockstep
from bench.result import SaeInfo
from bench.snapshot import Snapshots
from bench.strict import build
from bench.trainee import Outcome, Trainee
from bench.variant import Batch, Exported, Knob, Step, Variant

N_STEPS = 100
"""Of the training that has to descend."""
N_SHORT = 24
"""Of trainings that are compared with one another."""
INTERRUPTED_AT = 12
SCALE = 3.0
"""What activations are divided by in training; an export that forgets it shows."""
HOOK = "blocks.1.hook_resid_post"


class Trained(NamedTuple):
    """A variant after training."""

    variant: Variant
    outcome: Outcome
    error: BaseException | None
    """What stopped it, if it was an exception."""
    before: dict[str, Tensor]
    """Its state before the first step, as `start` leaves it."""
    unexplained: tuple[float, float]
    """Error on held-out tokens in units of their variance, before and after."""


class Saved(NamedTuple):
    """A variant on disk."""

    folder: Path
    sae: Any
    """As reloaded by sae_lens."""
    l0: float


class Rehearsal:
    """One variant, on small synthetic activations and with small weights."""

    def __init__(self, plugin: registry.Plugin, settings: dict[str, Any], work: Path):
        """`settings` are the fields of its Config that a run sets; `work` a folder to write to."""
        self.plugin, self.work = plugin, work
        self.text = plugin.path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self._settings = settings

    @cached_property
    def cls(self) -> type[Variant]:
        return registry.load("variants", self.plugin.name, self._settings)

    @property
    def knob(self) -> Knob | None:
        return self.cls.knob

    @cached_property
    def cfg(self) -> Any:
        """The settings but for the knob, which was chosen for other activations.

        It has its default, or where it is the L0, the L0 of the activations.
        """
        knob = self.knob.name if self.knob else ""
        chosen = {name: value for name, value in self._settings.items() if name != knob}
        cfg = build(self.cls.Config, chosen, self.plugin.name)
        if self.knob and self.knob.native:
            return replace(cfg, **{self.knob.name: data.L0})
        return cfg

    def make(self, *, seed: int = 0, cfg: Any = None, d_sae: int = D_SAE, d_in: int = D_IN) -> Any:
        """An untrained variant."""
        generator = ops.generator(seed, "weights")
        return self.cls(d_in, d_sae, self.cfg if cfg is None else cfg, generator=generator)

    def started(self, **changes: Any) -> Any:
        """An untrained variant, ready for its first step."""
        variant = self.make(**changes)
        _seed()
        variant.start(data.views(4 * data.BATCH, d_in=variant.d_in).in_order)
        return variant

    def batch(self, n_tokens: int = data.BATCH, *, d_in: int = D_IN) -> Batch:
        """One batch, with the contexts if the variant asks for them."""
        some = data.views(n_tokens, d_in=d_in)
        return data.batch_of(some, in_sequence=self.cls.needs_sequences)

    def terms(self, variant: Variant, batch: Batch, at: Step | None = None) -> dict[str, Tensor]:
        """The losses; equal random draws every time."""
        _seed()
        return variant.losses(batch, at or step(variant.d_sae))

    @cached_property
    def x(self) -> Tensor:
        """[n, d_in] tokens that nothing is trained on."""
        return data.heldout()

    @cached_property
    def stream(self) -> RehearsalStream:
        return RehearsalStream(N_STEPS, in_sequence=self.cls.needs_sequences)

    @cached_property
    def short_stream(self) -> RehearsalStream:
        return RehearsalStream(N_SHORT, in_sequence=self.cls.needs_sequences)

    @property
    def trains_itself(self) -> bool:
        return self.cls.train is not Variant.train

    @cached_property
    def trained(self) -> Trained:
        """After the longer training, with its own way of training if it has one."""
        return self.train(self.cfg)

    def train(self, cfg: Any) -> Trained:
        """Train as a run does, from the same first weights whatever the settings."""
        start = self.started(cfg=cfg)
        variant = self.make(cfg=cfg)
        trainee = Trainee(self.plugin.name, variant, self.stream.config, N_STEPS)
        with _quiet() as heard:
            train_lockstep([trainee], self.stream)
        variant.eval()
        return Trained(
            variant,
            trainee.outcome,
            heard[-1] if heard else None,
            {n: v.clone() for n, v in start.state_dict().items()},
            (self._unexplained(start), self._unexplained(variant)),
        )

    def trained_shortly(
        self, interrupted_at: int | None = None
    ) -> tuple[dict[str, Tensor], Outcome]:
        """Weights and what is exported after a short training, in one go or with a break."""
        folder = Path(tempfile.mkdtemp(dir=self.work))
        stream = self.short_stream
        if interrupted_at is not None:
            first = self._trainee(folder)
            with _quiet():
                first.start(stream.sample)
                for i, batch in zip(range(interrupted_at), stream.batches()):
                    first.step(i, batch)
        trainee = self._trainee(folder if interrupted_at is not None else None)
        with _quiet():
            train_in_loop([trainee], stream)
        found = dict(trainee.variant.state_dict())
        with contextlib.suppress(Exception):  # what export raises is told by a point of its own
            trainee.variant.eval()
            found |= {f"exported {n}": v for n, v in trainee.variant.export().state.items()}
        return found, trainee.outcome

    def _trainee(self, folder: Path | None) -> Trainee:
        generator = ops.generator(0, "weights")
        variant = self.cls(D_IN, D_SAE, self.cfg, generator=generator)
        config = replace(self.short_stream.config, checkpoint_every=INTERRUPTED_AT / N_SHORT)
        snapshots = Snapshots(folder, "rehearsal") if folder else None
        return Trainee(
            self.plugin.name, variant, config, N_SHORT, generator=generator, snapshots=snapshots
        )

    @cached_property
    def exported(self) -> Exported:
        return self.trained.variant.export()

    @cached_property
    def saved(self) -> Saved:
        """The trained variant after its way through the disk, in the units of SCALE * x."""
        folder = self.work / "sae"
        exported = checkpoint.in_units_of_model(self.exported, SCALE)
        checkpoint.save_sae(folder, self._record(), exported, SCALE * self.x)
        l0 = checkpoint.read_info(folder).l0
        assert l0 is not None  # measured when it was saved
        return Saved(folder, checkpoint.load_sae(folder), l0)

    def _record(self) -> checkpoint.Record:
        info = SaeInfo(
            label=self.plugin.name,
            role="trained",
            variant=self.plugin.name,
            world="nano",
            model="nano",
            hook_name=HOOK,
            d_in=D_IN,
            d_sae=D_SAE,
        )
        return checkpoint.Record(
            info=info,
            key="",
            source="",
            dataset="rehearsal",
            context_size=data.CONTEXT,
            n_steps=N_STEPS,
            scale=SCALE,
        )

    @torch.no_grad()
    def _unexplained(self, variant: Variant) -> float:
        return ops.unexplained_variance(self.x, variant.decode(variant.encode(self.x))).item()


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit; NaN, with which a buffer may start, equals NaN. True for no tensors."""
    if not isinstance(a, Tensor):
        return True
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def step(d_sae: int = D_SAE, *, progress: float = 0.5, n_dead: int = 0, number: int = 50) -> Step:
    """What a trainer tells; the first `n_dead` latents are dead."""
    return Step(
        progress=progress,
        sparsity_warmup=1.0,
        dead=torch.arange(d_sae) < n_dead,
        n_dead=n_dead,
        length=1 / N_STEPS,
        number=number,
    )


def _seed() -> None:
    torch.default_generator.manual_seed(0)


@contextlib.contextmanager
def _quiet() -> Iterator[list[BaseException]]:
    """Keep the trainer's log to ourselves; gives the exceptions that it caught."""
    log, heard = logging.getLogger("bench.trainee"), _Heard()
    before = log.propagate
    log.addHandler(heard)
    log.propagate = False
    try:
        yield heard.errors
    finally:
        log.removeHandler(heard)
        log.propagate = before


class _Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])
