"""No variant forms a tensor that grows faster than the SAE itself does."""

import math
from collections.abc import Iterator

import pytest
import torch
from sequences import batch_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from training import activations, at, make

from bench import registry

CONFIGS = {
    "temporal_consistency": {"prune_fraction": 0.5, "adapt_total": True},
    "directional": {"similarity": "enc_dec", "n_sample": 64, "n_rows": 64},
    "fixed_orthogonal": {"n_sample": 64},
    "adaptive_orthogonal": {"n_sample": 64, "group_size": 4},
    "contrastive": {"n_anchors": 64},
    "ortho_sae": {"chunk_size": 64},
    "t_sae": {"n_pairs": 64},
}
"""Samples smaller than what they are drawn from, as they are at real size."""


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)]
        # what is expanded takes no memory
        self.n = max([self.n, *(t.untyped_storage().nbytes() // t.element_size() for t in made)])
        return out


def largest_of_a_step(name: str, n_contexts: int, d_sae: int, d_in: int = 16) -> int:
    config = CONFIGS.get(name, {})
    settings = {"k": 8} if name in NATIVE else {}
    sae = make(
        registry.load("variants", name, config), d_in=d_in, d_sae=d_sae, **config, **settings
    )
    x = activations(n_contexts * 17, d_in).view(n_contexts, 17, d_in)
    batch, dead = batch_of(x), list(range(0, d_sae, 4))
    sae.start(batch.x)
    step = at(d_sae, dead=dead, number=3, length=1.0, progress=0.45, revive=lambda latents: None)
    with Largest() as largest:
        sum(sae.losses(batch, step).values()).backward()
        sae.after_backward(step)
        sae.after_step(batch, step)
    return largest.n


def _native() -> Iterator[str]:
    for name in registry.names("variants"):
        knob = registry.load("variants", name).knob
        if knob and knob.native:
            yield name


NATIVE = set(_native())


@pytest.mark.parametrize("name", registry.names("variants"))
def test_the_largest_tensor_grows_as_batch_times_latents(name, monkeypatch):
    if name == "directional":  # which looks at all pairs now and then, a block at a time
        monkeypatch.setattr("variants.directional.BLOCK", 16)
    small = largest_of_a_step(name, n_contexts=12, d_sae=192)
    more_rows = largest_of_a_step(name, n_contexts=24, d_sae=192)
    more_latents = largest_of_a_step(name, n_contexts=12, d_sae=384)
    for larger in (more_rows, more_latents):
        # 1 where it grows as the batch or the dictionary do, 2 for their squares
        assert math.log2(larger / small) < 1.2, (small, more_rows, more_latents)


@pytest.mark.parametrize("name", registry.names("variants"))
def test_the_largest_tensor_is_no_larger_than_a_few_of_acts_or_weights(name):
    b, T, d_in, d_sae = 12, 17, 16, 512
    acts, weights = b * T * d_sae, d_in * d_sae
    assert largest_of_a_step(name, b, d_sae, d_in) <= 4 * max(acts, weights)


def test_a_square_of_the_latents_would_be_seen(monkeypatch):
    from variants.relu import ReLU

    losses = ReLU.losses

    def quadratic(self, batch, step):
        return losses(self, batch, step) | {"gram": (self.W_dec @ self.W_dec.T).square().mean()}

    monkeypatch.setattr(ReLU, "losses", quadratic)
    small, large = (largest_of_a_step("relu", n_contexts=12, d_sae=d) for d in (192, 384))
    assert math.log2(large / small) > 1.2
