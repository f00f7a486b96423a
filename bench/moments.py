"""What core corrects in sae_bench's numbers, and the per-batch values that it does not keep."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bench.suite import Unit

if TYPE_CHECKING:
    from torch import Tensor


class BatchMoments(NamedTuple):
    """Float64 sums over the n tokens of one batch."""

    n: int
    x: "Tensor"
    """[d_in] sum of x."""
    x_squared: float
    error_squared: float


def sums(x: "Tensor") -> BatchMoments:
    """x [n, d_in], without an error yet."""
    wide = x.double()
    return BatchMoments(len(x), wide.sum(0), wide.pow(2).sum().item(), 0.0)


@dataclass
class Moments:
    """What explained variance needs, summed in float64 while an SAE encodes and decodes.

    The reference is SAELens's ExplainedVarianceCalculator.
    """

    batches: list[BatchMoments] = field(default_factory=list)

    def add(self, x: "Tensor", x_hat: "Tensor", mask: "Tensor") -> None:
        """x, x_hat [B, T, d_in], mask [B, T] bool: True where the token counts."""
        self.add_to(sums(x[mask]), x[mask], x_hat[mask])

    def add_to(self, shared: BatchMoments, x: "Tensor", x_hat: "Tensor") -> None:
        """x, x_hat [n, d_in]; `shared` = `sums(x)`, the same for every SAE."""
        error = (x.double() - x_hat.double()).pow(2).sum().item()
        self.batches.append(shared._replace(error_squared=error))

    @property
    def n(self) -> int:
        return sum(b.n for b in self.batches)

    @property
    def mse(self) -> float:
        """Squared error summed over d_in, mean over tokens."""
        return sum(b.error_squared for b in self.batches) / self.n

    @property
    def explained_variance(self) -> float:
        return 1 - sum(b.error_squared for b in self.batches) / sum(map(self._spread, self.batches))

    def units(self) -> list[Unit]:
        """Explained variance of each batch, around the mean over all batches."""
        return [
            Unit("explained_variance", "batch", str(i), 1 - b.error_squared / self._spread(b), b.n)
            for i, b in enumerate(self.batches)
        ]

    def _spread(self, batch: BatchMoments) -> float:
        """sum |x - mean|^2 over the batch, with the mean over all batches."""
        import torch

        mean = torch.stack([b.x for b in self.batches]).sum(0) / self.n  # [d_in]
        cross = (mean @ batch.x).item()
        return batch.x_squared - 2 * cross + batch.n * (mean @ mean).item()


@dataclass
class Losses:
    """Per-batch means of the three cross-entropies that make the loss score."""

    batches: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def add(self, losses: "dict[str, Tensor]", mask: "Tensor") -> None:
        """losses: name -> [B, T - 1]; mask [B, T] bool over the tokens predicted from."""
        mask = mask[:, :-1]
        means = {k: v[mask].mean().item() for k, v in losses.items() if k.startswith("ce_loss")}
        self.batches.append((int(mask.sum()), means))

    def units(self) -> list[Unit]:
        """The loss score of each batch; none where ablation changes nothing."""
        return [
            Unit("ce_loss_score", "batch", str(i), _score(means), n)
            for i, (n, means) in enumerate(self.batches)
            if means["ce_loss_with_ablation"] != means["ce_loss_without_sae"]
        ]


@dataclass
class Divergence:
    """KL divergence of the model's predictions from the clean ones, summed in float64 over tokens.

    From log-softmax: sae_bench takes the logarithm of a softmax, where underflow makes NaN or inf.
    """

    with_sae: float = 0.0
    with_ablation: float = 0.0

    def add(self, with_sae: "Tensor", with_ablation: "Tensor", mask: "Tensor") -> None:
        """with_sae, with_ablation [B, T], mask [B, T] bool: True where the token counts."""
        self.with_sae += with_sae[mask].double().sum().item()
        self.with_ablation += with_ablation[mask].double().sum().item()

    @property
    def score(self) -> float:
        """The share of zero ablation's divergence that the SAE removes; NaN where there is none."""
        if self.with_ablation == 0:
            return float("nan")
        return (self.with_ablation - self.with_sae) / self.with_ablation


@dataclass
class Corrections:
    """Ours beside sae_bench's, for one SAE."""

    moments: Moments = field(default_factory=Moments)
    losses: Losses = field(default_factory=Losses)
    divergence: Divergence = field(default_factory=Divergence)

    def metrics(self) -> dict[str, float]:
        """By our names; NaN where there is no such number."""
        return {
            "explained_variance": self.moments.explained_variance,
            "mse": self.moments.mse,
            "kl_div_score": self.divergence.score,
        }

    def units(self) -> list[Unit]:
        return self.moments.units() + self.losses.units()


def divergence(p: "Tensor", log_p: "Tensor", log_q: "Tensor") -> "Tensor":
    """KL(p || q) in nats. p, log_p, log_q [..., d_vocab] normalised -> [...]."""
    return (log_p - log_q).mul_(p).sum(-1)


def counted(tokens: "Tensor", ignored: set[int | None]) -> "Tensor":
    """tokens [B, T] -> bool [B, T], False at ignored ids."""
    import torch

    ids = torch.tensor([i for i in ignored if i is not None], device=tokens.device)
    return ~torch.isin(tokens, ids)


def _score(means: dict[str, float]) -> float:
    ablated = means["ce_loss_with_ablation"]
    return (ablated - means["ce_loss_with_sae"]) / (ablated - means["ce_loss_without_sae"])
