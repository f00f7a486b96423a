"""Fill a mirror: models and data at one commit each, with checksums, going on where it stopped.

A file appears under its name only when it is whole, and the manifest names it only then.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from bench.errors import UserError
from bench.local_models import PICKLES
from bench.mirror import manifest as mirror
from bench.mirror.manifest import UNFINISHED, Entry
from bench.mirror.source import RemoteFile, Source
from bench.mirror.table import copy_file, fetch_split
from bench.needs import DataNeed
from bench.requirements import ModelNeed, Needs
from bench.sources import MODELS

WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
NOT_NEEDED = re.compile(r"(README.*|LICENSE.*|.*\.md|\..*)", re.IGNORECASE)
PLAIN_TEXT = (".json", ".jinja", ".txt")

Say = Callable[[str], None]


def fetch(needs: Needs, root: Path, source: Source, files: dict[str, str], say: Say) -> list[str]:
    """Bring everything in `needs` into the mirror `root`; why something could not be brought.

    `files` are data sets that the user has as a file. What is there already is not fetched again,
    and one thing that fails does not stop the others. `say` gets a line per thing.
    """
    root.mkdir(parents=True, exist_ok=True)
    problems = list(needs.notes)
    for model in needs.models:
        _attempt(problems, lambda model=model: _model(model, root, source, say))
    for need in needs.data:
        if need.path in files:
            path = Path(files[need.path])
            _attempt(problems, lambda need=need, path=path: _given(need, path, root, say))
        else:
            _attempt(problems, lambda need=need: _data(need, root, source, say))
    if not problems:
        mirror.write(root, mirror.read_or_new(root))  # a mirror, also where nothing was needed
        shutil.rmtree(root / UNFINISHED, ignore_errors=True)
    return list(dict.fromkeys(problems))


def _attempt(problems: list[str], action: Callable[[], None]) -> None:
    try:
        action()
    except UserError as error:
        problems.append(str(error))


def _model(need: ModelNeed, root: Path, source: Source, say: Say) -> None:
    name = f"{MODELS}/{need.hub_id}"
    entry = mirror.read_or_new(root).entries.get(name)
    if entry is not None and entry.is_complete and _is_there(entry, root):
        say(f"model {need.hub_id}: is there")
        return
    if entry is None:
        entry = Entry("model", need.hub_id, source.commit("model", need.hub_id))
    for file in wanted(source.model_files(need.hub_id, entry.commit), need.hub_id):
        path = f"{name}/{file.name}"
        known = entry.files.get(path)
        target = mirror.inside(root, path)
        if known is None or not target.is_file() or target.stat().st_size != known.size:
            say(f"model {need.hub_id}: {file.name}")
            unfinished = mirror.inside(root, f"{UNFINISHED}/{name}")
            fetched = source.download(need.hub_id, entry.commit, file.name, unfinished)
            entry = _with_file(entry, path, fetched, target, file)
            _write(root, name, entry)
    _write(root, name, replace(entry, is_complete=True))


def wanted(files: Iterable[RemoteFile], hub_id: str) -> list[RemoteFile]:
    """What loading a model takes: safetensors, configs and tokenizer, all of it data, no code.

    Raises UserError for a model without safetensors: pickles are never loaded.
    """
    top = [f for f in files if "/" not in f.name and not NOT_NEEDED.fullmatch(f.name)]
    weights = [f for f in top if WEIGHTS.fullmatch(f.name)]
    if not weights:
        pickles = [f.name for f in top if Path(f.name).suffix in PICKLES]
        hint = f", only {pickles[0]}, a pickle, which is never loaded" if pickles else ""
        raise UserError(f"model {hub_id!r}: has no model.safetensors{hint}")
    plain = [f for f in top if Path(f.name).suffix in PLAIN_TEXT]
    if not any(f.name == "tokenizer.json" for f in plain):
        plain += [f for f in top if f.name == "tokenizer.model"]
    return [*plain, *weights]


def _with_file(entry: Entry, path: str, fetched: Path, target: Path, file: RemoteFile) -> Entry:
    """The entry with a file that was fetched, moved to its place if it is what the hub has."""
    found = mirror.record(fetched)
    if file.sha256 not in (None, found.sha256) or file.size not in (None, found.size):
        fetched.unlink()
        raise UserError(
            f"model {entry.hub_id!r}: {file.name} did not arrive whole; run the same command again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(fetched, target)
    return replace(entry, files=entry.files | {path: found})


def _data(need: DataNeed, root: Path, source: Source, say: Say) -> None:
    entries = mirror.read_or_new(root).data(need.path)
    # the splits of a data set belong together, so they come from one commit
    commits = {e.commit for e in entries.values() if e.commit != "file"}
    commit = commits.pop() if commits else source.commit("dataset", need.hub_id)
    splits = [need.split] if need.split is not None else source.splits(need, commit)
    for split in splits:
        one = need.of_split(split)
        entry = entries.get(mirror.data_name(one))
        if entry is not None and entry.satisfies(one) and _is_there(entry, root):
            say(f"data {one.folder}, {split}: is there")
            continue
        say(f"data {one.folder}, {split}")
        _write(root, mirror.data_name(one), fetch_split(one, commit, root, source))


def _given(need: DataNeed, path: Path, root: Path, say: Say) -> None:
    name = mirror.data_name(need)
    say(f"data {need.folder}, {need.split}: from {path}")
    _write(root, name, copy_file(need, path, root))


def _is_there(entry: Entry, root: Path) -> bool:
    """Whether every file has its size; `data verify` reads them as well."""
    paths = [(mirror.inside(root, name), file.size) for name, file in entry.files.items()]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _write(root: Path, name: str, entry: Entry) -> None:
    mirror.write(root, mirror.read_or_new(root).with_entry(name, entry))
