"""The two engines of absorption: what they have in common, and the choice between them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bench.absorption.config import AbsorptionConfig
from bench.context import EvalContext, patched, sae_bench_on
from bench.models import DType
from bench.suite import SaeHandle

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer


class Scores(NamedTuple):
    """What came out for one SAE."""

    raw: dict[str, Any]
    """The JSON that sae_bench's own output class accepts."""
    work: dict[str, int]
    """What was computed, see bench.counters."""


class AbsorptionEngine(Protocol):
    """Measures absorption; `prepare` comes first and may be called again."""

    def prepare(self, layer: int) -> None:
        """Do what the SAEs of one layer share. Raises RuntimeError if too few letters are shown."""
        ...

    def scores(self, handle: SaeHandle) -> Scores:
        """sae_bench's result for this SAE."""
        ...

    def words(self, layer: int) -> "Tensor":
        """[n_test, d_in] the words that probes are tested on, drawn at random, in prompts."""
        ...


def make_engine(ctx: EvalContext, cfg: AbsorptionConfig) -> AbsorptionEngine:
    """The engine that `ctx` asks for."""
    from bench.absorption.fast import Fast
    from bench.absorption.reference import Reference

    return Fast(ctx, cfg) if ctx.engine == "fast" else Reference(ctx, cfg)


def layer_of(handle: SaeHandle) -> int:
    """The block behind which an SAE reads the residual stream."""
    return int(handle.sae.cfg.metadata.hook_name.split(".")[1])


@contextmanager
def seeded(ctx: EvalContext) -> Iterator["HookedTransformer"]:
    """sae_bench on our model and seed, with its words in a fixed order.

    sae_bench stores a seed here and never uses it, and draws words from the tokenizer's vocabulary,
    whose order a fast tokenizer changes with every call.
    """
    import sae_bench.evals.absorption.common as common
    import sae_bench.evals.absorption.feature_absorption as feature_absorption
    from sae_bench.evals.absorption.vocab import get_alpha_tokens

    def words(tokenizer: Any) -> list[str]:
        return sorted(get_alpha_tokens(tokenizer))

    with ExitStack() as stack:
        for module in (common, feature_absorption):
            stack.enter_context(patched(module, "get_alpha_tokens", words))
        stack.enter_context(probes_in(ctx.dtype))
        yield stack.enter_context(sae_bench_on(ctx, "base"))


@contextmanager
def probes_in(dtype: DType) -> Iterator[None]:
    """sae_bench's letter probes in the precision of the run.

    By default it takes bfloat16 wherever there is a GPU, even for a model in single precision.
    """
    import sae_bench.evals.absorption.common as common
    import torch

    functions = (
        common.load_or_train_probe,
        common.load_probe,
        common.load_probe_data_split_or_train,
        common.load_probe_data_split,
    )
    wanted: torch.dtype = getattr(torch, dtype)
    before = [function.__defaults__ or () for function in functions]
    try:
        for function, defaults in zip(functions, before, strict=True):
            function.__defaults__ = tuple(
                wanted if isinstance(value, torch.dtype) else value for value in defaults
            )
        yield
    finally:
        for function, defaults in zip(functions, before, strict=True):
            function.__defaults__ = defaults
