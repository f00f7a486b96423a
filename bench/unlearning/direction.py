"""The control without an SAE: the difference between the mean activations of the two corpora.

The direction from the mean over benign tokens to the mean over tokens to be forgotten (difference
of means, Marks and Tegmark 2023, arXiv:2310.06824) is treated as a dictionary of one latent, so
that the grid that is tried with an SAE is tried with it too. The latent's activation is how far a
token lies along it, counted from the benign mean. It fires above a limit that as many benign tokens
exceed as the retain threshold allows, where it is clamped as latents are; clamped to 0 it is
ablated.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

N_SAMPLED = 2**15
"""About how many tokens of a corpus are kept, evenly spread; quantiles are taken over them."""


class Sample:
    """A corpus at one layer: the mean of all its text tokens, and an even sample of them."""

    def __init__(self, n_tokens: int):
        self._every = max(1, n_tokens // N_SAMPLED)
        self._seen, self._n_text = 0, 0
        self._sum: Tensor | None = None
        self._kept: list[Tensor] = []

    def add(self, x: "Tensor", is_text: "Tensor") -> None:
        """Activations [B, T, d_in] of tokens of which some [B, T] are text."""
        text = x[is_text]  # [n, d_in]
        total = text.double().sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._n_text += len(text)
        first = -self._seen % self._every
        self._kept.append(text[first :: self._every])
        self._seen += len(text)

    @property
    def mean(self) -> "Tensor":
        """[d_in] in double precision."""
        if self._sum is None or not self._n_text:
            raise RuntimeError("a corpus holds no text token")
        return self._sum / self._n_text

    @property
    def x(self) -> "Tensor":
        """[n, d_in], about N_SAMPLED tokens."""
        import torch

        return torch.cat(self._kept)


class Activations(NamedTuple):
    """The model on both corpora at one layer."""

    forget: Sample
    retain: Sample


class MeanDifference:
    """The direction as a dictionary of one latent per retain threshold, in units of its strength.

    Latent i fires on less than `thresholds[i]` of the benign tokens; its activation is 1 at the
    99th percentile over the tokens of both corpora where it fires.
    """

    def __init__(self, activations: Activations, thresholds: Sequence[float]):
        import torch

        forget, retain = activations
        difference = forget.mean - retain.mean
        direction = difference / difference.norm().clamp(min=torch.finfo(torch.double).tiny)
        self._direction = direction.to(retain.x.dtype)  # [d_in]
        self._rest = (retain.mean @ direction).to(retain.x.dtype)  # []
        benign, hazard = self._along(retain.x), self._along(forget.x)  # [n], [m]
        # behind the benign mean there is nothing to be clamped
        limits = [_exceeded_by(benign, threshold).clamp(min=0) for threshold in thresholds]
        self._limits = torch.stack(limits)  # [n_thresholds]
        both = torch.cat([benign, hazard])
        self.high = torch.stack([_strength(both, limit) for limit in limits])  # [n_thresholds]
        self.W_dec = self.high[:, None] * self._direction  # [n_thresholds, d_in]

    def encode(self, x: "Tensor") -> "Tensor":
        """x [..., d_in] -> f [..., n_thresholds]."""
        along = self._along(x)[..., None]
        return (along / self.high) * (along > self._limits)

    def decode(self, f: "Tensor") -> "Tensor":
        """f [..., n_thresholds] -> [..., d_in]."""
        return f @ self.W_dec

    def _along(self, x: "Tensor") -> "Tensor":
        """x [..., d_in] -> [...] how far along the direction, from the benign mean."""
        return x @ self._direction - self._rest


def _exceeded_by(values: "Tensor", share: float) -> "Tensor":
    """The least of the values that less than `share` of them exceed."""
    at_most = max(0, -(-len(values) * share // 1) - 1)  # the most that are fewer than the share
    return values.sort(descending=True).values[min(int(at_most), len(values) - 1)]


def _strength(values: "Tensor", limit: "Tensor") -> "Tensor":
    """The 99th percentile of those above the limit; 1 where there are none."""
    import torch

    firing = values[values > limit]
    return firing.float().quantile(0.99).to(values.dtype) if len(firing) else torch.ones_like(limit)
