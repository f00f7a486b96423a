"""The interface that every file in suites/ implements."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from bench.needs import DataNeed as DataNeed
from bench.needs import text_need as text_need

if TYPE_CHECKING:
    from bench.context import EvalContext

Side = Literal["base", "instruct"]
Engine = Literal["reference", "fast"]
"""`reference`: sae_bench's own functions; `fast`: ours, which give its numbers."""


class Metric(NamedTuple):
    """One number that a suite reports for one SAE."""

    name: str
    """Column name; sae_bench's own value, where we correct it, has the prefix `saebench060_`."""
    direction: Literal["higher", "lower", "none"]
    """Which way is better; `none` where neither is, as for L0."""
    low: float = -math.inf
    high: float = math.inf
    """Legal range, ends included; a value outside is a failure with a reason."""
    headline: bool = False
    """Shown on the leaderboard."""
    summary: str = ""
    """What it is, in its unit."""


class Unit(NamedTuple):
    """The smallest part of a metric that can be resampled: a class, a letter, a question."""

    metric: str
    unit_kind: str
    unit: str
    value: float
    n: int
    """How many observations the value averages."""


class Scored(NamedTuple):
    """What a suite says of one SAE."""

    label: str
    metrics: dict[str, float | None]
    """Metric name -> value; None where it could not be computed (see `reasons`)."""
    units: list[Unit]
    saebench: dict[str, Any] | None
    """The JSON that sae_bench's own output class accepts, or None where sae_bench wrote none."""
    reasons: dict[str, str] = {}
    """Metric name -> why its value is None, or what has to be known beside it."""
    invalid: str | None = None
    """Why no number means anything for this SAE (dead, nothing fires): it is never ranked."""
    wall_s: float = 0.0
    work: dict[str, int] = {}
    """What was computed, see bench.counters."""
    files: dict[str, Any] = {}
    """Name of a JSON file to keep beside the cell -> its content."""


class Failed(NamedTuple):
    """Why there is no result for one SAE; the suite goes on with the others."""

    label: str
    error: Exception


class Skipped(NamedTuple):
    """Why one SAE cannot be asked at all, though nothing went wrong: the cell is `skipped`.

    Only for what follows from the content of the cell's key: it is not looked at again.
    """

    label: str
    reason: str


Answer = Scored | Failed | Skipped
"""What a suite yields for one SAE."""


class SaeHandle(NamedTuple):
    """An SAE to evaluate."""

    label: str
    sae: Any
    """A sae_lens SAE reloaded from disk, unit decoder rows, in the model's own units."""
    info: dict[str, Any]


class Suite(ABC):
    """A suite evaluates a list of SAEs at once and yields one result per SAE, in order.

    The class docstring's first line is shown by `bench.py list suites`.
    """

    Config: ClassVar[type]
    metrics: ClassVar[tuple[Metric, ...]]
    side: ClassVar[Side]
    """Which model of the pair it runs on."""
    hooks: ClassVar[tuple[str, ...]] = ("hook_resid_post",)
    """Hook kinds it can evaluate."""
    datasets: ClassVar[tuple[str, ...]] = ()
    """Hub ids that it reads."""
    engines: ClassVar[tuple[Engine, ...]] = ("reference",)
    """Which engines it has; another that is asked for falls back to the first."""
    batch_sizes: ClassVar[tuple[str, ...]] = ()
    """Fields of its Config that say how much is computed at once and change no number: they are
    halved when the device is out of memory."""
    contexts: ClassVar[tuple[str, ...]] = ()
    """Fields of its Config that say how many tokens the language model reads at once: longer ones
    than its own are refused before anything runs."""
    rehearsal: ClassVar[dict[str, Any] | None] = None
    """Fields of its Config with which `check` can run it in seconds; None = it does not run it."""

    def __init__(self, cfg: Any = None):
        self.cfg = self.Config() if cfg is None else cfg

    def data(self) -> tuple[DataNeed, ...]:
        """What it reads with its settings; every split of `datasets` unless it says less."""
        return tuple(DataNeed(path, split=None) for path in self.datasets)

    @abstractmethod
    def run(self, ctx: "EvalContext", saes: list[SaeHandle]) -> Iterator[Answer]:
        """One result per SAE, in order, by its label. An exception fails the cell it was raised in.

        After an exception the suite is run again on the SAEs behind it; where they share work,
        `Failed` in place of a result spares that. `ctx.engine` says which functions compute.
        """
