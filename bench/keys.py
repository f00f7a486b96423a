"""The one hash function for everything that is reused: a key is content, a name is only a label."""

import ast
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench import __version__

ROOT = Path(__file__).parents[1]
OURS = ("bench", "variants", "suites")
DIGITS = 24
"""Hexadecimal digits kept of a sha256: 96 bits."""
PACKAGES = (
    "datasets",
    "numpy",
    "sae-bench",
    "sae-lens",
    "scikit-learn",
    "torch",
    "transformer-lens",
    "transformers",
)
"""Packages whose version can change a number."""
TYPE_CHECKS = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
"""Conditions that are never true when the code runs."""
SETTLED_S = 2.0
"""A file that was written longer ago than this, in seconds, shows an edit by its time."""
_FILE_KEYS: dict[tuple[Path, int, int, int], str] = {}


@dataclass(frozen=True)
class CellContent:
    """Everything that decides the result of one cell (SAE x suite)."""

    sae: dict[str, Any]
    """The SAE's saved config, which holds the hash of its weights."""
    suite: str
    suite_config: dict[str, Any]
    sources: tuple[str, ...]
    """Source keys of the suite and of the worker that runs it; `sae` holds the variant's."""
    data_revision: str
    model: str
    """Hash of the language models' files, or their hub ids."""
    versions: dict[str, str]
    eval_seed: int
    engine: str
    device: str
    dtype: str

    def key(self) -> str:
        """Equal only for cells that would be computed in the same way."""
        return content_key(asdict(self))


def content_key(content: Any) -> str:
    """Hash of JSON-like content, whatever the order of its keys. Raises TypeError for the rest."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def file_key(path: Path) -> str:
    """Hash of a file's bytes, read once per process as long as nobody writes to the file."""
    stat = path.stat()
    identity = (path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    known = _FILE_KEYS.get(identity)
    if known is not None:
        return known
    with path.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
    # clocks of file systems are coarse: an edit that follows at once may leave the same time
    if time.time() - stat.st_mtime > SETTLED_S:
        _FILE_KEYS[identity] = key
    return key


def folder_key(folder: Path) -> str:
    """Hash of all files below a folder, names and bytes. FileNotFoundError if it is missing."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return content_key([(p.relative_to(folder).as_posix(), file_key(p)) for p in files])


def source_key(path: Path) -> str:
    """Hash of a source file and of all that it imports, also indirectly, from us or its package.

    What is imported for the type checker alone does not count, nor what a plugin loads by name.
    """
    return content_key(sorted((p.name, file_key(p)) for p in sources(path)))


def sources(path: Path) -> set[Path]:
    """The files whose content `source_key` covers."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            waiting.extend(_imported(here, file_key(here), ROOT))
    return seen


@cache
def versions() -> dict[str, str]:
    """Version of ours and of every package that can change a number."""
    return {"sae-verdict": __version__} | {p: importlib.metadata.version(p) for p in PACKAGES}


@cache  # a new content is a new key; 80 SAEs share most of their files
def _imported(path: Path, key: str, ours: Path) -> tuple[Path, ...]:
    """Files of our modules, and of its own package, that a file imports, wherever in it.

    `key` is that of its content, `ours` the folder that our packages lie in.
    """
    roots = dict.fromkeys(OURS, ours) | _own_package(path)
    found: dict[Path, None] = {}
    for level, name in _imports(path):
        root = path.parents[level - 1] if level else roots.get(name.split(".")[0])
        if root:
            found |= dict.fromkeys(_files(root, name.split(".")))
    return tuple(found)


def _files(root: Path, parts: list[str]) -> Iterator[Path]:
    """What Python runs to import a module: its file, and that of every package around it."""
    for i in range(1, len(parts) + 1):
        here = root.joinpath(*parts[:i])
        # as Python does: the package bench/ goes before the script bench.py
        candidates = (here / "__init__.py", here.with_suffix(".py"))
        yield from [f for f in candidates if f.is_file()][:1]


def _imports(path: Path) -> tuple[tuple[int, str], ...]:
    """(dots, module) of every import that the file makes when it runs."""
    found: list[tuple[int, str]] = []
    waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from bench import ops` names a module, `from bench.ops import mse` does not
            names = [node.module or "", *(f"{node.module or ''}.{a.name}" for a in node.names)]
            found += [(node.level, name.strip(".")) for name in names]
        elif isinstance(node, ast.If) and ast.unparse(node.test) in TYPE_CHECKS:
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return tuple((level, name) for level, name in found if name)


def _own_package(path: Path) -> dict[str, Path]:
    """The outermost package that a file lies in, and the folder that holds it: {name: folder}."""
    top = path.parent
    if not (top / "__init__.py").is_file():
        return {}
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    return {top.name: top.parent}
