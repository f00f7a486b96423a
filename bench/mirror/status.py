"""What of a config's needs lies in a mirror, and what does not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from bench.mirror import manifest as mirror
from bench.mirror.manifest import Entry, Manifest
from bench.needs import ASK_FOR, DataNeed
from bench.requirements import Needs
from bench.sources import MODELS

State = Literal["ok", "missing", "incomplete", "too little"]


class Item(NamedTuple):
    """One thing that is needed."""

    what: str
    state: State
    detail: str = ""
    """Size and commit of what is there, or what is wrong."""

    def line(self) -> str:
        return f"{self.state:<10}  {self.what}" + (f"  ({self.detail})" if self.detail else "")


def status(needs: Needs, root: Path) -> list[Item]:
    """One item per model and split. Sizes are compared; `verify` reads the files as well."""
    manifest = mirror.read_or_new(root)
    items = [
        _item(f"model {m.hub_id}", manifest.entries.get(f"{MODELS}/{m.hub_id}"), root)
        for m in needs.models
    ]
    for need in needs.data:
        items += _data(need, manifest, root)
    return items + [Item(note, "missing") for note in needs.notes]


def _data(need: DataNeed, manifest: Manifest, root: Path) -> Iterator[Item]:
    found = manifest.data(need.path)
    if need.split is None and not found:
        yield Item(f"data {need.folder}", "missing")
    known = [entry.need.split for entry in found.values() if entry.need is not None]
    for split in known if need.split is None else [need.split]:
        one = need.of_split(split or "")
        entry = found.get(mirror.data_name(one))
        item = _item(f"data {one.folder}, {split}", entry, root, ASK_FOR.get(need.path, ""))
        if item.state == "ok" and entry is not None and not entry.satisfies(one):
            item = item._replace(state="too little", detail="fetched for less than this config")
        yield item


def _item(what: str, entry: Entry | None, root: Path, hint: str = "") -> Item:
    if entry is None:
        return Item(what, "missing", hint)
    wrong = [n for n, f in entry.files.items() if _size(mirror.inside(root, n)) != f.size]
    if wrong or not entry.is_complete:
        return Item(what, "incomplete", ", ".join(wrong) or "is still to be fetched")
    size = sum(file.size for file in entry.files.values())
    return Item(what, "ok", f"{size / 1e6:,.1f} MB, {entry.commit[:12]}")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
