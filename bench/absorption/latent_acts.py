"""What the latents of one SAE do on all words: encoded once, kept sparse, read by row or column."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class LatentActs:
    """Activations [n, d_sae] of an SAE, of which only those that are not zero are kept.

    Dense pieces come back exactly as the SAE gave them.
    """

    def __init__(self, sae: Any, x: "Tensor", per_call: int):
        """x [n, d_in] is encoded `per_call` rows at a time."""
        import torch

        pieces = [
            sae.encode(rows.to(device=sae.device, dtype=sae.dtype)).to_sparse()
            for rows in x.split(per_call)
        ]
        self.shape = len(x), pieces[0].shape[1]
        counts = [torch.bincount(p.indices()[0], minlength=p.shape[0]) for p in pieces]
        self._starts = _starts(torch.cat(counts))  # [n + 1] where each row begins
        self._columns = torch.cat([p.indices()[1] for p in pieces])
        self._values = torch.cat([p.values() for p in pieces])
        by_column = self._columns.argsort(stable=True)
        row_of = torch.repeat_interleave(torch.cat(counts))
        self._column_starts = _starts(torch.bincount(self._columns, minlength=self.shape[1]))
        self._column_rows, self._column_values = row_of[by_column], self._values[by_column]

    @property
    def dtype(self) -> Any:
        return self._values.dtype

    @property
    def device(self) -> Any:
        return self._values.device

    def rows(self, index: "Tensor") -> "Tensor":
        """Dense rows [len(index), d_sae]."""
        row_of, where = _ranges(self._starts, index)
        dense = self._values.new_zeros(len(index), self.shape[1])
        dense[row_of, self._columns[where]] = self._values[where]
        return dense

    def columns(self, index: "Tensor") -> "Tensor":
        """Dense columns [n, len(index)]."""
        column_of, where = _ranges(self._column_starts, index)
        dense = self._values.new_zeros(self.shape[0], len(index))
        dense[self._column_rows[where], column_of] = self._column_values[where]
        return dense


def _starts(counts: "Tensor") -> "Tensor":
    """[m] lengths -> [m + 1] where each begins and the last ends."""
    import torch

    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _ranges(starts: "Tensor", index: "Tensor") -> "tuple[Tensor, Tensor]":
    """For the ranges asked for: which of them each element belongs to, and where it lies."""
    import torch

    index = index.to(starts.device)
    lengths = starts[index + 1] - starts[index]
    which = torch.repeat_interleave(lengths)
    first = lengths.cumsum(0) - lengths  # where each range begins in the answer
    offset = torch.arange(len(which), device=starts.device) - first[which]
    return which, starts[index][which] + offset
