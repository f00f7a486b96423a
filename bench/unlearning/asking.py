"""Which letter a model answers, computed only where it is read: at the end of the prompt.

Prompts of one length go together, so that nothing is padded and every answer is at the same place.
In fp32 the answers are those of whole passes up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bench.unlearning.grid import Correct, Ids
from bench.unlearning.questions import Question

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer

LETTERS = ["A", "B", "C", "D", " A", " B", " C", " D"]
"""sae_bench's: each letter with and without a space, of which the likelier counts."""


class Asker:
    """A model without hooks; `per_call` prompts go through it at a time."""

    def __init__(self, model: "HookedTransformer", per_call: int):
        self.model, self.per_call = model, per_call
        letters = model.to_tokens(LETTERS, prepend_bos=False)
        if letters.shape != (len(LETTERS), 1):
            raise RuntimeError(f"the answers {LETTERS} are not one token each for this model")
        self._letters = letters.flatten()

    def tokens(self, prompts: list[str]) -> list["Tensor"]:
        """Ids [T] of each prompt, which holds its own BOS."""
        tokenizer: Any = self.model.tokenizer
        padded = self.model.to_tokens(prompts, padding_side="right", prepend_bos=False)
        if ((padded == tokenizer.bos_token_id).sum(1) != 1).any():
            raise RuntimeError("a prompt does not hold exactly one BOS")
        lengths = (padded != tokenizer.pad_token_id).sum(1).tolist()
        return [row[:length] for row, length in zip(padded, lengths, strict=True)]

    def residuals(self, tokens: Sequence["Tensor"], block: int) -> list["Tensor"]:
        """The residual stream [T, d_model] of each prompt on its way into `block`."""
        found: dict[int, Tensor] = {}
        for batch in self.batches(list(map(len, tokens))):
            x = self.model(_stacked(tokens, batch), stop_at_layer=block)
            found |= zip(batch, x, strict=True)
        return [found[i] for i in range(len(tokens))]

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of at most `per_call` prompts of one length, each index once."""
        alike: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            alike.setdefault(length, []).append(index)
        for _, indices in sorted(alike.items()):
            for start in range(0, len(indices), self.per_call):
                yield indices[start : start + self.per_call]

    def answers(
        self, lengths: Sequence[int], x_of: Callable[[list[int]], "Tensor"], block: int
    ) -> list[int]:
        """The answer of each prompt, 0 to 3.

        `x_of` gives the residual stream [B, T, d_model] into `block` of the prompts asked for.
        """
        found: dict[int, int] = {}
        for batch in self.batches(lengths):
            found |= zip(batch, self._answers(x_of(batch), block), strict=True)
        return [found[i] for i in range(len(lengths))]

    def read(self, tokens: Sequence["Tensor"]) -> list[int]:
        """The answers to prompts as they are."""

        def embedded(batch: list[int]) -> "Tensor":
            return self.model(_stacked(tokens, batch), stop_at_layer=0)

        return self.answers(list(map(len, tokens)), embedded, 0)

    def _answers(self, x: "Tensor", block: int) -> list[int]:
        """x [B, T, d_model] -> B answers."""
        n_blocks = self.model.cfg.n_layers
        if block < n_blocks:
            if block < n_blocks - 1:
                x = self.model(x, start_at_layer=block, stop_at_layer=n_blocks - 1)
            x = last_position(self.model.blocks[-1], x)
        logits = self.model(x[:, -1:], start_at_layer=n_blocks)[:, -1]  # [B, d_vocab]
        chances = logits.softmax(-1)[:, self._letters]
        return chances.reshape(-1, 2, 4).max(dim=1)[0].argmax(dim=1).tolist()


def last_position(block: Any, x: "Tensor") -> "Tensor":
    """What a block without padding gives at the last position. x [B, T, d] -> [B, 1, d].

    Of the positions before it only keys and values are needed, as when text is generated.
    """
    from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

    earlier = block.ln1(x[:, :-1])
    _, keys, values = block.attn.calculate_qkv_matrices(earlier[:, :1], earlier, earlier)
    entry = TransformerLensKeyValueCacheEntry(keys, values)
    return block(x[:, -1:], past_kv_cache_entry=entry)


def reliable(asker: Asker, asked: dict[str, list[Question]]) -> dict[str, list[int]]:
    """Ids of the questions that are answered right whatever the order of their choices.

    A question is dropped at its first wrong answer, of 24.
    """
    from itertools import permutations

    left = {name: list(range(len(questions))) for name, questions in asked.items()}
    for order in permutations(range(4)):
        prompts = [asked[name][i].prompt(name, order) for name in left for i in left[name]]
        if not prompts:
            break
        answers = iter(asker.read(asker.tokens(prompts)))
        left = {
            name: [i for i in ids if next(answers) == order.index(asked[name][i].answer)]
            for name, ids in left.items()
        }
    return left


def by_question(ids: Ids, right: Sequence[bool]) -> Correct:
    """Answers in the order of `ids`, by data set and question."""
    answers = iter(right)
    return {name: {i: float(next(answers)) for i in asked} for name, asked in ids.items()}


def _stacked(tokens: Sequence["Tensor"], batch: list[int]) -> "Tensor":
    import torch

    return torch.stack([tokens[i] for i in batch])
