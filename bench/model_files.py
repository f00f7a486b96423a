"""What a model's files say without its weights: sizes, vocabulary, tokenizer, and what is missing.

Files of the hub are those that an earlier download left in its cache; only `offline=False` lets
anything be fetched, and then no more than a config and a tokenizer.
"""

import json
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.models import ModelSpec

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "tokenizer.model")
FACTS = ("hidden_size", "num_hidden_layers", "vocab_size")
"""What base and instruct must have in common, by Hugging Face's names."""


def is_offline() -> bool:
    """Whether the environment forbids the hub."""
    import huggingface_hub.constants as hub

    return bool(hub.HF_HUB_OFFLINE)


def missing(spec: ModelSpec) -> list[str]:
    """Kinds of files, of `config.json`, tokenizer and weights, that are not on this machine."""
    has = _local_file if spec.is_local else _cached_file
    wanted = {CONFIG: (CONFIG,), "tokenizer": TOKENIZER, "weights": WEIGHTS}
    return [
        kind for kind, names in wanted.items() if not any(has(spec.source, name) for name in names)
    ]


def facts(spec: ModelSpec) -> dict[str, Any]:
    """The checkpoint's own config. Raises UserError if there is none."""
    if spec.is_local:
        return json.loads((folder_of(spec) / CONFIG).read_text(encoding="utf-8"))
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(spec.source).to_dict()


def tokenizer_of(spec: ModelSpec) -> Any:
    """The model's tokenizer. Raises UserError if a local folder is missing."""
    return _tokenizer(str(folder_of(spec)) if spec.is_local else spec.source)


def folder_of(spec: ModelSpec) -> Path:
    """The folder of a local model. Raises UserError if it holds no checkpoint."""
    folder = Path(spec.source)
    if not (folder / CONFIG).is_file():
        fix = "run `python bench.py nano build`" if spec.world == "nano" else "check the path"
        raise UserError(f"model={spec.name!r}: no checkpoint in {folder}; {fix}")
    return folder


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


def _local_file(source: str, name: str) -> bool:
    return (Path(source) / name).is_file()


def _cached_file(source: str, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, name), str)
