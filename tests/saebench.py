"""What tests of sae_bench's own functions need: stand-ins that cost nothing, silence, our state."""

import contextlib
import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

HOOK = "blocks.0.hook_resid_post"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """sae_bench prints much."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def unchecked_sizes() -> Iterator[None]:
    """As in every run: sae_bench's own calls fail its own checks (see bench.compat)."""
    import jaxtyping

    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


class Activations:
    """In place of model and token store of core: hands out given activations [n, T, d]."""

    def __init__(self, x: torch.Tensor):
        self.x, self._given = x, 0

    def get_batch_tokens(self, n_prompts: int) -> torch.Tensor:
        """Places of the next activations, as tokens [n_prompts, T]."""
        start, n_tokens = self._given * self.x.shape[1], n_prompts * self.x.shape[1]
        self._given += n_prompts
        return torch.arange(start, start + n_tokens).view(n_prompts, -1)

    def run_with_cache(self, tokens: torch.Tensor, **_: Any) -> tuple[None, dict[str, Any]]:
        """What is at the places `tokens`."""
        return None, {HOOK: self.x.flatten(0, 1)[tokens]}


class Constant:
    """In place of an SAE: one latent that is always on, and one output [d] for everything."""

    def __init__(self, output: torch.Tensor):
        self.output, self.device = output, torch.device("cpu")
        self.cfg = SimpleNamespace(hook_name=HOOK, hook_layer=0, hook_head_index=None, d_sae=1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., d] -> [..., 1]."""
        return torch.ones(*x.shape[:-1], 1)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """f [..., 1] -> [..., d]."""
        return self.output.expand(*f.shape[:-1], -1)
