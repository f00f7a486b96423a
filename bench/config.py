"""The run config: every field with its default, meaning and unit; unknown keys are refused."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from bench.errors import UserError
from bench.strict import build


@dataclass(frozen=True)
class TrainConfig:
    """How every SAE of the run is trained; the same for all variants."""

    d_sae: int
    """Latents per SAE."""
    tokens: int
    """Training tokens, special tokens not counted."""
    batch_size: int = 2048
    """Tokens per step."""
    lr: float = 3e-4
    """Peak learning rate of Adam."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    warmup_fraction: float = 0.004
    """Fraction of training over which the learning rate rises from 0."""
    sparsity_warmup_fraction: float = 0.02
    """Fraction of training over which sparsity penalties rise from 0."""
    decay_from: float = 0.8
    """Fraction of training after which the learning rate falls linearly to 0."""
    dead_window_fraction: float = 0.1
    """A latent silent for this fraction of training counts as dead."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    context_size: int = 128
    """Tokens per context, BOS included."""
    dataset: str = "Skylion007/openwebtext"
    """Hub id of the training text, or a local .txt, .jsonl or .parquet file."""
    text_column: str = "text"
    """Field of the data set that holds the text."""
    buffer_tokens: int = 524_288
    """Tokens whose activations are in memory and are mixed with one another. Their size is this
    many times d_in times the bytes of a number in `dtype`."""
    sink_norm: float | None = None
    """Leave out tokens whose norm is above this many times the median, such as attention sinks;
    None keeps all but special tokens."""
    heldout_tokens: int = 16_384
    """Tokens of the frozen held-out split on which L0 is measured."""
    checkpoint_every: float = 0.1
    """Fraction of training between two checkpoints that a run can go on from; 0 = none. Each SAE
    keeps its last two, of three times its weights each, until it is trained."""
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where losses are shown besides losses/*.csv; needs the package of that name."""


@dataclass(frozen=True)
class VariantConfig:
    """One variant at one sparsity."""

    name: str
    """File name in variants/, without `.py`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the variant's Config."""
    target_l0: float | None = None
    """L0 that the sparsity knob aims at; None where the knob was chosen by hand. A YAML file may
    give a list: one SAE per target."""


@dataclass(frozen=True)
class ControlConfig:
    """One control SAE."""

    name: str
    """A control of bench/controls.py: `random`, `mean`."""
    target_l0: float | None = None
    """L0 that the control is matched to; None where it does not apply."""


@dataclass(frozen=True)
class SaelensConfig:
    """An SAE that others trained with SAELens, scored beside ours: a `path`, or a release."""

    path: str | None = None
    """Folder with cfg.json and sae_weights.safetensors."""
    release: str | None = None
    """Release of sae_lens's list, or a repository on the hub."""
    sae_id: str | None = None
    """Which SAE of the release."""
    label: str | None = None
    """Its name in the run; None takes that of the folder or release."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run: what is trained, on what, and which suites score it."""

    name: str
    """Label of the run, and its folder below results/."""
    model: str
    """A name from `bench.py list models`, a local folder, or a hub id."""
    hook_name: str
    """Where activations are read, for example `blocks.2.hook_resid_post`."""
    train: TrainConfig
    variants: tuple[VariantConfig, ...]
    controls: tuple[ControlConfig, ...] = ()
    saelens: tuple[SaelensConfig, ...] = ()
    """SAEs of others to score as well."""
    suites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Suite name -> fields of its Config."""
    seeds: tuple[int, ...] = (0,)
    """Weight-initialisation seeds; every variant is trained once per seed."""
    data_seed: int = 0
    """Seed of the order of the training tokens."""
    eval_seed: int = 42
    """Seed of everything random in the suites."""
    engine: Literal["reference", "fast"] = "fast"
    """`fast`: ours, the same numbers from shared work; `reference`: sae_bench's own functions."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the language model and of the suites."""
    workers: int = 2
    """Suite processes at a time."""
    instruct: str | None = None
    """The model's instruct sibling, in the same three ways; None takes that of the table. The model
    itself if it is one."""
    d_in: int | None = None
    """Width of the activations, to be checked against the model; None takes the model's."""
    activation_cache_gb: float = 0.0
    """Most disk space in GB for training activations that later runs use again; 0 keeps none."""
    cell_timeout_s: float = 21_600.0
    """A suite's process that ends no cell for this many seconds is taken to hang, and is ended."""
    eval_cache_gb: float = 10.0
    """Most disk space in GB for what the suites compute once for all SAEs; 0 keeps none."""
    mirror: str | None = None
    """Folder that `data fetch` filled: models and data come from it, nothing from the network."""
    trust_remote_code: bool = False
    """Whether a data set of the hub may run code of its own that comes with it."""


WITHOUT_EFFECT = ("checkpoint_every", "log_to")
"""Fields of TrainConfig that change no weight, and so no key."""
OPTIMISER = (
    "lr",
    "betas",
    "warmup_fraction",
    "sparsity_warmup_fraction",
    "decay_from",
    "dead_window_fraction",
    "grad_clip",
)
"""Fields of TrainConfig that change only what is trained: no control, no SAE of others."""


def default_config() -> Path:
    """The config of the embedded demo, which ships with the package."""
    return Path(__file__).parents[1] / "configs" / "nano.yaml"


def load_config(path: Path) -> RunConfig:
    """Read and check a run config. Raises UserError in one line for anything that cannot run."""
    from bench.models import absolute
    from bench.validate import validate

    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"config {str(path)!r}: does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {str(path)!r}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"config {str(path)!r}: {_one_line(error)}") from error
    try:
        config = build(RunConfig, _with_each_target(_with_empty_suites(raw)))
        instruct = None if config.instruct is None else absolute(config.instruct)
        config = replace(config, model=absolute(config.model), instruct=instruct)
        validate(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


class _Loader(yaml.SafeLoader):
    """YAML where `3e-4` is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key_node, key in zip(node.value, keys, strict=True):
            if keys.count(key) > 1:
                mark = key_node[0].start_mark
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=mark)
        return super().construct_mapping(node, deep=deep)


# PyYAML follows YAML 1.1, where a float needs a dot: 3e-4 would be text
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*[eE][-+]?\d+$"), list("-+0123456789")
)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + " ".join((getattr(error, "problem", None) or str(error)).split())


def _with_empty_suites(raw: Any) -> Any:
    """`core:` with nothing behind it means the suite's defaults."""
    if isinstance(raw, dict) and isinstance(raw.get("suites"), dict):
        return raw | {"suites": {k: {} if v is None else v for k, v in raw["suites"].items()}}
    return raw


def _with_each_target(raw: Any) -> Any:
    """`target_l0: [4, 8]` is short for the same variant or control once per target."""
    if not isinstance(raw, dict):
        return raw
    kinds = [k for k in ("variants", "controls") if isinstance(raw.get(k), list)]
    return raw | {kind: [one for item in raw[kind] for one in _per_target(item)] for kind in kinds}


def _per_target(item: Any) -> list[Any]:
    targets = item.get("target_l0") if isinstance(item, dict) else None
    if not isinstance(targets, list):
        return [item]
    if not targets:
        raise UserError(f"{item.get('name')}: target_l0=[]: give at least one")
    return [item | {"target_l0": target} for target in targets]
