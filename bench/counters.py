"""How much work a suite does, in units that do not depend on the machine.

Counted by hooks on the models and SAEs themselves, so that an engine cannot forget to count, and
the numbers of one model carry over to another of known size.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench.context import patched

SHARED = "shared_"
"""Prefix of work that was done once for all SAEs of a process."""


@dataclass
class Work:
    """What was computed, padding included."""

    lm_block_tokens: int = 0
    """Tokens times transformer blocks that they went through."""
    unembed_tokens: int = 0
    """Positions whose logits were computed."""
    sae_encoded_tokens: int = 0
    sae_decoded_tokens: int = 0
    probe_fits: int = 0
    """Logistic regressions fitted by scikit-learn."""
    probe_steps: int = 0
    """Steps of an optimiser of torch."""

    def __add__(self, other: "Work") -> "Work":
        return Work(**{name: n + getattr(other, name) for name, n in asdict(self).items()})

    def recorded(self, shared: "Work | None" = None) -> dict[str, int]:
        """By name, followed by the work that this SAE shared with others."""
        own = asdict(self)
        return own | {SHARED + name: n for name, n in asdict(shared).items()} if shared else own


@contextmanager
def counting(models: Iterable[Any] = (), saes: Iterable[Any] = ()) -> Iterator[Work]:
    """Count for the time of the block what `models` (HookedTransformer) and `saes` do.

    Blocks may be nested; each counts everything inside it.
    """
    from sklearn.linear_model import LogisticRegression
    from torch.optim.optimizer import register_optimizer_step_post_hook

    work = Work()
    with ExitStack() as stack:
        for model in models:
            for block in model.blocks:
                _hook(stack, block, _adder(work, "lm_block_tokens"))
            _hook(stack, model.unembed, _adder(work, "unembed_tokens"))
        for sae in saes:
            _wrap(stack, sae, "encode", _adder(work, "sae_encoded_tokens"))
            _wrap(stack, sae, "decode", _adder(work, "sae_decoded_tokens"))
        _wrap(stack, LogisticRegression, "fit", _fitted(work))
        handle = register_optimizer_step_post_hook(_stepped(work))
        stack.callback(handle.remove)
        yield work


def _adder(work: Work, name: str) -> Callable[..., None]:
    """Adds the tokens of a [..., width] tensor, the first argument."""

    def add(x: Any, *args: Any, **kwargs: Any) -> None:
        setattr(work, name, getattr(work, name) + x.shape[:-1].numel())

    return add


def _fitted(work: Work) -> Callable[..., None]:
    def add(*args: Any, **kwargs: Any) -> None:
        work.probe_fits += 1

    return add


def _stepped(work: Work) -> Callable[..., None]:
    def add(*args: Any, **kwargs: Any) -> None:
        work.probe_steps += 1

    return add


def _hook(stack: ExitStack, module: Any, add: Callable[..., None]) -> None:
    # not one of TransformerLens' own hooks: those are removed by reset_hooks()
    handle = module.register_forward_pre_hook(lambda module, args: add(*args))
    stack.callback(handle.remove)


def _wrap(stack: ExitStack, owner: Any, name: str, add: Callable[..., None]) -> None:
    """Call `add` with the arguments of every call of the method, as long as the stack is open."""
    original = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        add(*args, **kwargs)
        return original(*args, **kwargs)

    stack.enter_context(patched(owner, name, counted))
