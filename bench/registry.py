"""Plugins are files: variants/topk.py is the variant `topk`; there is no second list.

They lie in variants/ and suites/, in installed packages that name them under an entry-point group
(`ENTRY_POINTS`), or anywhere (`add_file`). Reading a plugin's name, summary, settings and knob goes
through its source and imports nothing, so that `list` and the config check are instant; only `load`
imports, and only the one file asked for. A broken plugin, or two of one name, stops nobody else.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
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
ENTRY_POINTS: dict[Kind, str] = {
    "variants": "sae_verdict.variants",
    "suites": "sae_verdict.suites",
}
"""Groups under which an installed package names its plugins, `name = "package.module"`."""
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
    base: str = ""
    """The variant that it sits on, whose fields and attributes are among these."""


class Found(NamedTuple):
    """One place where a plugin was found."""

    path: Path
    module: str = ""
    """What to import; empty for a file that was given by its path."""
    problem: str = ""
    """Why it cannot be used, known without reading it."""


def names(kind: Kind) -> list[str]:
    """Names of all plugins of a kind, sorted, the broken ones too."""
    return sorted(_found(kind))


def summaries(kind: Kind) -> list[Plugin]:
    """Every plugin of a kind whose source can be described, sorted by name; see `problems`."""
    return [p for p in _described(kind).values() if isinstance(p, Plugin)]


def problems(kind: Kind) -> dict[str, str]:
    """The plugins that cannot be described: name -> what is wrong, with file and line."""
    return {name: str(e) for name, e in _described(kind).items() if isinstance(e, UserError)}


def describe(kind: Kind, name: str, config: Mapping[str, Any] | None = None) -> Plugin:
    """One plugin as its source describes it. Raises UserError for a wrong name or a broken file.

    A variant that needs a base is described on the one that `config` names, or its default. Of
    `NAME:CHOICE` only its class knows the settings.
    """
    _, _, choice = name.partition(":")
    path = _one(kind, name).path
    tree = parse(path)
    found = source.subclasses(tree, BASES[kind][1])
    if len(found) != 1:
        raise UserError(_not_one(path, kind, [node.name for node in found]))
    doc = ast.get_docstring(found[0]) or ""
    plugin = Plugin(
        name=name,
        kind=kind,
        path=path,
        summary=doc.strip().partition("\n")[0],
        fields=None if choice else source.settings(tree, found[0]),
        attributes={} if choice else source.attributes(found[0]),
    )
    return _described_on_base(plugin, config or {})


def load(kind: Kind, name: str, config: Mapping[str, Any] | None = None) -> Any:
    """The one Variant or Suite class that the plugin's file defines.

    A variant that needs a base is put on the one that `config` names, or its default. Of
    `NAME:CHOICE` it is what the class in NAME makes of CHOICE.
    """
    found = _one(kind, name)
    base = getattr(importlib.import_module(BASES[kind][0]), BASES[kind][1])
    module = _import(kind, name, found)
    classes = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise UserError(_not_one(found.path, kind, [c.__name__ for c in classes]))
    plugin = describe(kind, name, config)
    _, _, choice = name.partition(":")
    if choice:
        try:
            return classes[0].of(choice)
        except (AttributeError, ValueError) as error:
            raise UserError(f"{kind.removesuffix('s')} {name!r}: {error}") from error
    if not plugin.base:
        return classes[0]
    try:
        return classes[0].on_base(load("variants", plugin.base))
    except ValueError as error:
        raise UserError(f"variant {name!r}: base={plugin.base!r}: {error}") from error


def control_names() -> list[str]:
    """Names of the controls, as bench/controls.py lists them in NAMES."""
    return list(source.constant(parse(CONTROLS), "NAMES"))


def add_file(path: Path) -> Plugin:
    """Make a plugin outside the folders known to this process and its workers."""
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"plugin {str(path)!r}: is not a Python file")
    path = path.resolve()
    kind = _kind_of(path)
    if any(found.path != path for found in _found(kind).get(path.stem, [])):
        raise UserError(
            f"plugin {str(path)!r}: {kind} already has a {path.stem!r}, rename the file"
        )
    extra = [*_extra_files(), path]
    os.environ[PLUGINS_ENV] = os.pathsep.join(dict.fromkeys(map(str, extra)))
    return describe(kind, path.stem)


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file. Raises UserError with file and line if it is not Python."""
    return _guarded(path, lambda: ast.parse(path.read_bytes(), filename=str(path)))


