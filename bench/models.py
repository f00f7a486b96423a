"""Which language models exist, which belong together as base and instruct, and how to load one.

A config names a model of the table, a local folder or a hub id, and with `instruct:` its sibling.
Which model is the instruct one is declared, in the table or by that field, and never guessed from a
name: "granite-base" contains "it". The table and `resolve` import nothing heavy; `load_model` and
`check_pair` do.
"""

import json
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.errors import UserError
from bench.keys import content_key
from bench.model_source import folder_of, state
from bench.sources import located
from bench.strict import unknown
from bench.suite import Side

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Kind = Literal["base", "instruct"]
DType = Literal["float32", "bfloat16"]
NANO_WEIGHTS = Path(__file__).parent / "nano" / "weights"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class ModelSpec:
    """One language model and its place in a pair."""

    name: str
    """What configs and records call it."""
    world: Literal["nano", "real"]
    """`nano`: the embedded synthetic world."""
    source: str
    """Hub id, or a local folder with a Hugging Face checkpoint and its tokenizer."""
    kind: Kind
    """Declared here, never guessed from the name."""
    n_layers: int | None = None
    """None where it is not known before the model's files are there."""
    d_model: int | None = None
    """Width of the residual stream; None where not stated."""
    instruct: str | None = None
    """Name, folder or hub id of the instruct sibling of a base model; None where it has none."""
    summary: str = ""

    @property
    def is_local(self) -> bool:
        """True if `source` is a folder, so that nothing is fetched."""
        return Path(self.source).is_absolute()


def _pair(
    base: str, it: str, hub: str, n_layers: int, d_model: int, note: str = ""
) -> tuple[ModelSpec, ModelSpec]:
    """Two models of one organisation on the hub."""
    return (
        ModelSpec(base, "real", f"{hub}/{base}", "base", n_layers, d_model, it, note),
        ModelSpec(it, "real", f"{hub}/{it}", "instruct", n_layers, d_model, None, note),
    )


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="nano",
            world="nano",
            source=str(NANO_WEIGHTS / "base"),
            kind="base",
            n_layers=5,
            d_model=96,
            instruct="nano-it",
            summary="embedded, synthetic, Gemma-2 architecture",
        ),
        ModelSpec(
            name="nano-it",
            world="nano",
            source=str(NANO_WEIGHTS / "instruct"),
            kind="instruct",
            n_layers=5,
            d_model=96,
            summary="embedded, synthetic, nano fine-tuned to answer questions",
        ),
        *_pair("gemma-2-2b", "gemma-2-2b-it", "google", 26, 2304, "gated"),
        *_pair("gemma-2-9b", "gemma-2-9b-it", "google", 42, 3584, "gated"),
        *_pair("Llama-3.1-8B", "Llama-3.1-8B-Instruct", "meta-llama", 32, 4096, "gated"),
        *_pair("Qwen2.5-0.5B", "Qwen2.5-0.5B-Instruct", "Qwen", 24, 896),
        *_pair("Qwen2.5-1.5B", "Qwen2.5-1.5B-Instruct", "Qwen", 28, 1536),
        *_pair("Qwen2.5-7B", "Qwen2.5-7B-Instruct", "Qwen", 28, 3584),
        ModelSpec(
            name="pythia-70m-deduped",
            world="real",
            source="EleutherAI/pythia-70m-deduped",
            kind="base",
            n_layers=6,
            d_model=512,
            summary="no instruct sibling",
        ),
    )
}


def names() -> list[str]:
    """Every known model, in the order of the table."""
    return list(MODELS)


def resolve(name: str, instruct: str | None = None) -> ModelSpec:
    """The model that `name` means, with its folder in the mirror for a hub id where there is one.

    As `declared` otherwise.
    """
    spec = declared(name, instruct)
    return replace(spec, source=located(spec.source))


