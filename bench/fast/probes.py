"""Linear probes that tell one class from the others, as sae_bench fits them, with less copying.

Given a generator in the same state, every draw and every accuracy is sae_bench's own
(evals/sparse_probing/probe_training.py of sae_bench 0.6.0): it draws from torch's global generator.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Generator, Tensor

BATCH, EPOCHS, LR, PATIENCE = 250, 100, 1e-2, 10
"""Of the probe on all columns."""
MAX_ITER = 1000
"""Of the probe on k columns; sklearn's regularisation (l2, C = 1)."""


class Table(NamedTuple):
    """Features of the texts of several classes, class after class."""

    x: "Tensor"
    """[n_texts, d]"""
    sizes: dict[str, int]
    """Class -> how many rows, in the order of the rows."""


class Draw(NamedTuple):
    """Rows of one class and as many of the others, shuffled."""

    rows: "Tensor"
    """[2 n] indices into a table."""
    is_positive: "Tensor"
    """[2 n] bool"""

    def of(self, table: Table, columns: "Tensor | None" = None) -> "Tensor":
        """[2 n, d], or only these columns."""
        if columns is None:
            return table.x.index_select(0, self.rows.to(table.x.device))
        return table.x[self.rows.to(columns.device)[:, None], columns]

    def positives(self, table: Table) -> "Tensor":
        """[n, d]"""
        return table.x.index_select(0, self.rows[self.is_positive].to(table.x.device))

    def negatives(self, table: Table) -> "Tensor":
        """[n, d]"""
        return table.x.index_select(0, self.rows[~self.is_positive].to(table.x.device))


def draw(sizes: dict[str, int], positive: str, generator: "Generator") -> Draw:
    """A draw for one class (prepare_probe_data): as many rows as it has, evenly of the others."""
    import torch

    def permutation(n: int) -> "Tensor":
        return torch.randperm(n, generator=generator)

    starts = dict(zip(sizes, accumulate(sizes.values(), initial=0)))
    n = sizes[positive]
    negatives = [name for name in sizes if name != positive]
    per_class = math.ceil(n / len(negatives))
    candidates = [starts[name] + permutation(sizes[name])[:per_class] for name in negatives]
    chosen = torch.cat(candidates)[permutation(sum(map(len, candidates)))[:n]]
    rows = torch.cat([starts[positive] + torch.arange(n), chosen])
    order = permutation(2 * n)
    return Draw(rows[order], order < n)


def top_k_accuracies(train: Table, test: Table, k: int, generator: "Generator") -> dict[str, float]:
    """Per class, the test accuracy of a probe on the k columns that differ most in their mean."""
    found = {}
    for name in train.sizes:
        for_train, for_test = (draw(t.sizes, name, generator) for t in (train, test))
        columns = most_different(for_train.positives(train), for_train.negatives(train), k)
        probe = fitted(for_train.of(train, columns), for_train.is_positive)
        predicted = probe.predict(_numpy(for_test.of(test, columns)))
        found[name] = float((predicted == for_test.is_positive.int().numpy()).mean())
    return found


def full_accuracies(train: Table, test: Table, generator: "Generator") -> dict[str, float]:
    """Per class, the best test accuracy over the epochs of a probe on all columns."""
    found = {}
    for name in train.sizes:
        for_train, for_test = (draw(t.sizes, name, generator) for t in (train, test))
        found[name] = _full_accuracy(
            for_train.of(train),
            for_train.is_positive,
            for_test.of(test),
            for_test.is_positive,
            generator,
        )
    return found


def most_different(positives: "Tensor", others: "Tensor", k: int) -> "Tensor":
    """[k] ascending indices of the columns whose means differ most (get_top_k_mean_diff_mask)."""
    import torch

    difference = (positives.mean(dim=0) - others.mean(dim=0)).abs()
    return torch.argsort(difference, descending=True)[:k].sort().values


def fitted(rows: "Tensor", is_positive: "Tensor") -> Any:
    """sklearn's logistic regression on rows [n, k] (train_sklearn_probe)."""
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(max_iter=MAX_ITER)
    return probe.fit(_numpy(rows), is_positive.int().numpy())


def _numpy(rows: "Tensor") -> Any:
    return rows.float().cpu().numpy()


def _full_accuracy(
    train: "Tensor",
    train_labels: "Tensor",
    test: "Tensor",
    test_labels: "Tensor",
    generator: "Generator",
) -> float:
    """Early stopping looks at the test rows, as sae_bench's does: no honest accuracy."""
    import torch

    with torch.enable_grad():
        probe = _Probe.new(train, generator)
        labels = train_labels.to(train)
        best, waited = 0.0, 0
        for _ in range(EPOCHS):
            order = torch.randperm(len(train), generator=generator)
            for batch in order.split(BATCH):
                probe.step(train[batch], labels[batch])
            accuracy = probe.accuracy(test, test_labels)
            best, waited = (accuracy, 0) if accuracy > best else (best, waited + 1)
            if waited >= PATIENCE:
                break
    return best


@dataclass
class _Probe:
    """A linear layer with one output, trained by AdamW (train_probe_gpu)."""

    weight: "Tensor"
    """[1, d]"""
    bias: "Tensor"
    """[1]"""
    optimizer: Any

    @classmethod
    def new(cls, like: "Tensor", generator: "Generator") -> "_Probe":
        """As torch.nn.Linear starts, in the precision and on the device of `like` [n, d]."""
        import torch
        from torch.nn import init

        d = like.shape[1]
        weight, bias = (torch.empty(shape, dtype=like.dtype) for shape in ((1, d), (1,)))
        init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        init.uniform_(bias, -1 / math.sqrt(d), 1 / math.sqrt(d), generator=generator)
        weight, bias = (p.to(like.device).requires_grad_() for p in (weight, bias))
        return cls(weight, bias, torch.optim.AdamW([weight, bias], lr=LR))

    def step(self, x: "Tensor", labels: "Tensor") -> None:
        """x [B, d], labels [B] in the precision of x."""
        from torch.nn import functional

        loss = functional.binary_cross_entropy_with_logits(self(x), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def accuracy(self, x: "Tensor", is_positive: "Tensor") -> float:
        """x [n, d], is_positive [n] bool; in batches, whose sums sae_bench takes too."""
        import torch

        with torch.no_grad():
            predicted = torch.cat([self(batch) > 0.0 for batch in x.split(BATCH)])
        return (predicted == is_positive.to(predicted.device)).float().mean().item()

    def __call__(self, x: "Tensor") -> "Tensor":
        """x [n, d] -> logits [n]."""
        from torch.nn import functional

        return functional.linear(x, self.weight, self.bias).squeeze(-1)
