"""What a plugin file says about itself, read from its source without running it."""

import ast
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

PLAIN = {"int": int, "float": float, "str": str, "bool": bool}


class Setting(NamedTuple):
    """One field of a plugin's Config."""

    name: str
    type: Any
    """A type that bench.strict.typed understands; Any where the source uses another."""
    annotation: str
    default: str | None
    """As written in the source; None for a field without a default."""
    meaning: str
    """The string under the field."""


def subclasses(tree: ast.Module, base: str) -> list[ast.ClassDef]:
    """Classes of the module that derive from `base`, directly or through another of its classes."""
    derived = {base}
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and derived & {_last(b) for b in node.bases}:
            derived.add(node.name)
            found.append(node)
    return found


def settings(tree: ast.Module, plugin: ast.ClassDef) -> tuple[Setting, ...] | None:
    """Fields of the plugin's Config, bases first; None where a part of it is imported."""
    config = _config(tree, plugin)
    if config == "NoConfig" or config is None:
        return ()
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if isinstance(config, str):
        config = classes.get(config)
    fields: dict[str, Setting] = {}
    return tuple(fields.values()) if config and _collect(config, classes, fields) else None


def attributes(plugin: ast.ClassDef) -> dict[str, Any]:
    """Class attributes that are literals, or calls with literal arguments (as a dict or tuple)."""
    values = {}
    for name, node in _assigned(plugin):
        if node is not None and (value := _literal(node)) is not None:
            values[name] = value
    return values


def constant(tree: ast.Module, name: str) -> Any:
    """The value of a literal assigned to `name` in a module; ValueError if there is none."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return ast.literal_eval(value)
    raise ValueError(f"no literal {name} at the top level")


def _collect(node: ast.ClassDef, classes: dict[str, ast.ClassDef], out: dict[str, Setting]) -> bool:
    """Add the fields of a dataclass to `out`; False if a base of it is not in this file."""
    for base in map(_last, node.bases):
        if base not in classes or not _collect(classes[base], classes, out):
            return False
    for here, after in zip(node.body, [*node.body[1:], None]):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
            if _is_class_var(here.annotation):
                continue
            out[here.target.id] = Setting(
                here.target.id,
                _type(here.annotation),
                ast.unparse(here.annotation),
                ast.unparse(here.value) if here.value else None,
                _docstring(after),
            )
    return True


def _config(tree: ast.Module, plugin: ast.ClassDef) -> ast.ClassDef | str | None:
    """The class nested as Config, or the name assigned to Config, nearest first."""
    for node in plugin.body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            return node
    for name, value in _assigned(plugin):
        if name == "Config" and value is not None:
            return _last(value)
    for base in map(_last, plugin.bases):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == base:
                return _config(tree, node)
    return None


def _assigned(plugin: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None]]:
    for node in plugin.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _literal(node: ast.expr) -> Any:
    """A literal's value; of a call, its arguments: `Knob("k", native=True)` -> {0: "k", ...}."""
    if isinstance(node, ast.Call):
        arguments: list[tuple[int | str, ast.expr]] = list(enumerate(node.args))
        arguments += [(k.arg, k.value) for k in node.keywords if k.arg]
        return {key: _literal(value) for key, value in arguments}
    try:
        return ast.literal_eval(node)
    except ValueError:  # not a literal
        return None


def _type(node: ast.expr) -> Any:
    """The annotation as a type; Any for everything that settings in YAML cannot express."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _type(ast.parse(node.value, mode="eval").body)
        return None if node.value is None else Any
    if isinstance(node, ast.Name):
        return PLAIN.get(node.id, Any)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _type(node.left) | _type(node.right)
    if isinstance(node, ast.Subscript):
        return _generic(_last(node.value), node.slice)
    return Any


def _generic(name: str, inner: ast.expr) -> Any:
    if name == "Literal":
        return Literal[ast.literal_eval(inner)]
    items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "tuple":
        return tuple[tuple(... if _is_dots(item) else _type(item) for item in items)]  # type: ignore[misc]
    if name == "list":
        return list[_type(items[0])]  # type: ignore[misc]
    if name == "dict":
        return dict[_type(items[0]), _type(items[1])]  # type: ignore[misc]
    return Any


def _is_dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _is_class_var(annotation: ast.expr) -> bool:
    return "ClassVar" in ast.unparse(annotation)


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""


def _last(node: ast.expr) -> str:
    """`a.b.C` -> `C`; `` for anything that is not a name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
