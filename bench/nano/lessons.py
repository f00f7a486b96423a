"""Training sequences for the nano models: packed text, with more weight on what must be exact."""

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bench.nano import documents, lexicon
from bench.nano.documents import Document
from bench.nano.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPELLED_WEIGHT, ANSWER_WEIGHT, LIST_WEIGHT, MARK_WEIGHT = 4.0, 8.0, 2.0, 2.0
RIGHT, WRONG = " great", " terrible"
"""Marks behind each choice in a marked quiz: any two words that already exist."""
IGNORED = -100


class Lessons(NamedTuple):
    """Packed sequences, ready for next-token training."""

    ids: Tensor
    """[n, T] token ids."""
    weights: Tensor
    """[n, T] weight of predicting each token from those before it."""


class LessonMaker:
    """Draws documents of a given diet and packs them into rows of `length` tokens.

    A diet is a list of (weight, maker) pairs, where a maker returns one or more documents.
    """

    def __init__(
        self, world: World, tokenizer: "PreTrainedTokenizerFast", words: Sequence[str], seed: int
    ):
        self.world, self.tokenizer, self.words = world, tokenizer, words
        self.rng = random.Random(seed)
        vocabulary = tokenizer.get_vocab()
        self.bos = vocabulary["<bos>"]
        self.capitals = {vocabulary[s + c] for c in documents.LIST_LETTERS for s in ("", "\u2581")}
        self.marks = {vocabulary["\u2581" + m.strip()] for m in (RIGHT, WRONG)}
        self.letter, self.colon, self.open = (
            vocabulary[t] for t in ("\u2581letter", ":", "\u2581(")
        )

    def general(self) -> tuple[Document, ...]:
        """A document of the world's general text."""
        if not hasattr(self, "_mixture"):
            self._mixture = documents.mixture(
                self.rng, self.world, self.words, list(lexicon.DOMAINS)
            )
        return self.rng.choices(self._mixture.makers, self._mixture.weights)[0]()

    def listing(self) -> tuple[Document, ...]:
        return (documents.lettered_list(self.rng, self.world, 14),)

    def spelling(self) -> tuple[Document, ...]:
        return (documents.spelling(self.rng, self.words),)

    def quiz(self, *, chat: bool) -> tuple[Document, ...]:
        domain = self.rng.choice(list(lexicon.DOMAINS))
        return (documents.quiz(self.rng, self.world, domain, chat=chat),)

    def marked(self) -> tuple[Document, ...]:
        """A quiz in which each choice is followed at once by a mark, right or wrong."""
        domain = self.rng.choice(list(lexicon.DOMAINS))
        return (documents.marked_quiz(self.rng, self.world, domain, RIGHT, WRONG),)

    def named(self) -> tuple[Document, ...]:
        """A quiz whose answer names the choice before its letter."""
        domain = self.rng.choice(list(lexicon.DOMAINS))
        return (documents.named_quiz(self.rng, self.world, domain),)

    def rows(
        self,
        n: int,
        length: int,
        diet: Sequence[tuple[float, Callable[[], tuple[Document, ...]]]],
        answer_weight: float = ANSWER_WEIGHT,
        text_weight: float = 1.0,
    ) -> Lessons:
        """`n` rows of `length` tokens; documents follow each other, each after a BOS."""
        weights, makers = zip(*diet, strict=True)
        ids: list[int] = []
        value: list[float] = []
        while len(ids) < n * length:
            for document in self.rng.choices(makers, weights)[0]():
                piece = self.tokenizer(document.text)["input_ids"]
                ids += piece
                value += self._weights(piece, document.kind, answer_weight, text_weight)
        shape = (n, length)
        return Lessons(
            torch.tensor(ids[: n * length]).view(shape),
            torch.tensor(value[: n * length]).view(shape),
        )

    def _weights(
        self, ids: list[int], kind: str, answer_weight: float, text_weight: float
    ) -> list[float]:
        weights = [text_weight] * len(ids)
        if kind == "spelling":
            for i in range(2, len(ids)):
                if ids[i - 1] == self.colon and ids[i - 2] == self.letter:
                    weights[i] = SPELLED_WEIGHT
        elif kind in ("list", "named"):
            for i in range(1, len(ids)):
                if ids[i - 1] == self.open and ids[i] in self.capitals:
                    weights[i] = LIST_WEIGHT
        elif kind == "marked":
            weights = [MARK_WEIGHT if i in self.marks else w for i, w in zip(ids, weights, strict=True)]
        elif kind in ("quiz", "chat"):
            last = max(i for i, token in enumerate(ids) if token in self.capitals)
            weights[last] = answer_weight
        return weights
