"""The commit of everything that a run takes from the hub: asked for once, then the same for all."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from bench.config import RunConfig
from bench.files import write_atomic
from bench.mirror.source import HubSource, Source
from bench.requirements import Needs, needs_of
from bench.sources import FILES, SOURCES_FILE, Kind, activate, active


def pin(config: RunConfig, out: Path, cache: Path, source: Source | None = None) -> None:
    """Fix this run's sources: activate them with their commits and record them in `out`.

    Data sets that were put into `cache`/files by hand have no commit. Raises UserError where the
    hub cannot be asked and its cache has nothing either.
    """
    sources = active()
    if sources.mirror is None:
        sources = replace(sources, commits=_commits(needs_of(config), cache / FILES, source))
    activate(sources)
    write_atomic(out / SOURCES_FILE, json.dumps(asdict(sources), indent=1))


def _commits(needs: Needs, user_data: Path, source: Source | None) -> dict[str, str]:
    wanted: list[tuple[Kind, str]] = [("model", model.hub_id) for model in needs.models]
    for need in needs.data:
        if not (user_data / need.path).is_dir():
            wanted.append(("dataset", need.hub_id))
    if not wanted:  # nano: the hub's library is not even imported
        return {}
    hub = source or HubSource()
    return {f"{kind}/{hub_id}": hub.commit(kind, hub_id) for kind, hub_id in dict.fromkeys(wanted)}
