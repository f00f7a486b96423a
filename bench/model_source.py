"""The files of a language model: a local folder, the mirror, or the hub at one commit.

Only data are ever taken: safetensors, configs and tokenizer files. What a repository holds as
pickles or code is not even downloaded.
"""

from pathlib import Path

from bench.errors import UserError
from bench.keys import content_key, folder_key
from bench.sources import MODELS, active, hub_id, mirror

PATTERNS = ["*.json", "*.jinja", "*.txt", "tokenizer.model", "model*.safetensors"]
"""What loading a model takes."""


def state(source: str) -> str:
    """What tells two states of a model's files apart: their bytes, or the commit on the hub.

    Bytes in a mirror are known from its manifest. Raises FileNotFoundError for a folder that is
    missing.
    """
    found, root = hub_id(source), mirror()
    if found is None:
        return folder_key(Path(source))
    if root is not None:
        return _in_mirror(root, found)
    commit = active().commit("model", found)
    return source if commit is None else f"{source}@{commit}"


def folder_of(source: str) -> Path:
    """The folder with a model's files; those of the hub are fetched at the recorded commit.

    Raises UserError in one line if the hub refuses or cannot be reached.
    """
    if Path(source).is_absolute():
        return Path(source)
    from huggingface_hub import snapshot_download

    from bench.mirror.source import refusals, refused

    commit = active().commit("model", source)
    try:
        return Path(snapshot_download(source, revision=commit, allow_patterns=PATTERNS))
    except refusals() as error:
        raise refused("model", source, error) from error


def _in_mirror(root: Path, found: str) -> str:
    from bench.mirror import manifest

    entry = manifest.read(root).model(found)
    if entry is None:
        raise UserError(
            f"model {found!r}: is not whole in the mirror {root}; run `data fetch CONFIG` again"
        )
    prefix = f"{MODELS}/{found}/"
    files = [[name.removeprefix(prefix), f.sha256] for name, f in sorted(entry.files.items())]
    return content_key(files)
