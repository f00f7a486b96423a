"""Running a language model only up to a hook, or only from it on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.validate import parse_hook

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer

RESIDUAL = ("hook_resid_pre", "hook_resid_post")
"""Hooks whose activations are all that the rest of the model sees."""


class Clean(NamedTuple):
    """One unchanged forward pass."""

    logits: "Tensor"
    """[B, T, d_vocab]"""
    x: "Tensor"
    """[B, T, d_in] at the hook."""
    start: "Tensor"
    """[B, T, d_model] the residual stream that a pass with another x starts from."""


@dataclass(frozen=True)
class HookPoint:
    """A hook of a model. The model must have no hooks of its own and no gradients are kept.

    Bit for bit the same as a full pass with a hook: the same operations on the same shapes.
    """

    model: "HookedTransformer"
    name: str

    @property
    def is_residual(self) -> bool:
        """Whether everything above depends on the tokens through x alone."""
        return parse_hook(self.name)[1] in RESIDUAL

    @property
    def restart(self) -> int:
        """The first block that has to run again when x changes."""
        layer, kind = parse_hook(self.name)
        return layer + (kind == "hook_resid_post")

    def clean(self, tokens: "Tensor") -> Clean:
        """tokens [B, T], one full pass."""
        seen: dict[str, Tensor] = {}
        names = {self.name} if self.is_residual else {self.name, self._below}
        hooks: list[Any] = [(name, _keeper(seen)) for name in names]
        logits = self.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
        return Clean(logits, seen[self.name], seen[self.name if self.is_residual else self._below])

    def up_to(self, tokens: "Tensor") -> "Tensor":
        """tokens [B, T] -> x [B, T, d_in]; no block above the hook's is run."""
        seen: dict[str, Tensor] = {}
        layer, _ = parse_hook(self.name)
        hooks: list[Any] = [(self.name, _keeper(seen))]
        self.model.run_with_hooks(
            tokens, return_type=None, stop_at_layer=layer + 1, fwd_hooks=hooks
        )
        return seen[self.name]

    def onwards(self, start: "Tensor", x: "Tensor", tokens: "Tensor") -> "Tensor":
        """Logits [B, T, d_vocab] with x [B, T, d_in] in place of what was at the hook.

        `start` is that of the clean pass over the same tokens.
        """
        if self.is_residual:
            return self.model(x, start_at_layer=self.restart, tokens=tokens, return_type="logits")
        hooks: list[Any] = [(self.name, lambda _, hook: x)]
        return self.model.run_with_hooks(
            start, start_at_layer=self.restart, return_type="logits", fwd_hooks=hooks
        )

    @property
    def _below(self) -> str:
        return f"blocks.{parse_hook(self.name)[0]}.hook_resid_pre"


def _keeper(seen: "dict[str, Tensor]") -> "Callable[..., None]":
    def keep(x: "Tensor", hook: Any) -> None:
        seen[hook.name] = x

    return keep
