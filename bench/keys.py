"""The one hash function for everything that is reused: a key is content, a name is only a label."""

import ast
import hashlib
import importlib.metadata
import json
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
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def folder_key(folder: Path) -> str:
    """Hash of all files below a folder, names and bytes. FileNotFoundError if it is missing."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return content_key([(p.relative_to(folder).as_posix(), file_key(p)) for p in files])


def source_key(path: Path) -> str:
    """Hash of a source file and of all that it imports, also indirectly, from us or its package."""
    seen: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen[here] = file_key(here)
            waiting.extend(_imported(here))
    return content_key(sorted((p.name, key) for p, key in seen.items()))


@cache
def versions() -> dict[str, str]:
    """Version of ours and of every package that can change a number."""
    return {"sae-verdict": __version__} | {p: importlib.metadata.version(p) for p in PACKAGES}


def _imported(path: Path) -> Iterator[Path]:
    """Files of our modules, and of its own package, that a file imports, wherever in it."""
    roots = dict.fromkeys(OURS, ROOT) | _own_package(path)
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from bench import ops` names a module, `from bench.ops import mse` does not
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)]
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        for name in filter(None, names):
            root = path.parents[level - 1] if level else roots.get(name.split(".")[0])
            if root and (file := root.joinpath(*name.split(".")).with_suffix(".py")).is_file():
                yield file


def _own_package(path: Path) -> dict[str, Path]:
    """The outermost package that a file lies in, and the folder that holds it: {name: folder}."""
    top = path.parent
    if not (top / "__init__.py").is_file():
        return {}
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    return {top.name: top.parent}
