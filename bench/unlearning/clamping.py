"""One SAE at work on the prompts: where its chosen latents fire, and what clamping them does.

Only tokens on which a clamped latent fires are changed. sae_bench passes all others through the
SAE and adds its error back, which is the same up to rounding.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.unlearning.asking import Asker
from bench.unlearning.latents import layer_of

if TYPE_CHECKING:
    from torch import Tensor


class Intervention(NamedTuple):
    """A prompt with some of its firing latents clamped."""

    prompt: int
    latents: int
    """Bit i stands for the i-th of the chosen latents."""
    multiplier: int


class Firing(NamedTuple):
    """The tokens of one prompt on which any chosen latent fires."""

    positions: "Tensor"
    """[n]"""
    fires: "Tensor"
    """[n, n_chosen] bool."""
    f: "Tensor"
    """[n, d_sae], sparse."""
    error: "Tensor"
    """[n, d_in] what the SAE leaves out."""
    latents: int
    """Bit i is set if the i-th chosen latent fires anywhere."""


class Clamping:
    """`chosen` latents of an SAE on prompts whose activations `x` [T, d_in] are given."""

    def __init__(self, asker: Asker, sae: Any, x: Sequence["Tensor"], chosen: list[int]):
        self.asker, self.sae, self.x, self.chosen = asker, sae, x, chosen
        self.lengths = list(map(len, x))
        self.firing: dict[int, Firing] = {}
        for batch in asker.batches(self.lengths):
            self.firing |= zip(batch, self._firing(batch), strict=True)

    def interventions(self, latents: list[int], multiplier: int) -> list[Intervention]:
        """What clamping these latents, all chosen, means for each prompt."""
        bits = sum(1 << self.chosen.index(latent) for latent in latents)
        return [
            Intervention(i, bits & self.firing[i].latents, multiplier) for i in range(len(self.x))
        ]

    def answers(self, wanted: Sequence[Intervention]) -> dict[Intervention, int]:
        """The answer, 0 to 3, under each intervention."""

        def clamped(batch: list[int]) -> "Tensor":
            return self._clamped([wanted[i] for i in batch])

        lengths = [self.lengths[w.prompt] for w in wanted]
        answers = self.asker.answers(lengths, clamped, layer_of(self.sae) + 1)
        return dict(zip(wanted, answers, strict=True))

    def _firing(self, batch: list[int]) -> Iterator[Firing]:
        import torch

        x = torch.stack([self.x[i] for i in batch])  # [B, T, d_in]
        f = self.sae.encode(x)
        f[:, 0] = 0.0  # the BOS, as in sae_bench
        fires = f[..., self.chosen] > 0  # [B, T, n_chosen]
        for x_one, f_one, fires_one in zip(x, f, fires, strict=True):
            positions = fires_one.any(-1).nonzero().flatten()
            f_here = f_one[positions]
            error = x_one[positions] - self.sae.decode(f_here) if len(positions) else x_one[:0]
            bits = sum(1 << i for i in fires_one.any(0).nonzero().flatten().tolist())
            yield Firing(positions, fires_one[positions], f_here.to_sparse(), error, bits)

    def _clamped(self, wanted: list[Intervention]) -> "Tensor":
        """The residual stream [B, T, d_in] under each intervention."""
        import torch

        x = torch.stack([self.x[w.prompt] for w in wanted])
        rows, f, error = [], [], []
        for row, w in enumerate(wanted):
            firing = self.firing[w.prompt]
            columns = [i for i in range(len(self.chosen)) if w.latents >> i & 1]
            hit = firing.fires[:, columns]  # [n, n_columns]
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
