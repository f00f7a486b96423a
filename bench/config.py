"""The run config: every field with its default, meaning and unit; unknown keys are refused."""

from dataclasses import dataclass, field
from typing import Any, Literal


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
    """Hub id of the training text."""
    heldout_tokens: int = 16_384
    """Tokens of the frozen held-out split on which L0 is measured."""


@dataclass(frozen=True)
class VariantConfig:
    """One variant at one sparsity."""

    name: str
    """File name in variants/, without `.py`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the variant's Config."""
    target_l0: float | None = None
    """L0 that the sparsity knob aims at; None where the knob was chosen by hand."""


@dataclass(frozen=True)
class ControlConfig:
    """One control SAE."""

    name: str
    """A control of bench/controls.py: `random`, `mean`."""
    target_l0: float | None = None
    """L0 that the control is matched to; None where it does not apply."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run: what is trained, on what, and which suites score it."""

    name: str
    """Label of the run, and its folder below results/."""
    model: str
    """A name from `bench.py list models`."""
    hook_name: str
    """Where activations are read, for example `blocks.2.hook_resid_post`."""
    train: TrainConfig
    variants: tuple[VariantConfig, ...]
    controls: tuple[ControlConfig, ...] = ()
    suites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Suite name -> fields of its Config."""
    seeds: tuple[int, ...] = (0,)
    """Weight-initialisation seeds; every variant is trained once per seed."""
    data_seed: int = 0
    """Seed of the order of the training tokens."""
    eval_seed: int = 42
    """Seed of everything random in the suites."""
    engine: Literal["reference"] = "reference"
    """`reference`: sae_bench's own functions."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the language model and of the suites."""
    workers: int = 2
    """Suite processes at a time."""
