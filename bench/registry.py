"""Plugins are files: variants/topk.py is the variant `topk`; there is no second list.

Reading a plugin's name, summary, settings and knob goes through its source and imports nothing, so
that `list` and the config check are instant; only `load` imports, and only the one file asked for.
"""

import ast
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar

from bench import source
from bench.errors import UserError
from bench.strict import unknown

T = TypeVar("T")
Kind = Literal["variants", "suites"]
BASES: dict[Kind, tuple[str, str]] = {
    "variants": ("bench.variant", "Variant"),
    "suites": ("bench.suite", "Suite"),
}
ROOT = Path(__file__).parents[1]
"""The folder that holds variants/ and suites/: the checkout, or site-packages."""
CONTROLS = Path(__file__).parent / "controls.py"
PLUGINS_ENV = "SAE_VERDICT_PLUGINS"
"""Extra plugin files, separated like PATH; an environment variable, so that workers see them."""


class Plugin(NamedTuple):
    """What a plugin's source says about it."""

    name: str
    kind: Kind
    path: Path
    summary: str
    """First line of the class docstring."""
    fields: tuple[source.Setting, ...] | None
    """Fields of its Config; None where the source does not tell, as for an imported Config."""
    attributes: dict[str, Any]
    """Class attributes written as literals; of a call such as `Knob("k", True)` its arguments."""


def names(kind: Kind) -> list[str]:
    """Names of all plugins of a kind, sorted."""
    return sorted(_files(kind))


def summaries(kind: Kind) -> list[Plugin]:
    """Every plugin of a kind as its source describes it, sorted by name."""
    return [describe(kind, name) for name in names(kind)]


def describe(kind: Kind, name: str) -> Plugin:
    """One plugin as its source describes it. Raises UserError for a wrong name or a broken file."""
    path = _path(kind, name)
    tree = _parse(path)
    found = source.subclasses(tree, BASES[kind][1])
    if len(found) != 1:
        raise UserError(_not_one(path, kind, [node.name for node in found]))
    doc = ast.get_docstring(found[0]) or ""
    return Plugin(
        name=name,
        kind=kind,
        path=path,
        summary=doc.strip().partition("\n")[0],
        fields=source.settings(tree, found[0]),
        attributes=source.attributes(found[0]),
    )


def load(kind: Kind, name: str) -> Any:
    """The one Variant or Suite class that the plugin's file defines."""
    path = _path(kind, name)
    base = getattr(importlib.import_module(BASES[kind][0]), BASES[kind][1])
    module = _import(kind, name, path)
    found = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(_not_one(path, kind, [c.__name__ for c in found]))
    return found[0]


def control_names() -> list[str]:
    """Names of the controls, as bench/controls.py lists them in NAMES."""
    return list(source.constant(_parse(CONTROLS), "NAMES"))


def add_file(path: Path) -> Plugin:
    """Make a plugin outside the folders known to this process and its workers."""
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"plugin {str(path)!r}: is not a Python file")
    path = path.resolve()
    kind = _kind_of(path)
    if path.stem in names(kind) and _files(kind)[path.stem] != path:
        raise UserError(
            f"plugin {str(path)!r}: {kind} already has a {path.stem!r}, rename the file"
        )
    extra = [*_extra_files(), path]
    os.environ[PLUGINS_ENV] = os.pathsep.join(dict.fromkeys(map(str, extra)))
    return describe(kind, path.stem)


def _files(kind: Kind) -> dict[str, Path]:
    here = {p.stem: p for p in (ROOT / kind).glob("*.py") if not p.name.startswith("_")}
    return here | {p.stem: p for p in _extra_files() if _kind_of(p) == kind}


def _extra_files() -> list[Path]:
    return [Path(p) for p in os.environ.get(PLUGINS_ENV, "").split(os.pathsep) if p]


def _path(kind: Kind, name: str) -> Path:
    files = _files(kind)
    if name not in files:
        raise unknown(kind.removesuffix("s"), name, files)
    return files[name]


def _kind_of(path: Path) -> Kind:
    tree = _parse(path)
    kinds: list[Kind] = [k for k, (_, base) in BASES.items() if source.subclasses(tree, base)]
    if len(kinds) != 1:
        raise UserError(f"{path}: must define one subclass of Variant or one of Suite")
    return kinds[0]


def _parse(path: Path) -> ast.Module:
    return _guarded(path, lambda: ast.parse(path.read_bytes(), filename=str(path)))


def _import(kind: Kind, name: str, path: Path) -> ModuleType:
    if path.parent == ROOT / kind:
        return _guarded(path, lambda: importlib.import_module(f"{kind}.{name}"))
    return _guarded(path, lambda: _import_file(f"plugin_{kind}_{name}", path))


@cache  # one module per file and process, so that its classes compare equal
def _import_file(module_name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a .py path always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _guarded(path: Path, action: Callable[[], T]) -> T:
    try:
        return action()
    except Exception as error:  # a plugin is foreign code: anything can come out of it
        line = getattr(error, "lineno", None) or _line_in(path, error)
        message = f"{path}:{line}: {type(error).__name__}: {error}"
        raise UserError(" ".join(message.split())) from error


def _line_in(path: Path, error: Exception) -> int:
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno or 1 for f in reversed(frames) if f.filename == str(path)), 1)


def _not_one(path: Path, kind: Kind, found: list[str]) -> str:
    base = BASES[kind][1]
    return f"{path}: must define exactly one {base}, has {len(found)}: {', '.join(found) or 'none'}"
