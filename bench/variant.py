"""The interface that every file in variants/ implements: train / encode / decode."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bench import ops

if TYPE_CHECKING:
    from bench.config import TrainConfig


class Batch(NamedTuple):
    """One training batch; both views hold the same tokens of the stream, each exactly once.

    Tensors a variant did not ask for (`needs_sequences`) are None.
    """

    x: Tensor
    """[n, d_in] activations, tokens in shuffled order, scaled to unit mean squared norm."""
    contexts: Tensor | None = None
    """[b, T, d_in] the same tokens in reading order, one row per context."""
    token_ids: Tensor | None = None
    """[b, T] int token ids of `contexts`."""
    positions: Tensor | None = None
    """[b, T] int position of each token in its context, 0 at the first."""
    mask: Tensor | None = None
    """[b, T] bool, False on special tokens and padding."""
    context_id: Tensor | None = None
    """[b] int id of each context."""
    paraphrase_id: Tensor | None = None
    """[b] int, equal for contexts that say the same thing; -1 where unknown."""


class Stream(Protocol):
    """The training batches of a run and the recipe that goes with them; every pass is the same."""

    config: "TrainConfig"
    n_steps: int

    @property
    def sample(self) -> Tensor:
        """[n, d_in] the first activations of the stream, scaled like `Batch.x`."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """`n_steps` batches."""
        ...

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches from step `start` on, the same ones as in a whole pass."""
        ...


def _nothing(latents: Tensor) -> None: ...


class Step(NamedTuple):
    """What the trainer tells a variant about the current step."""

    progress: float
    """Fraction of training done, in [0, 1]."""
    sparsity_warmup: float
    """Factor in [0, 1] to multiply sparsity penalties by; 1 after the warm-up."""
    dead: Tensor
    """[d_sae] bool: latents silent for longer than the trainer's dead window."""
    n_dead: int = 0
    """How many of them, known without waiting for the device."""
    revive: Callable[[Tensor], None] = _nothing
    """Call with latents [d_sae] bool that were given new weights: their moments in the optimiser
    are forgotten and they count as alive."""
    length: float = 0.0
    """Fraction of training that this step is."""
    number: int = 0
    """Number of the step, counted from 0."""
    seed: int = 0
    """The SAE's seed, from which `generator` draws."""
    fired: Callable[[Tensor], None] = _nothing
    """Call in `losses` with how many rows of `Batch.x` each latent fired for, [d_sae] int, where
    the feature acts are never formed as a whole; else the trainer counts what `encode` gave."""

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Random numbers for one use in this step; the same use gives the same ones.

        They follow from seed, step and purpose alone, so that a training that was interrupted
        draws the same as one that was not, and no SAE disturbs another.
        """
        seed = ops.derived_seed(self.seed, f"step {self.number}: {purpose}")
        return torch.Generator(device).manual_seed(seed)

    def ends_part(self, fraction: float) -> bool:
        """True in the step with which another `fraction` of training is done."""
        done = self.progress + self.length
        margin = self.length / 2  # progress is a rounded quotient
        return (done + margin) // fraction > (self.progress + margin) // fraction


class Knob(NamedTuple):
    """The config field that sets sparsity."""

    name: str
    """A field of the variant's Config, for example `k` or `l1`."""
    raises_l0: bool
    """True if a larger value gives a larger L0."""
    native: bool
    """True if the value *is* the L0 (top-k), so that no search is needed."""


class Exported(NamedTuple):
    """A trained variant as a SAELens inference SAE."""

    architecture: str
    """SAELens's registered name: `standard`, `topk`, `jumprelu`, ..."""
    cfg: dict[str, Any]
    """Architecture-specific config fields, such as `{"k": 32}`."""
    state: dict[str, Tensor]
    """W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in] with unit rows, b_dec [d_in]."""


@dataclass(frozen=True)
class NoConfig:
    """A variant without settings."""


