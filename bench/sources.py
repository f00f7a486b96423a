"""Where a run's models and data come from: the hub at recorded commits, or an offline mirror.

An environment variable holds it, so that every process of a run loads the same things, and the run
folder keeps a copy.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from bench.config import RunConfig
from bench.errors import UserError
from bench.strict import build

Kind = Literal["model", "dataset"]
SOURCES_ENV = "SAE_VERDICT_SOURCES"
"""The sources of the run that this process belongs to, as JSON."""
MIRROR_ENV = "SAE_VERDICT_MIRROR"
"""A mirror for every run that names none."""
SOURCES_FILE = "sources.json"
MANIFEST_FILE = "manifest.json"
FILES = "files"
"""Folder of the cache of runs for data sets that the hub does not hand out to everyone."""
TRUST_FLAG = "--trust-remote-code"
MODELS, DATA = "models", "datasets"
"""Folders of a mirror."""
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Sources:
    """Where models and data come from."""

    mirror: str | None = None
    """Folder made by `data fetch`; nothing is loaded from the network then."""
    commits: dict[str, str] = field(default_factory=dict)
    """`model/ID` or `dataset/ID` -> commit on the hub; without a mirror."""
    trust_remote_code: bool = False
    """Whether a data set may run code of its own that comes with it."""

    def commit(self, kind: Kind, hub_id: str) -> str | None:
        """The recorded commit; None where none is."""
        return self.commits.get(f"{kind}/{hub_id}")


def active() -> Sources:
    """The sources of this process: those of its run, or the hub as it is now."""
    text = os.environ.get(SOURCES_ENV)
    if text is None:
        return Sources(mirror=os.environ.get(MIRROR_ENV) or None)
    return build(Sources, json.loads(text))


def of_config(config: RunConfig) -> Sources:
    """What a config says of its sources; the commits on the hub are not known yet.

    Raises UserError for a mirror that does not exist.
    """
    folder = config.mirror or os.environ.get(MIRROR_ENV) or None
    if folder is not None and not (Path(folder) / MANIFEST_FILE).is_file():
        raise UserError(
            f"mirror={folder!r}: has no {MANIFEST_FILE}; fill it with `data fetch CONFIG --mirror "
            f"{folder}` on a machine with network"
        )
    return Sources(
        mirror=str(Path(folder).resolve()) if folder else None,
        trust_remote_code=config.trust_remote_code,
    )


def mirror() -> Path | None:
    """The mirror of this process."""
    found = active().mirror
    return Path(found) if found else None


def located(source: str) -> str:
    """The folder in the mirror that stands for a hub id; the source itself without a mirror.

    With a mirror the folder need not exist: the error then names it, and the hub is not asked.
    """
    root = mirror()
    if root is None or Path(source).is_absolute():
        return source
    return str(root / MODELS / source)


def hub_id(source: str) -> str | None:
    """The hub id that a model's source stands for; None for a folder outside the mirror."""
    path = Path(source)
    if not path.is_absolute():
        return source
    root = mirror()
    if root is None or not path.is_relative_to(root / MODELS):
        return None
    return path.relative_to(root / MODELS).as_posix()


@contextmanager
def using(sources: Sources) -> Iterator[None]:
    """This process, and those that it starts, load from `sources` for the time of the block."""
    changed = dict.fromkeys([SOURCES_ENV, *OFFLINE])
    before = {name: os.environ.get(name) for name in changed}
    constants = sys.modules.get("huggingface_hub.constants")  # it has read the environment already
    was_offline = getattr(constants, "HF_HUB_OFFLINE", None)
    try:
        activate(sources)
        if sources.mirror:
            os.environ.update(dict.fromkeys(OFFLINE, "1"))
            if constants is not None:
                constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
        yield
    finally:
        if constants is not None:
            constants.HF_HUB_OFFLINE = was_offline  # type: ignore[attr-defined]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def activate(sources: Sources) -> None:
    """From now on this process loads from `sources`; undone by the `using` around it."""
    os.environ[SOURCES_ENV] = json.dumps(asdict(sources))
