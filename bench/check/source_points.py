"""Points that hold for the source of any plugin, before anything of it runs."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import yaml

from bench import registry
from bench.check import names
from bench.check.report import Point, Problem
from bench.errors import UserError
from bench.strict import build


class HasSource(Protocol):
    """A rehearsal of either kind."""

    plugin: registry.Plugin
    text: str
    tree: Any

    @property
    def cls(self) -> Any: ...


def loads(r: HasSource) -> Iterator[Problem]:
    """Importing raises with file and line; what is left are things that a user would miss."""
    if not r.cls.__doc__:
        yield Problem(
            f"{r.plugin.path.name}: the class has no docstring, so `list` shows an empty line",
            "write a docstring, its first line is shown",
            is_warning=True,
        )


def all_names_exist(r: HasSource) -> Iterator[Problem]:
    for found in names.missing(r.text):
        yield Problem(f"{r.plugin.path}:{found.line}: {found.text}")


def no_error_is_swallowed(r: HasSource) -> Iterator[Problem]:
    for found in names.swallowed(r.tree):
        yield Problem(f"{r.plugin.path}:{found.line}: {found.text} hides every mistake, also yours")


def config_survives(r: HasSource) -> Iterator[Problem]:
    """Through YAML and back, as from a run's config file, and every property of it can be read."""
    Config: Any = r.cls.Config
    if not hasattr(Config, "__dataclass_fields__"):
        yield Problem(
            f"{_name(Config)} is no dataclass", "decorate it with @dataclass(frozen=True)"
        )
        return
    if not Config.__dataclass_params__.frozen:
        yield Problem(
            f"{_name(Config)} can be changed after its values were checked",
            "decorate it with @dataclass(frozen=True)",
        )
    try:
        cfg = Config()
    except TypeError:
        yield Problem(
            f"{_name(Config)} has fields without a default",
            "give every field a default, so that `--plugin` can run it",
        )
        return
    plain = yaml.safe_load(yaml.safe_dump(_lists(asdict(cfg))))
    try:
        again = build(Config, plain, r.plugin.name)
    except UserError as error:
        yield Problem(f"its defaults cannot be read back from a config file: {error}")
        return
    if again != cfg:
        yield Problem(f"defaults {cfg} become {again} on the way through a config file")
    for name in (n for n in dir(Config) if isinstance(getattr(Config, n), property)):
        getattr(cfg, name)  # what only the save path reads is read here
    for setting in r.plugin.fields or ():
        if not setting.meaning:
            yield Problem(
                f"{_name(Config)}.{setting.name} is not explained",
                "put a string with its meaning and unit under the field",
                is_warning=True,
            )


def explained(path: Path, error: BaseException) -> str:
    """An exception as one line, with the line of the plugin that it came through."""
    line = registry.line_in(path, error)
    where = f"{path}:{line}: " if line else ""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return where + " ".join(text.split())


def _lists(value: Any) -> Any:
    """Tuples as lists, which is what YAML has."""
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value


def _name(cls: Any) -> str:
    return cls.__qualname__


def field_names(Config: type) -> set[str]:
    """Names that `self.cfg.NAME` may read."""
    return {f.name for f in fields(Config)} | set(dir(Config))


POINTS: tuple[Point[Any], ...] = (
    Point(
        "imports",
        "the file can be imported",
        loads,
        "correct the line, or install what it imports",
    ),
    Point(
        "names",
        "every name that the source uses exists, on the save path too",
        all_names_exist,
        "import or define the name, or correct its spelling",
    ),
    Point(
        "swallowed",
        "no handler swallows all errors",
        no_error_is_swallowed,
        "catch the one exception that you expect, or raise again",
    ),
    Point(
        "config",
        "settings are checked, explained and survive a config file",
        config_survives,
        "use plain types (int, float, str, bool, lists of them) that YAML can hold",
        needs=("imports",),
    ),
)