def declared(name: str, instruct: str | None = None) -> ModelSpec:
    """The model that `name` means: one of the table, a local folder, or a hub id.

    `instruct` declares its instruct sibling in the same three ways, in place of the table's; naming
    the model itself declares that it is one. Raises UserError with the nearest match for a name
    that is none of these.
    """
    spec = MODELS.get(name) or _undeclared(name)
    if instruct is None:
        return spec
    sibling = MODELS.get(instruct) or _undeclared(instruct)
    if sibling.name in MODELS and sibling.kind != "instruct":
        raise UserError(
            f"instruct={instruct!r}: is a base model; "
            + (f"its sibling is {sibling.instruct!r}" if sibling.instruct else "name another")
        )
    if sibling.source == spec.source:
        return replace(spec, kind="instruct", instruct=None)
    return replace(spec, instruct=instruct)


def _undeclared(name: str) -> ModelSpec:
    """A model outside the table: a base model until a config says otherwise."""
    if is_path(name):
        folder = Path(name).expanduser().resolve()
        n_layers, d_model = _facts_in(folder)
        return ModelSpec(
            folder.name, "real", str(folder), "base", n_layers, d_model, summary="local folder"
        )
    of_table = next((spec for spec in MODELS.values() if spec.source == name), None)
    if of_table is not None:
        return of_table
    if HUB_ID.fullmatch(name):
        return ModelSpec(name, "real", name, "base", summary="on the hub, not in the table")
    raise unknown("model", name, MODELS)


def is_path(name: str) -> bool:
    """Whether a model's name means a local folder: `./x`, `~/x`, `/x`, or a folder that exists."""
    return name.startswith((".", "~", os.sep)) or (os.sep in name and Path(name).is_dir())


def absolute(name: str) -> str:
    """The same model from any working directory: suites run in folders of their own."""
    if name in MODELS or not is_path(name):
        return name
    return str(Path(name).expanduser().resolve())


def on_side(spec: ModelSpec, side: Side) -> ModelSpec:
    """The model of `spec`'s pair that a suite on `side` runs on.

    A base-side suite runs on the model the SAE was trained on, whatever its kind. Raises UserError
    if the instruct side is asked for and no sibling is declared.
    """
    if side == "base" or spec.kind == "instruct":
        return spec
    if spec.instruct is None:
        raise UserError(
            f"model={spec.name!r}: has no instruct sibling, so suites on the instruct side cannot "
            "run; declare one with `instruct: NAME or FOLDER`, or leave them out"
        )
    sibling = resolve(spec.instruct)
    # of a model outside the table, `instruct:` is the declaration
    return sibling if sibling.name in MODELS else replace(sibling, kind="instruct")


def siblings(spec: ModelSpec) -> tuple[ModelSpec, ...]:
    """The models on which an SAE of `spec` may be evaluated: itself first, then its pair."""
    if spec.kind == "base":
        return (spec,) if spec.instruct is None else (spec, on_side(spec, "instruct"))
    return (spec, *(s for s in MODELS.values() if s.instruct == spec.name))


def weights_key(spec: ModelSpec) -> str:
    """Hash of the model's name and files, or of its hub id and commit."""
    return content_key([spec.name, state(spec.source)])


def load_model(
    spec: ModelSpec, device: str = "cpu", dtype: DType = "float32"
) -> "HookedTransformer":
    """The model with its tokenizer, weights as published (nothing folded or centred), in eval mode.

    `cfg.model_name` is the spec's name. Raises UserError for files that are missing or refused.
    """
    import torch

    from bench.local_models import load_folder

    torch_dtype: torch.dtype = getattr(torch, dtype)
    with warnings.catch_warnings():
        # TransformerLens 4 will replace HookedTransformer, which sae_bench is written for
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        model = load_folder(folder_of(spec.source), device, torch_dtype)
    model.cfg.model_name = spec.name
    return model.eval()


def check_pair(base: ModelSpec, instruct: ModelSpec, hook_name: str | None = None) -> None:
    """Raise UserError unless an SAE of `base` can be evaluated on `instruct`.

    Compares declarations, configs and tokenizers, and loads no weights; see `bench.pair`.
    """
    from bench.pair import differences

    for problem in differences(base, instruct, hook_name):
        raise UserError(f"models {base.name!r} and {instruct.name!r}: {problem}")


def _facts_in(folder: Path) -> tuple[int | None, int | None]:
    """n_layers and d_model of the checkpoint in a folder; None where its config does not say."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return raw.get("num_hidden_layers"), raw.get("hidden_size")
    except (OSError, ValueError, AttributeError):
        return None, None