def line_in(path: Path, error: BaseException) -> int | None:
    """The innermost line of the file that the error went through; None if it did not."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)


def _described_on_base(plugin: Plugin, config: Mapping[str, Any]) -> Plugin:
    if not plugin.attributes.get("needs_base"):
        return plugin
    defaults = {f.name: f.default for f in plugin.fields or ()}
    name = str(config.get("base", ast.literal_eval(defaults.get("base") or "''")))
    base = describe("variants", name)
    if base.base:
        raise UserError(f"variant {plugin.name!r}: base={name!r}: needs a base itself")
    both = None if base.fields is None else (*base.fields, *(plugin.fields or ()))
    return plugin._replace(fields=both, attributes=base.attributes | plugin.attributes, base=name)


def _described(kind: Kind) -> dict[str, Plugin | UserError]:
    described: dict[str, Plugin | UserError] = {}
    for name in names(kind):
        try:
            described[name] = describe(kind, name)
        except UserError as error:
            described[name] = error
    return described


def _one(kind: Kind, name: str) -> Found:
    """Where the plugin of that name is. Raises UserError if that is nowhere or in two places."""
    found, name = _found(kind), name.partition(":")[0]
    if name not in found:
        raise unknown(kind.removesuffix("s"), name, found)
    first, *others = found[name]
    if others:
        places = ", ".join(str(f.path) for f in found[name])
        raise UserError(
            f"{kind.removesuffix('s')} {name!r}: is defined twice, rename one: {places}"
        )
    if first.problem:
        raise UserError(first.problem)
    return first


def _found(kind: Kind) -> dict[str, list[Found]]:
    """Every place of every plugin; the same file found in two ways counts once."""
    found: dict[str, list[Found]] = {}
    for name, place in _places(kind):
        places = found.setdefault(name, [])
        if place.path not in [p.path for p in places]:
            places.append(place)
    return found


def _places(kind: Kind) -> Iterator[tuple[str, Found]]:
    for path in sorted((ROOT / kind).glob("*.py")):
        if not path.name.startswith("_"):
            yield path.stem, Found(path, f"{kind}.{path.stem}")
    yield from _packaged(kind, tuple(sys.path))
    for path in _extra_files():
        try:
            if _kind_of(path) == kind:
                yield path.stem, Found(path)
        except UserError as error:  # of no kind: shown under both
            yield path.stem, Found(path, problem=str(error))


@cache  # looking through all installed packages takes tenths of a second
def _packaged(kind: Kind, search_path: tuple[str, ...]) -> tuple[tuple[str, Found], ...]:
    """Plugins that installed packages name; `search_path` is where packages are looked for."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS[kind])
    return tuple((point.name, _place(kind, point)) for point in points)


def _place(kind: Kind, point: importlib.metadata.EntryPoint) -> Found:
    path = _file_of(point.module)
    if path is not None:
        return Found(path, point.module)
    package = point.dist.name if point.dist else "a package"
    problem = (
        f"entry point {ENTRY_POINTS[kind]}: {point.name} = {point.value!r} of {package}: "
        f"there is no module {point.module!r}, install the package again"
    )
    return Found(Path(point.module), problem=problem)


def _file_of(module: str) -> Path | None:
    """The source file of a module, found without importing it or the packages around it."""
    where: list[str] | None = None
    spec = None
    for i, _ in enumerate(parts := module.split(".")):
        finders = (f.find_spec for f in sys.meta_path if hasattr(f, "find_spec"))
        name = ".".join(parts[: i + 1])
        spec = next((s for find in finders if (s := find(name, where)) is not None), None)
        if spec is None:
            return None
        where = list(spec.submodule_search_locations or ())
    if spec is None or spec.origin is None or not spec.has_location:
        return None
    return Path(spec.origin).resolve()


def _extra_files() -> list[Path]:
    return [Path(p) for p in os.environ.get(PLUGINS_ENV, "").split(os.pathsep) if p]


def _kind_of(path: Path) -> Kind:
    tree = parse(path)
    kinds: list[Kind] = [k for k, (_, base) in BASES.items() if source.subclasses(tree, base)]
    if len(kinds) != 1:
        raise UserError(f"{path}: must define one subclass of Variant or one of Suite")
    return kinds[0]


def _import(kind: Kind, name: str, found: Found) -> ModuleType:
    if found.module:
        return _guarded(found.path, lambda: importlib.import_module(found.module))
    return _guarded(found.path, lambda: _import_file(f"plugin_{kind}_{name}", found.path))


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
    except (Exception, SystemExit) as error:  # a plugin is foreign code: anything can come out
        line = getattr(error, "lineno", None) or line_in(path, error) or 1
        message = f"{path}:{line}: {type(error).__name__}: {error}"
        raise UserError(" ".join(message.split())) from error


def _not_one(path: Path, kind: Kind, found: list[str]) -> str:
    base = BASES[kind][1]
    return f"{path}: must define exactly one {base}, has {len(found)}: {', '.join(found) or 'none'}"