class Variant(nn.Module, ABC):
    """An autoencoder x [n, d_in] -> f [n, d_sae] -> x_hat [n, d_in].

    A loss-only idea overrides `losses`; a new architecture overrides `encode` too. The class
    docstring's first line is shown by `bench.py list variants`.
    """

    Config: ClassVar[type] = NoConfig
    knob: ClassVar[Knob | None] = None
    needs_sequences: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    """A term added to another variant, which its Config names in a field `base`; see `on_base`."""
    latent_axis: ClassVar[dict[str, int]] = {"W_enc": 1, "b_enc": 0, "W_dec": 0}
    """Parameter -> the axis that counts latents."""

    def __init__(self, d_in: int, d_sae: int, cfg: Any = None, *, generator: torch.Generator):
        """Random unit decoder rows, tied encoder, zero biases; all drawn from `generator`."""
        super().__init__()
        self.d_in, self.d_sae = d_in, d_sae
        self.cfg = self.Config() if cfg is None else cfg
        W_dec = nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=-1)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @classmethod
    def of(cls, choice: str) -> "type[Variant]":
        """What `NAME:CHOICE` means, for a file that stands for several variants.

        Raises ValueError for a choice that it does not have, and by default for any.
        """
        raise ValueError("takes no choice behind a colon")

    @classmethod
    def on_base(cls, base: "type[Variant]") -> "type[Variant]":
        """This term on top of `base`: `super()` in the methods of the term is the base.

        The Config has the fields of both, the knob is the base's. Raises ValueError for a base that
        cannot carry a term.
        """
        return _on_base(cls, base)

    @abstractmethod
    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x [..., d_in] -> feature acts f [..., d_sae]."""

    def decode(self, f: Tensor) -> Tensor:
        """f [..., d_sae] -> x_hat [..., d_in]."""
        return f @ self.W_dec + self.b_dec

    @abstractmethod
    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Named scalar terms; the trainer minimises their sum and logs each by name."""

    def start(self, x: Tensor) -> None:
        """Called once before the first step with x [n, d_in], the stream's sample."""

    def after_backward(self, step: Step) -> None:
        """Called when gradients are ready and before clipping and the optimiser step."""

    def after_step(self, batch: Batch, step: Step) -> None:
        """Called after the optimiser step: projections, resampling, pruning."""

    def finish(self, stream: "Stream") -> None:
        """Called once after the last step, without gradients: thresholds that inference needs."""

    def train(self, stream: "bool | Stream" = True):  # type: ignore[override]
        """Train on `stream`; the default is the lockstep loop of bench.train.

        `nn.Module.train(mode)` keeps its meaning for a bool, which `eval()` relies on. A variant
        whose training is not gradient steps overrides this and handles a stream.
        """
        if isinstance(stream, bool):
            return super().train(stream)
        from bench.train import train_one

        return train_one(self, stream)

    @abstractmethod
    def export(self) -> Exported:
        """This variant as a SAELens inference SAE with unit decoder rows, in the units of `x`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@cache  # one class per pair, so that its instances are of one type
def _on_base(term: type[Variant], base: type[Variant]) -> type[Variant]:
    if base.needs_base:
        raise ValueError(f"base {base.__name__} is a term and needs a base itself")
    if base.train is not Variant.train:
        raise ValueError(f"base {base.__name__} has a training of its own, without the term")
    twice = {f.name for f in fields(term.Config)} & {f.name for f in fields(base.Config)}
    if twice:
        raise ValueError(
            f"{term.__name__} and {base.__name__} both have {', '.join(sorted(twice))}"
        )

    def check(config: Any) -> None:
        for part in (base.Config, term.Config):
            if hasattr(part, "__post_init__"):
                part.__post_init__(config)

    name = f"{term.__name__}On{base.__name__}"
    namespace: dict[str, Any] = {
        "__doc__": f"Settings of {term.__name__} and of {base.__name__}.",
        "__post_init__": check,
        "__module__": term.__module__,
    }
    # fields of the last one come first
    config = type(f"{name}Config", (term.Config, base.Config), namespace)
    members = {
        "__doc__": term.__doc__,
        "__module__": term.__module__,
        "Config": dataclass(frozen=True)(config),
        "needs_base": False,
        "needs_sequences": term.needs_sequences or base.needs_sequences,
    }
    return type(name, (term, base), members)
