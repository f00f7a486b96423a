"""How fast this machine trained SAEs and set up suites before, so that the next run can be told."""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.config import RunConfig
from bench.files import write_atomic
from bench.keys import content_key
from bench.progress import Progress

RATES = "rates"
"""Folder of the cache with a file per kind of training."""
STAGES = ("train", "pilot")
"""Stages of the progress that are steps of training."""
LEAST_S = 1.0
"""Of steps that are measured; less says little."""


class Timed:
    """A progress that passes everything on and keeps the rate of the training steps it hears of."""

    def __init__(
        self,
        shown: Progress,
        config: RunConfig,
        cache: Path,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._shown, self._path, self._clock = shown, _path(config, cache), clock
        self._since: dict[tuple[str, float], tuple[float, float]] = {}

    def __call__(
        self, stage: str, done: float, total: float, note: str = "", rows: Sequence[str] = ()
    ) -> None:
        if stage in STAGES and rows:
            self._measure(stage, done, total, len(rows))
        self._shown(stage, done, total, note, rows)

    def _measure(self, stage: str, done: float, total: float, n_saes: int) -> None:
        # a group that loses an SAE goes on faster: it is measured anew
        began, first = self._since.setdefault((stage, n_saes), (self._clock(), done))
        wall_s = self._clock() - began
        if done < first:  # another round of pilots
            self._since[stage, n_saes] = (self._clock(), done)
        elif done >= total and wall_s >= LEAST_S:
            self._keep((done - first) * n_saes / wall_s, n_saes)

    def _keep(self, rate: float, n_saes: int) -> None:
        write_atomic(self._path, json.dumps({"sae_steps_per_s": rate, "n_saes": n_saes}))


def kept(config: RunConfig, cache: Path) -> float | None:
    """Steps per second, times the SAEs that took them together; None without an earlier run."""
    try:
        found = json.loads(_path(config, cache).read_text(encoding="utf-8"))
        return float(found["sae_steps_per_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_set_up(cache: Path, suite: str, engine: str, model: str, seconds: float) -> None:
    """Note how long a suite took beside its SAEs: starting, and what they have in common."""
    with contextlib.suppress(OSError):  # a full disk costs the estimate
        write_atomic(_suite_path(cache, suite, engine, model), json.dumps({"set_up_s": seconds}))


def set_up_s(cache: Path, suite: str, engine: str, model: str) -> float | None:
    """What was noted last; None without an earlier run."""
    try:
        found = json.loads(_suite_path(cache, suite, engine, model).read_text(encoding="utf-8"))
        return float(found["set_up_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _suite_path(cache: Path, suite: str, engine: str, model: str) -> Path:
    return cache / RATES / f"{content_key(['set-up', suite, engine, model])}.json"


def _path(config: RunConfig, cache: Path) -> Path:
    train = config.train
    kind: list[Any] = [config.model, config.hook_name, config.device, config.dtype]
    kind += [train.d_sae, train.batch_size]
    return cache / RATES / f"{content_key(kind)}.json"
