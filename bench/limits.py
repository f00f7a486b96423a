"""Limits of the numbers in a suite's Config, for its `__post_init__`: one line, field and value."""

from collections.abc import Iterable
from typing import Any


def at_least(cfg: Any, low: float, *names: str) -> None:
    """Raise ValueError unless these fields, or each entry of them, reach `low`."""
    for name, value in _numbers(cfg, names):
        if value < low:
            raise ValueError(f"{name}={value:g}: must be at least {low:g}")


def at_most(cfg: Any, high: float, *names: str) -> None:
    """Raise ValueError unless these fields, or each entry of them, stay within `high`."""
    for name, value in _numbers(cfg, names):
        if value > high:
            raise ValueError(f"{name}={value:g}: must be at most {high:g}")


def above(cfg: Any, low: float, *names: str) -> None:
    """Raise ValueError unless these fields, or each entry of them, exceed `low`."""
    for name, value in _numbers(cfg, names):
        if value <= low:
            raise ValueError(f"{name}={value:g}: must be above {low:g}")


def distinct(cfg: Any, *names: str) -> None:
    """Raise ValueError unless these fields have entries, each once."""
    for name in names:
        values = getattr(cfg, name)
        if not values:
            raise ValueError(f"{name}=[]: give at least one")
        for i, value in enumerate(values):
            if value in values[:i]:
                raise ValueError(f"{name}[{i}]={value!r}: repeats {name}[{values.index(value)}]")


def _numbers(cfg: Any, names: Iterable[str]) -> Iterable[tuple[str, float]]:
    for name in names:
        value = getattr(cfg, name)
        if isinstance(value, tuple | list):
            yield from ((f"{name}[{i}]", one) for i, one in enumerate(value))
        else:
            yield name, value
