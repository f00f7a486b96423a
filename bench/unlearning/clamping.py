"""One SAE at work on the prompts: where its chosen latents fire, and what clamping them does.

Only tokens on which a clamped latent fires are changed. sae_bench passes all others through the
SAE and adds its error back, which is the same up to rounding.

Latents are clamped to an absolute value, as sae_bench does, or in units of their own strength:
there the residual stream changes by the latents' difference alone, which is cheaper.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.unlearning.asking import Asker

if TYPE_CHECKING:
    from torch import Tensor


class Intervention(NamedTuple):
    """A prompt with some of its firing latents clamped."""

    prompt: int
    latents: int
    """Bit i stands for the i-th of the chosen latents."""
    multiplier: float
    """They are clamped to minus this."""


class Firing(NamedTuple):
    """The tokens of one prompt on which any chosen latent fires."""

    positions: "Tensor"
    """[n]"""
    values: "Tensor"
    """[n, n_chosen] activations of the chosen latents."""
    f: "Tensor"
    """[n, d_sae], sparse."""
    error: "Tensor"
    """[n, d_in] what the SAE leaves out."""
    latents: int
    """Bit i is set if the i-th chosen latent fires anywhere."""


class Clamping:
    """`chosen` latents of an SAE on prompts whose activations `x` [T, d_in] are given.

    `block` is the one that reads what the SAE changed. `high` [d_sae] is the unit of `steered`.
    """

    def __init__(
        self,
        asker: Asker,
        sae: Any,
        x: Sequence["Tensor"],
        chosen: list[int],
        *,
        block: int,
        high: "Tensor",
    ):
        self.asker, self.sae, self.x, self.chosen, self.block = asker, sae, x, chosen, block
        self._place = {latent: i for i, latent in enumerate(chosen)}
        self._high = high[chosen]  # [n_chosen]
        self.lengths = list(map(len, x))
        self.firing: dict[int, Firing] = {}
        for batch in asker.batches(self.lengths):
            self.firing |= zip(batch, self._firing(batch), strict=True)

    def interventions(self, latents: Sequence[int], multiplier: float) -> list[Intervention]:
        """What clamping these latents, all chosen, means for each prompt."""
        bits = sum(1 << self._place[latent] for latent in latents)
        return [
            Intervention(i, bits & self.firing[i].latents, multiplier) for i in range(len(self.x))
        ]

    def answers(self, wanted: Sequence[Intervention]) -> dict[Intervention, int]:
        """The answer, 0 to 3, under each intervention, to minus its multiplier, as in sae_bench."""
        return self._answers(wanted, self._clamped)

    def steered(self, wanted: Sequence[Intervention]) -> dict[Intervention, int]:
        """The answer, 0 to 3, under each, to minus its multiplier times the latents' units."""
        return self._answers(wanted, self._shifted)

    def _answers(
        self, wanted: Sequence[Intervention], x_under: Callable[[list[Intervention]], "Tensor"]
    ) -> dict[Intervention, int]:
        lengths = [self.lengths[w.prompt] for w in wanted]
        answers = self.asker.answers(
            lengths, lambda batch: x_under([wanted[i] for i in batch]), self.block
        )
        return dict(zip(wanted, answers, strict=True))

    def _firing(self, batch: list[int]) -> Iterator[Firing]:
        import torch

        x = torch.stack([self.x[i] for i in batch])  # [B, T, d_in]
        f = self.sae.encode(x)
        f[:, 0] = 0.0  # the BOS, as in sae_bench
        values = f[..., self.chosen]  # [B, T, n_chosen]
        for x_one, f_one, values_one in zip(x, f, values, strict=True):
            fires = values_one > 0
            positions = fires.any(-1).nonzero().flatten()
            f_here = f_one[positions]
            error = x_one[positions] - self.sae.decode(f_here) if len(positions) else x_one[:0]
            bits = sum(1 << i for i in fires.any(0).nonzero().flatten().tolist())
            yield Firing(positions, values_one[positions], f_here.to_sparse(), error, bits)

    def _clamped(self, wanted: list[Intervention]) -> "Tensor":
        """The residual stream [B, T, d_in] under each intervention."""
        import torch

        x = torch.stack([self.x[w.prompt] for w in wanted])
        rows, f, error = [], [], []
        for row, w in enumerate(wanted):
            firing = self.firing[w.prompt]
            columns = self._columns(w)
            hit = firing.values[:, columns] > 0  # [n, n_columns]
            here = hit.any(-1)
            latents = torch.tensor(self.chosen, device=x.device)[columns]
            f_new = firing.f.to_dense()[here]
            f_new[:, latents] = f_new[:, latents].masked_fill(hit[here], -float(w.multiplier))
            rows.append((torch.full_like(firing.positions[here], row), firing.positions[here]))
            f.append(f_new)
            error.append(firing.error[here])
        row_of, position_of = (torch.cat(part) for part in zip(*rows, strict=True))
        x[row_of, position_of] = torch.cat(error) + self.sae.decode(torch.cat(f))
        return x

    def _shifted(self, wanted: list[Intervention]) -> "Tensor":
        """The residual stream [B, T, d_in] under each, in units of the latents' strength."""
        import torch

        x = torch.stack([self.x[w.prompt] for w in wanted])
        w_dec = self.sae.W_dec[self.chosen]  # [n_chosen, d_in]
        for row, w in enumerate(wanted):
            firing, columns = self.firing[w.prompt], self._columns(w)
            values = firing.values[:, columns]  # [n, n_columns]
            change = (-w.multiplier * self._high[columns] - values) * (values > 0)
            x[row, firing.positions] += change @ w_dec[columns]
        return x

    def _columns(self, wanted: Intervention) -> list[int]:
        """Places in `chosen` of the latents that it clamps."""
        return [i for i in range(len(self.chosen)) if wanted.latents >> i & 1]
