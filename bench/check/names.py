"""Names that a source file uses and nobody defines, found without running it.

Python finds them only when the line runs, which for a line of the save path is after the training.
"""

import ast
import builtins
import importlib
import importlib.util
import symtable
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

GIVEN = {"__name__", "__file__", "__doc__", "__spec__", "__class__", "__package__", "__path__"}
OURS = ("bench", "variants", "suites")


class Missing(NamedTuple):
    """A name without a definition."""

    line: int
    text: str


def missing(text: str) -> list[Missing]:
    """Undefined names, imports of what does not exist, attributes that a module lacks; by line.

    Of modules that are not ours and that nobody has loaded yet, only their existence is checked.
    """
    tree = ast.parse(text)
    return sorted({*_undefined(text, tree), *_imports(tree), *_attributes(tree)})


def swallowed(tree: ast.AST) -> list[Missing]:
    """Handlers that catch everything, bugs included, and raise nothing."""
    return [
        Missing(node.lineno, f"`except {ast.unparse(node.type)}`" if node.type else "`except:`")
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and _catches_all(node)
        and not any(isinstance(n, ast.Raise) for n in ast.walk(node))
    ]


def methods(plugin: ast.ClassDef) -> list[ast.FunctionDef]:
    """The methods of a class, not those of classes within it."""
    return [n for n in plugin.body if isinstance(n, ast.FunctionDef)]


def used_attributes(functions: Iterable[ast.AST], owner: str) -> Iterator[Missing]:
    """Every `owner.name` that is read, such as `self.cfg.alpha` for the owner `self.cfg`."""
    for node in (n for f in functions for n in _attributes_read(f)):
        if ast.unparse(node.value) == owner:
            yield Missing(node.lineno, node.attr)


def assigned_attributes(tree: ast.AST) -> set[str]:
    """Names of attributes that are written anywhere, on whatever object, or registered by name."""
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and len(n.args) > 1]
    constants = (a.value for c in calls for a in c.args[:2] if isinstance(a, ast.Constant))
    registered = {value for value in constants if isinstance(value, str)}
    return {n.attr for n in nodes if not isinstance(n.ctx, ast.Load)} | registered


def _undefined(text: str, tree: ast.Module) -> Iterator[Missing]:
    if any(isinstance(n, ast.ImportFrom) and n.names[0].name == "*" for n in ast.walk(tree)):
        return  # anything may be defined
    top = symtable.symtable(text, "plugin", "exec")
    known = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    known |= {s.get_name() for s in top.get_symbols() if s.is_namespace()}
    known |= {*vars(builtins), *GIVEN, *_declared_global(top)}
    lines = _first_lines(tree)
    for name in _globals_used(top) - known:
        yield Missing(lines.get(name, 1), f"name {name!r} is not defined")
    for name in _only_for_types(tree):
        for line in _used_at_run_time(tree, name):
            yield Missing(line, f"name {name!r} is imported for type checkers only")


def _globals_used(table: symtable.SymbolTable) -> set[str]:
    """Names that a scope and those within it look up among the module's."""
    is_top = table.get_type() == "module"
    here = {
        s.get_name() for s in table.get_symbols() if s.is_referenced() and _is_global(s, is_top)
    }
    return here.union(*map(_globals_used, table.get_children()))


def _is_global(symbol: symtable.Symbol, is_top: bool) -> bool:
    return is_top or symbol.is_global()


def _declared_global(table: symtable.SymbolTable) -> set[str]:
    """Names that some function assigns to after `global NAME`."""
    here = {s.get_name() for s in table.get_symbols() if s.is_declared_global() and s.is_assigned()}
    return here.union(*map(_declared_global, table.get_children()))


def _first_lines(tree: ast.AST) -> dict[str, int]:
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    return {n.id: n.lineno for n in sorted(names, key=lambda n: -n.lineno)}


def _only_for_types(tree: ast.Module) -> set[str]:
    blocks = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    inside = {a for block in blocks for n in ast.walk(block) for a in _bound(n)}
    outside = {a for n in tree.body if n not in blocks for m in ast.walk(n) for a in _bound(m)}
    return inside - outside


def _bound(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)


def _used_at_run_time(tree: ast.Module, name: str) -> Iterator[int]:
    """Lines that read the name outside of annotations."""
    annotations: set[ast.AST] = set()
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if (annotation := getattr(node, field, None)) is not None:
                annotations.update(ast.walk(annotation))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name and node not in annotations:
            yield node.lineno


def _imports(tree: ast.Module) -> Iterator[Missing]:
    """Modules that cannot be found, and names that a module does not have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if not _exists(alias.name):
                    yield Missing(node.lineno, f"no module named {alias.name!r}")
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if not _exists(node.module):
                yield Missing(node.lineno, f"no module named {node.module!r}")
                continue
            module = _module(node.module)
            for alias in node.names if module else ():
                is_there = hasattr(module, alias.name) or _exists(f"{node.module}.{alias.name}")
                if alias.name != "*" and not is_there:
                    yield Missing(node.lineno, f"{node.module} has no {alias.name!r}")


def _attributes(tree: ast.Module) -> Iterator[Missing]:
    """`ops.keep_topk` where the module `ops` has no such name."""
    modules = dict(_module_names(tree))
    rebound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and _is_written(n)}
    rebound |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    modules = {name: m for name, m in modules.items() if name not in rebound}
    for node in _attributes_read(tree):
        owner = _resolved(node.value, modules)
        if owner is None or hasattr(owner, node.attr):
            continue
        if not _exists(f"{owner.__name__}.{node.attr}"):
            yield Missing(node.lineno, f"{owner.__name__} has no {node.attr!r}")


def _attributes_read(tree: ast.AST) -> Iterator[ast.Attribute]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node


def _module_names(tree: ast.Module) -> Iterator[tuple[str, ModuleType]]:
    """Local names of modules that are loaded or ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                if module := _module(name):
                    yield alias.asname or name, module
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found = getattr(_module(node.module), alias.name, None)
                if isinstance(found, ModuleType):
                    yield alias.asname or alias.name, found


def _resolved(node: ast.expr, modules: dict[str, ModuleType]) -> ModuleType | None:
    """The module that `nn.functional` means."""
    if isinstance(node, ast.Name):
        return modules.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _resolved(node.value, modules)):
        found = getattr(owner, node.attr, None)
        return found if isinstance(found, ModuleType) else None
    return None


def _is_written(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _module(name: str) -> ModuleType | None:
    """The module if it is loaded, or ours; None otherwise."""
    if name not in sys.modules and name.split(".")[0] in OURS and _exists(name):
        importlib.import_module(name)
    return sys.modules.get(name)


def _exists(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _catches_all(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {ast.unparse(c).rpartition(".")[2] if c is not None else "" for c in caught}
    return bool(names & {"", "Exception", "BaseException"})
