"""Points about a suite: what it declares, and what it answers on the embedded nano world."""

import ast
import contextlib
import io
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from bench import ops, registry
from bench.check.report import Point, Problem
from bench.strict import build
from bench.suite import Answer, Engine, Failed, Metric, SaeHandle, Scored, Side, Skipped, Suite

if TYPE_CHECKING:
    from bench.datasets import LocalHub

LAYER, D_SAE = 2, 64
SEED = 42
N_ROWS = {"web": 400, "retain": 60, "forget": 20, "probe_train": 40, "probe_test": 20}
"""Of nano's data sets, which are larger in a run."""
THEIRS = "saebench060_"
"""Prefix of sae_bench's own values, which are never headlines."""


class SuiteRehearsal:
    """One suite on three small SAEs: two that are equal, and between them one that never fires."""

    def __init__(self, plugin: registry.Plugin, work: Path):
        self.plugin, self.work = plugin, work
        self.text = plugin.path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    @cached_property
    def cls(self) -> type[Suite]:
        return registry.load("suites", self.plugin.name)

    @property
    def settings(self) -> dict[str, Any] | None:
        """Fields of its Config that make it a matter of seconds; None if it names none."""
        return self.cls.rehearsal

    @cached_property
    def answers(self) -> dict[Engine, list[Answer]]:
        """What it says of each SAE, with each engine that it has."""
        from bench.datasets import LocalHub
        from bench.nano.data import DataSizes, write_datasets

        data = self.work / "data"
        write_datasets(data, DataSizes(**N_ROWS))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return {engine: self._answers(LocalHub(data), engine) for engine in self.cls.engines}

    def _answers(self, hub: "LocalHub", engine: Engine) -> list[Answer]:
        from bench.context import EvalContext
        from bench.models import resolve

        ctx = EvalContext(
            spec=resolve("nano"),
            hub=hub,
            seed=SEED,
            work=self.work / f"scratch-{engine}",
            artifacts=self.work / f"artifacts-{engine}",
            engine=engine,
        )
        suite = self.cls(build(self.cls.Config, self.settings, self.plugin.name))
        saes = [_handle("first", 0.0), _handle("silent", -1e6), _handle("again", 0.0)]
        return list(suite.run(ctx, saes))


def declares(r: SuiteRehearsal) -> Iterator[Problem]:
    """Metrics as data, and the side of the model pair."""
    left = sorted(getattr(r.cls, "__abstractmethods__", ()))
    if left:
        yield Problem(f"does not define {', '.join(left)}", "define what bench/suite.py asks for")
    for name in ("Config", "metrics", "side"):
        if not hasattr(r.cls, name):
            yield Problem(f"does not declare `{name}`")
            return
    if r.cls.side not in get_args(Side):
        yield Problem(f"side={r.cls.side!r}: must be one of {', '.join(get_args(Side))}")
    if not isinstance(r.cls.hooks, tuple) or not r.cls.hooks:
        yield Problem(f"hooks={r.cls.hooks!r}: must be a tuple of hook kinds")


def metrics_are_clear(r: SuiteRehearsal) -> Iterator[Problem]:
    metrics = r.cls.metrics
    if not all(isinstance(m, Metric) for m in metrics):
        yield Problem("metrics holds something that is no Metric")
        return
    names = [m.name for m in metrics]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield Problem(f"metric {name!r} is declared {names.count(name)} times")
    if not any(m.headline for m in metrics):
        yield Problem("has no headline metric", "declare one metric with headline=True")
    for m in metrics:
        if m.direction not in ("higher", "lower", "none"):
            yield Problem(f"metric {m.name!r}: direction={m.direction!r}", "higher, lower or none")
        if not m.low < m.high:
            yield Problem(f"metric {m.name!r}: its range [{m.low:g}, {m.high:g}] is empty")
        if m.headline and m.name.startswith(THEIRS):
            yield Problem(f"metric {m.name!r}: sae_bench's own value cannot be a headline")
        if not m.summary:
            yield Problem(
                f"metric {m.name!r} is not explained", "give summary='...'", is_warning=True
            )


