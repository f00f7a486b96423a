"""What is examined: a config, the folder it runs into, its models, and which suites need which."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench import registry
from bench.config import RunConfig
from bench.errors import UserError
from bench.models import ModelSpec, on_side, resolve
from bench.requirements import settings_of
from bench.result import CACHE
from bench.suite import Side


@dataclass(frozen=True)
class Subject:
    """One run that is to be made."""

    config: RunConfig
    out: Path
    """The run folder."""

    @cached_property
    def cache(self) -> Path:
        return self.out.resolve().parent / CACHE

    @cached_property
    def spec(self) -> ModelSpec:
        """The model that SAEs are trained on."""
        return resolve(self.config.model, self.config.instruct)

    def on(self, side: Side) -> tuple[str, ...]:
        """The suites that need the model of this side."""
        return tuple(s for s in self.config.suites if self.side_of(s) == side)

    def side_of(self, suite: str) -> Side:
        """Which model of the pair a suite runs on."""
        return registry.describe("suites", suite).attributes["side"]

    def settings(self, suite: str) -> Any:
        """The suite's Config with the fields of the run; None where it cannot be built."""
        try:
            return settings_of(suite, self.config.suites[suite])
        except UserError:
            return None  # told by the check of the plugins

    @property
    def n_saes(self) -> int:
        """SAEs that are scored."""
        config = self.config
        made = len(config.variants) + len(config.controls)
        return made * len(config.seeds) + len(config.saelens)

    @cached_property
    def instruct(self) -> ModelSpec | None:
        """The instruct model of the pair, which may be the trained one; None if there is none."""
        try:
            return on_side(self.spec, "instruct")
        except UserError:
            return None
