"""Where the suites' data come from: a folder that mirrors the hub, or the hub itself.

Layout of a mirror's data, nano's too: `<root>/<hub id>/[<config>/]<split>.jsonl`, one JSON object
per line.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bench.errors import UserError
from bench.keys import content_key
from bench.mirror import manifest
from bench.models import ModelSpec
from bench.needs import ASK_FOR, HUB_IDS
from bench.sources import DATA, FILES, Sources, active

LANGUAGE_COLUMN = "language"
NANO_SOURCES = Path(__file__).parent / "nano"


class Hub(Protocol):
    """What the suites need from a source of data."""

    @property
    def revision(self) -> str:
        """What tells two states of the data apart."""
        ...

    def revision_of(self, paths: Iterable[str]) -> str:
        """What tells two states of these data sets apart, whatever else there is."""
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
        return self._hash(self.root)

    def revision_of(self, paths: Iterable[str]) -> str:
        """The same over the files of some data sets; one that is not there has none."""
        return self._hash(*(self.root / path for path in sorted(set(paths))))

    def _hash(self, *folders: Path) -> str:
        digest = hashlib.sha256()
        for file in sorted(f for folder in folders for f in folder.rglob("*.jsonl")):
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


class MirrorHub(LocalHub):
    """The data of a mirror that `data fetch` filled: nothing is fetched, keys cost no reading."""

    def __init__(self, root: Path):
        """Raises UserError where `root` is no mirror."""
        super().__init__(root / DATA)
        self.manifest = manifest.read(root)

    @property
    def revision(self) -> str:
        """From the checksums of every data set in the manifest."""
        names = [name for name in self.manifest.entries if name.startswith(f"{DATA}/")]
        return manifest.revision(self.manifest, names)

    def revision_of(self, paths: Iterable[str]) -> str:
        """From the checksums of some data sets."""
        names = [name for path in set(paths) for name in self.manifest.data(path)]
        return manifest.revision(self.manifest, names)


class RemoteHub:
    """The Hugging Face hub at the commits recorded for this run.

    `root` is for the files that it does not hand out to everyone.
    """

    def __init__(self, root: Path, sources: Sources | None = None):
        self.local = LocalHub(root)
        self.sources = sources or active()

    @property
    def revision(self) -> str:
        """From the commits of every data set of the run, and the files below `root`."""
        kind = "dataset/"
        ids = [key.removeprefix(kind) for key in self.sources.commits if key.startswith(kind)]
        return self.revision_of(ids)

    def revision_of(self, paths: Iterable[str]) -> str:
        """From the commits of some data sets, and from their files below `root`.

        Raises UserError for one without a recorded commit: its state is not known.
        """
        return content_key({path: self._state(path) for path in sorted(set(paths))})

    def load_dataset(
        self,
        path: str,
        name: str | None = None,
        split: str | None = None,
        streaming: bool = False,
        *,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """`datasets.load_dataset` at the recorded commit.

        Code that comes with a data set runs only if the user allowed it, whatever the caller asks.
        Raises UserError for a data set that nobody declared, and for one that is refused.
        """
        import datasets

        from bench.mirror.source import refusals, refused

        if self._is_local(path):
            return self.local.load_dataset(path, name, split, streaming, **kwargs)
        try:
            return datasets.load_dataset(
                HUB_IDS.get(path, path),
                name,
                split=split,
                streaming=streaming,
                revision=self._commit(path),
                trust_remote_code=self.sources.trust_remote_code,
                **kwargs,
            )
        except refusals() as error:
            raise refused("dataset", path, error) from error

    def file(self, path: str, split: str) -> Path:
        """The .jsonl file of one split below `root`. Raises UserError if it does not exist."""
        if not self._is_local(path) and path in ASK_FOR:
            raise UserError(f"dataset {path!r}: {ASK_FOR[path]}")
        return self.local.file(path, split)

    def _is_local(self, path: str) -> bool:
        return (self.local.root / path).is_dir()

    def _state(self, path: str) -> str:
        return self.local.revision_of([path]) if self._is_local(path) else self._commit(path)

    def _commit(self, path: str) -> str:
        commit = self.sources.commit("dataset", HUB_IDS.get(path, path))
        if commit is None:
            raise UserError(
                f"dataset {path!r}: no commit of it is recorded for this run, so its state is not "
                "known: a suite names what it reads in `datasets` or `data()`"
            )
        return commit


def hub_for(spec: ModelSpec, cache_dir: Path) -> Hub:
    """The data of a model: nano's own world, written once into `cache_dir`, the mirror, or the hub.

    Raises UserError for a mirror that is none.
    """
    if spec.world == "nano":
        return LocalHub(_nano_root(cache_dir))
    sources = active()
    if sources.mirror is not None:
        return MirrorHub(Path(sources.mirror))
    return RemoteHub(cache_dir / FILES, sources)


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
