"""Untyped input (YAML) into typed dataclasses: nothing unknown, nothing converted silently."""

import dataclasses
import math
import types
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bench.errors import UserError


def unknown(what: str, name: object, have: Iterable[str]) -> UserError:
    """The one-line error for a name that does not exist: the nearest match and what exists."""
    known = sorted(have)
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {what} {str(name)!r}:{hint} have: {', '.join(known) or 'none'}")


def build(cls: type, raw: object, where: str = "") -> Any:
    """A dataclass of type `cls` from a mapping; `where` is the path shown in errors."""
    if not isinstance(raw, dict):
        raise UserError(f"{where or 'config'}={raw!r}: must be a mapping of fields")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            raise unknown(f"field in {where}" if where else "field", key, fields)
    missing = [name for name, f in fields.items() if name not in raw and _required(f)]
    if missing:
        raise UserError(f"{_join(where, missing[0])} is missing: it has no default")
    hints = get_type_hints(cls)
    return cls(**{k: typed(v, hints[k], _join(where, k)) for k, v in raw.items()})


def typed(value: object, want: Any, where: str) -> Any:
    """`value` as type `want`: lists become tuples, whole numbers floats, nothing else changes."""
    origin, args = get_origin(want), get_args(want)
    if want is Any:
        return value
    if origin is Literal:
        if value not in args:
            raise unknown(f"value of {where}", value, map(str, args))
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, args, where)
    if origin in (list, tuple):
        return _sequence(value, origin, args, where)
    if origin is dict:
        return _mapping(value, args, where)
    if dataclasses.is_dataclass(want) and isinstance(want, type):
        return build(want, value, where)
    return _scalar(value, want, where)


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _scalar(value: object, want: Any, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if want is float and is_number:
        if not math.isfinite(value):  # type: ignore[arg-type]
            raise UserError(f"{where}={value!r}: must be finite")
        return float(value)  # type: ignore[arg-type]
    if type(value) is not want:  # a bool is an int to isinstance
        raise UserError(f"{where}={value!r}: must be {_WORDS.get(want, want)}")
    return value


def _one_of(value: object, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in (o for o in options if o is not type(None)):
        try:
            return typed(value, option, where)
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _sequence(value: object, origin: type, args: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}={value!r}: must be a list")
    if origin is tuple and Ellipsis not in args:
        if len(value) != len(args):
            raise UserError(f"{where}={value!r}: must have {len(args)} entries")
        items = args
    else:
        items = (args[0],) * len(value)
    return origin(typed(v, t, f"{where}[{i}]") for i, (v, t) in enumerate(zip(value, items)))


def _mapping(value: object, args: tuple[Any, ...], where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}={value!r}: must be a mapping")
    key, item = args
    return {typed(k, key, where): typed(v, item, _join(where, k)) for k, v in value.items()}


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