def can_be_rehearsed(r: SuiteRehearsal) -> Iterator[Problem]:
    if r.settings is None:
        yield Problem(
            "declares no `rehearsal`, so nothing of it was run",
            "rehearsal = {...}: fields of its Config with which nano takes seconds",
            is_warning=True,
        )


def answers_for_each(r: SuiteRehearsal) -> Iterator[Problem]:
    """One result per SAE, in order, with declared metrics in their ranges."""
    if r.settings is None:
        return
    for engine, answers in r.answers.items():
        labels = [a.label for a in answers]
        if labels != ["first", "silent", "again"]:
            given = ", ".join(labels) or "none"
            yield Problem(f"{engine}: gave results for {given}, not for each SAE in order")
            return
        for answer in answers:
            if isinstance(answer, Failed):
                yield Problem(f"{engine}: failed on {answer.label!r}: {answer.error}")
            elif isinstance(answer, Skipped):
                yield Problem(f"{engine}: skipped {answer.label!r}: {answer.reason}")
            elif not answer.invalid:
                yield from _outside(answer, r.cls.metrics)


def answers_alike(r: SuiteRehearsal) -> Iterator[Problem]:
    """The first SAE of the list and the last are the same one."""
    if r.settings is None:
        return
    for engine, (first, _, again) in r.answers.items():
        assert isinstance(first, Scored) and isinstance(again, Scored)  # an earlier point failed
        for name, value in first.metrics.items():
            if value != (other := again.metrics.get(name)):
                what = f"{value} for the first SAE and {other} for the same one again"
                yield Problem(f"{engine}: {name} is {what}")


def _outside(answer: Scored, metrics: tuple[Metric, ...]) -> Iterator[Problem]:
    declared = {m.name: m for m in metrics}
    for name in sorted(set(answer.metrics) - set(declared)):
        yield Problem(f"reports {name!r}, which it does not declare")
    for name, m in declared.items():
        value = answer.metrics.get(name)
        if value is None:
            if name not in answer.reasons:
                yield Problem(
                    f"{name} of {answer.label!r} has no value and no reason",
                    "give a value, or reasons={name: why}",
                )
        elif not math.isfinite(value) or not m.low <= value <= m.high:
            yield Problem(f"{name} of {answer.label!r} is {value}, not in [{m.low:g}, {m.high:g}]")


def _handle(label: str, b_enc: float) -> SaeHandle:
    """A random ReLU SAE at a hook of nano; a very negative bias never fires."""
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    from bench.models import resolve

    spec = resolve("nano")
    assert spec.d_model is not None  # nano's is written down
    sae = StandardSAE(StandardSAEConfig(d_in=spec.d_model, d_sae=D_SAE, dtype="float32"))
    rows = torch.randn(D_SAE, spec.d_model, generator=ops.generator(0, "rehearsal of a suite"))
    ops.normalise_rows_(rows)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.fill_(b_enc)
        sae.b_dec.zero_()
    hook = f"blocks.{LAYER}.hook_resid_post"
    sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = hook, spec.name
    sae.cfg.metadata.prepend_bos = True
    info = {"role": "trained", "label": label, "hook_name": hook, "l0": None}
    return SaeHandle(label, sae, info)


POINTS: tuple[Point[SuiteRehearsal], ...] = (
    Point(
        "interface",
        "declares what bench/suite.py asks for",
        declares,
        "see the interface in bench/suite.py",
        needs=("imports",),
    ),
    Point(
        "metrics",
        "metrics have a name, a direction, a range and a meaning",
        metrics_are_clear,
        "correct the metric",
        needs=("interface",),
    ),
    Point(
        "rehearsal",
        "names settings with which it can be tried out in seconds",
        can_be_rehearsed,
        "declare rehearsal",
        needs=("interface",),
    ),
    Point(
        "answers",
        "gives every SAE of a list its values, also one that never fires",
        answers_for_each,
        "yield one Scored per SAE; set `invalid` where no number means anything",
        needs=("interface", "config", "metrics"),
        is_slow=True,
    ),
    Point(
        "position",
        "the place of an SAE in the list changes nothing",
        answers_alike,
        "draw random numbers anew from ctx.seed for every SAE",
        needs=("answers",),
        is_slow=True,
    ),
)
