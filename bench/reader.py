"""Runs the language model over text, up to the hook and no further."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.activation_cache import ActivationCache
from bench.errors import UserError
from bench.packing import Group
from bench.validate import parse_hook

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class Reader:
    """What a hook sees of text; from the disk cache, if there is one, where it was seen before."""

    def __init__(
        self, model: "HookedTransformer", hook_name: str, cache: ActivationCache | None = None
    ):
        """Raises UserError for a hook that the model lacks, or one without a BOS."""
        name = model.cfg.model_name
        parse_hook(hook_name)
        if hook_name not in model.hook_dict:
            raise UserError(f"hook_name={hook_name!r}: model {name!r} has no such hook")
        if getattr(model.tokenizer, "bos_token_id", None) is None:
            raise UserError(f"model={name!r}: its tokenizer has no BOS, with which contexts start")
        self._model, self._hook_name, self._cache = model, hook_name, cache

    @property
    def tokenizer(self) -> Any:
        return self._model.tokenizer

    @property
    def n_ctx(self) -> int:
        """Longest context of the model, in tokens."""
        return self._model.cfg.n_ctx

    @property
    def model_name(self) -> str:
        return self._model.cfg.model_name or "?"

    @property
    def device(self) -> torch.device:
        return torch.device(self._model.cfg.device or "cpu")

    def read(self, group: Group) -> Tensor:
        """Activations [n, d_in] of the text tokens in reading order, in the model's precision."""
        kept = self._cache.get(group.tokens, group.is_text) if self._cache else None
        if kept is not None:
            return kept.to(self.device)
        seen = _seen(self._model, self._hook_name, group.tokens.to(self.device))
        rows = seen[group.is_text.to(self.device)]
        if self._cache:
            self._cache.put(group.tokens, group.is_text, rows)
        return rows


def activations(model: "HookedTransformer", hook_name: str, tokens: Tensor) -> Tensor:
    """What `hook_name` sees, stopping behind its layer. tokens [b, T] -> [b, T, d_in] float32."""
    return _seen(model, hook_name, tokens).float()


def drop_behind(model: "HookedTransformer", hook_name: str) -> None:
    """Forget in place the layers and the unembedding that a hook does not depend on.

    At a middle layer that is more than half of the model's memory.
    """
    layer, _ = parse_hook(hook_name)
    model.blocks = nn.ModuleList(list(model.blocks)[: layer + 1])  # type: ignore[assignment]
    model.unembed = nn.Identity()  # type: ignore[assignment]
    model.setup()  # the hooks that are left


@torch.no_grad()
def _seen(model: "HookedTransformer", hook_name: str, tokens: Tensor) -> Tensor:
    seen: list[Tensor] = []
    layer, _ = parse_hook(hook_name)
    model.run_with_hooks(
        tokens,
        return_type=None,
        stop_at_layer=layer + 1,
        fwd_hooks=[(hook_name, lambda value, hook: seen.append(value.detach()))],
    )
    (found,) = seen
    if found.ndim != 3:
        raise UserError(f"hook_name={hook_name!r}: gives {found.ndim} axes, must be [b, T, d_in]")
    return found
