"""Where a mirror is filled from: the Hugging Face hub, or in tests a folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bench.errors import UserError
from bench.needs import ASK_FOR, DataNeed
from bench.sources import TRUST_FLAG, Kind


class RemoteFile(NamedTuple):
    """A file of a repository."""

    name: str
    """Path in the repository."""
    size: int | None
    """Bytes, where the hub says so."""
    sha256: str | None
    """Where the hub says so, which is for large files."""


class Source(Protocol):
    """What a mirror is filled from. Every call raises UserError in one line where it fails."""

    def commit(self, kind: Kind, hub_id: str) -> str:
        """The commit that the repository is at."""
        ...

    def model_files(self, hub_id: str, commit: str) -> list[RemoteFile]:
        """All files of a model."""
        ...

    def download(self, hub_id: str, commit: str, name: str, into: Path) -> Path:
        """Fetch a file of a model into a folder, going on with what is there; where it lies."""
        ...

    def splits(self, need: DataNeed, commit: str) -> list[str]:
        """The splits of a data set."""
        ...

    def rows(self, need: DataNeed, commit: str, start: int) -> Iterator[dict[str, Any]]:
        """The rows of a split from `start` on, in the order of the data set."""
        ...


class HubSource:
    """The Hugging Face hub."""

    def __init__(self, *, trust_remote_code: bool = False):
        """With `trust_remote_code` a data set that is a script may be run."""
        self._trust = trust_remote_code

    def commit(self, kind: Kind, hub_id: str) -> str:
        from huggingface_hub import HfApi

        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        try:
            found = ask(hub_id).sha
        except refusals() as error:
            found = _cached(kind, hub_id)
            if found is None:
                raise refused(kind, hub_id, error) from error
        if not found:
            raise UserError(f"{kind} {hub_id!r}: the hub names no commit for it")
        return found

    def model_files(self, hub_id: str, commit: str) -> list[RemoteFile]:
        from huggingface_hub import HfApi

        try:
            info = HfApi().model_info(hub_id, revision=commit, files_metadata=True)
        except refusals() as error:
            raise refused("model", hub_id, error) from error
        return [
            RemoteFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs else None)
            for s in info.siblings or []
        ]

    def download(self, hub_id: str, commit: str, name: str, into: Path) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(hub_id, name, revision=commit, local_dir=into))
        except refusals() as error:
            raise refused("model", hub_id, error) from error

    def splits(self, need: DataNeed, commit: str) -> list[str]:
        import datasets

        try:
            return datasets.get_dataset_split_names(
                need.hub_id, need.config, revision=commit, trust_remote_code=self._trust
            )
        except refusals() as error:
            raise refused("dataset", need.path, error) from error

    def rows(self, need: DataNeed, commit: str, start: int) -> Iterator[dict[str, Any]]:
        import datasets

        try:
            rows: Any = datasets.load_dataset(
                need.hub_id,
                need.config,
                split=need.split,
                streaming=True,
                revision=commit,
                trust_remote_code=self._trust,
            )
            yield from rows.skip(start) if start else rows
        except refusals() as error:
            raise refused("dataset", need.path, error) from error


def _cached(kind: Kind, hub_id: str) -> str | None:
    """The commit that an earlier download left in the hub's cache; None where there is none."""
    import huggingface_hub.constants as hub
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=hub_id, repo_type=kind)
    ref = Path(hub.HF_HUB_CACHE) / folder / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def refusals() -> tuple[type[Exception], ...]:
    """What the hub's two libraries raise where a repository, the network or a script fails them."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # the base of its own errors, which is also that of a network that fails
    http = HfHubHTTPError.__mro__[1]
    return (OSError, ValueError, RuntimeError, http, DatasetsError)  # type: ignore[return-value]


def refused(kind: Kind, name: str, error: Exception) -> UserError:
    """Why the hub gave nothing, in one line, with the way out."""
    text = " ".join(str(error).split())[:300]
    if "trust_remote_code" in text or "dataset script" in text.lower():
        return UserError(
            f"{kind} {name!r}: is a script, which would run on this machine; read it on the hub "
            f"first, then allow it with {TRUST_FLAG}"
        )
    hint = f"; {ASK_FOR[name]}" if name in ASK_FOR else ""
    return UserError(f"{kind} {name!r}: cannot be fetched from the hub: {text}{hint}")
