"""`data fetch` and `data status`: from a config file and options to a mirror."""

from collections.abc import Callable, Iterable
from pathlib import Path

from bench import compat, registry
from bench.config import RunConfig, load_config
from bench.errors import UserError
from bench.mirror.fetch import fetch
from bench.mirror.source import HubSource, Source
from bench.mirror.status import Item, status
from bench.requirements import needs_of
from bench.sources import Sources, mirror, using

FILE_ENDINGS = (".jsonl", ".parquet")


def fetch_config(
    config: Path,
    root: Path | None,
    *,
    plugins: Iterable[Path] = (),
    files: Iterable[str] = (),
    trust_remote_code: bool = False,
    say: Callable[[str], None],
    source: Source | None = None,
) -> list[str]:
    """Fill the mirror `root` with what a config needs; what could not be brought, and why.

    `files` are NAME=PATH of data sets that the user has. Raises UserError for bad input.
    """
    compat.prepare()
    chosen = _loaded(config, plugins)
    root = _root(root, chosen)
    given = dict(_given(text) for text in files)
    trust = trust_remote_code or chosen.trust_remote_code
    with using(Sources()):  # the needs are those of the hub, whatever mirror there is
        needs = needs_of(chosen)
    if unused := sorted(set(given) - {need.path for need in needs.data}):
        raise UserError(f"--file {unused[0]}=...: {config} does not read a data set of that name")
    if not needs.models and not needs.data:
        say("nothing to fetch: everything that this config needs is embedded or local")
    try:
        return fetch(needs, root, source or HubSource(trust_remote_code=trust), given, say)
    except OSError as error:  # no such folder can be made, or the disk is full
        raise UserError(f"mirror={str(root)!r}: {error}; what is there is kept") from error


def status_of_config(
    config: Path, root: Path | None, *, plugins: Iterable[Path] = ()
) -> list[Item]:
    """What of a config's needs is in the mirror. Raises UserError for bad input."""
    compat.prepare()
    chosen = _loaded(config, plugins)
    with using(Sources()):
        needs = needs_of(chosen)
    return status(needs, _root(root, chosen))


def _loaded(config: Path, plugins: Iterable[Path]) -> RunConfig:
    for path in plugins:
        registry.add_file(path)  # the config may name them
    return load_config(config)


def _root(root: Path | None, config: RunConfig) -> Path:
    """The folder that is named, the config's, or that of the environment."""
    found = root or (Path(config.mirror) if config.mirror else mirror())
    if found is None:
        raise UserError("mirror=None: give --mirror DIR, or `mirror: DIR` in the config")
    return found


def _given(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or Path(path).suffix not in FILE_ENDINGS or not Path(path).is_file():
        raise UserError(
            f"--file {text!r}: must be NAME=PATH of a {' or '.join(FILE_ENDINGS)} file that exists"
        )
    return name, path
