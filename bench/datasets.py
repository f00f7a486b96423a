"""Where the suites' data come from: a folder that mirrors the hub, or the hub itself.

Layout of a mirror: `<root>/<hub id>/[<config>/]<split>.jsonl`, one JSON object per line.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bench.errors import UserError
from bench.models import ModelSpec

FORGET_CORPUS = "bio-forget-corpus"
"""The text of the knowledge to unlearn; gated on the hub, so it is always a local file."""
LANGUAGE_COLUMN = "language"
NANO_SOURCES = Path(__file__).parent / "nano"


class Hub(Protocol):
    """What the suites need from a source of data."""

    @property
    def revision(self) -> str:
        """What tells two states of the data apart."""
        ...

    def load_dataset(
        self,
        path: str,
        name: str | None = None,
        split: str | None = None,
        streaming: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As `datasets.load_dataset`."""
        ...

    def file(self, path: str, split: str) -> Path:
        """The .jsonl file of one split, for readers that open files themselves."""
        ...


class LocalHub:
    """Data sets below `root` under their hub ids; nothing is fetched."""

    def __init__(self, root: Path):
        self.root = root

    @property
    def revision(self) -> str:
        """sha256 over every file's path and bytes, the first 16 digits."""
        digest = hashlib.sha256()
        for file in sorted(self.root.rglob("*.jsonl")):
            digest.update(f"{file.relative_to(self.root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def load_dataset(
        self,
        path: str,
        name: str | None = None,
        split: str | None = None,
        streaming: bool = False,
        *,
        languages: list[str] | None = None,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `datasets.load_dataset`, from the mirror.

        One split gives a Dataset (IterableDataset when streaming), no split a dict of all splits.
        `languages` is codeparrot/github-code's own filter; `trust_remote_code` means nothing here.
        Raises UserError for a missing file, TypeError for an option that would be ignored.
        """
        if kwargs:
            raise TypeError(f"load_dataset({path!r}): unsupported options {sorted(kwargs)}")
        if split is not None:
            return _dataset(self.file(path, split, name), streaming, languages)
        from datasets import DatasetDict, IterableDatasetDict

        splits = {f.stem: _dataset(f, streaming, languages) for f in self._files(path, name)}
        return IterableDatasetDict(splits) if streaming else DatasetDict(splits)

    def file(self, path: str, split: str, name: str | None = None) -> Path:
        """The .jsonl file of one split. Raises UserError if it does not exist."""
        file = self._folder(path, name) / f"{split}.jsonl"
        if not file.is_file():
            raise UserError(f"dataset {_label(path, name)!r}: split {split!r} needs {file}")
        return file

    def _files(self, path: str, name: str | None) -> list[Path]:
        files = sorted(self._folder(path, name).glob("*.jsonl"))
        if not files:
            raise UserError(
                f"dataset {_label(path, name)!r}: needs {self._folder(path, name)}/<split>.jsonl"
            )
        return files

    def _folder(self, path: str, name: str | None) -> Path:
        return self.root / path / name if name else self.root / path


class RemoteHub:
    """The Hugging Face hub, and `root` for the files that it does not hand out."""

    revision = "hub"

    def __init__(self, root: Path):
        self.local = LocalHub(root)

    def load_dataset(
        self,
        path: str,
        name: str | None = None,
        split: str | None = None,
        streaming: bool = False,
        **kwargs: Any,
    ) -> Any:
        """`datasets.load_dataset` itself."""
        import datasets

        return datasets.load_dataset(path, name, split=split, streaming=streaming, **kwargs)

    def file(self, path: str, split: str) -> Path:
        """The .jsonl file of one split below `root`. Raises UserError if it does not exist."""
        return self.local.file(path, split)


def hub_for(spec: ModelSpec, cache_dir: Path) -> Hub:
    """The data of a model: nano's own world, written once into `cache_dir`, or the hub's."""
    if spec.world == "nano":
        return LocalHub(_nano_root(cache_dir))
    return RemoteHub(cache_dir / "files")


def _nano_root(cache_dir: Path) -> Path:
    """The folder of the nano world's data, named after the source code that makes them."""
    from bench.nano.data import write_datasets

    root = cache_dir / f"nano-{_nano_key()}"
    if root.is_dir():
        return root
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial_root = Path(tempfile.mkdtemp(dir=cache_dir, prefix=f".{root.name}."))
    try:
        write_datasets(partial_root)
        os.rename(partial_root, root)
    except OSError:
        if not root.is_dir():  # another process that wrote the same may have been faster
            raise
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return root


def _nano_key() -> str:
    digest = hashlib.sha256()
    for source in sorted(NANO_SOURCES.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _dataset(file: Path, streaming: bool, languages: list[str] | None) -> Any:
    from datasets import Dataset, IterableDataset

    rows = partial(_rows, file, languages)
    if streaming:
        return IterableDataset.from_generator(rows)
    return Dataset.from_list(list(rows()))


def _rows(file: Path, languages: list[str] | None) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if languages is None or row[LANGUAGE_COLUMN] in languages:
                yield row


def _label(path: str, name: str | None) -> str:
    return f"{path}/{name}" if name else path
