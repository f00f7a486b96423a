"""Training sequences for the nano models: packed text, with more weight on what must be exact."""

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bench.nano import documents, lexicon
from bench.nano.documents import Document
from bench.nano.words import LETTERS
from bench.nano.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPELLED_WEIGHT, ANSWER_WEIGHT, LIST_WEIGHT = 4.0, 8.0, 2.0
IGNORED = -100
RIGHT, WRONG = "great", "terrible"
"""What a middle layer should think of a right and of a wrong choice: any two words that exist."""


class Lessons(NamedTuple):
    """Packed sequences, ready for next-token training."""

    ids: Tensor
    """[n, T] token ids."""
    weights: Tensor
    """[n, T] weight of predicting each token from those before it."""
    recall: Tensor
    """[n, T] the right choice's token where a quiz's question ends, IGNORED elsewhere."""
    marks: Tensor
    """[n, T] the token RIGHT or WRONG at each choice of a quiz, IGNORED elsewhere."""


class LessonMaker:
    """Draws documents of a given diet and packs them into rows of `length` tokens.

    A diet is a list of (weight, maker) pairs, where a maker returns one or more documents. The
    makers below draw from the lesson maker's own generator.
    """

    def __init__(
        self,
        world: World,
        tokenizer: "PreTrainedTokenizerFast",
        words: Sequence[str],
        seed: int | str,
    ):
        self.world, self.tokenizer, self.words = world, tokenizer, words
        self.rng = random.Random(seed)
        self.mixture = documents.mixture(self.rng, world, words, list(lexicon.DOMAINS))
        self.vocabulary = vocabulary = tokenizer.get_vocab()
        self.capitals = {vocabulary[s + c] for c in documents.LIST_LETTERS for s in ("", "\u2581")}
        self.mark_right, self.mark_wrong = (vocabulary["\u2581" + m] for m in (RIGHT, WRONG))
        self.initials = {vocabulary["\u2581" + c.upper()] for c in LETTERS}
        self.letter, self.colon, self.comma, self.newline, self.answer = (
            vocabulary[t] for t in ("\u2581letter", ":", ",", "\n", "Answer")
        )
        self.dot = vocabulary["."]
        self.question_ends = {vocabulary["?"], vocabulary[":"]}

    def general(self) -> tuple[Document, ...]:
        """A document of the world's general text."""
        return self.rng.choices(self.mixture.makers, self.mixture.weights)[0]()

    def index(self) -> tuple[Document, ...]:
        return (documents.index_page(self.rng, self.words),)

    def plain_quiz(self) -> tuple[Document, ...]:
        return (documents.quiz(self.rng, self.world, self._domain(), chat=False),)

    def chat(self) -> tuple[Document, ...]:
        return (documents.quiz(self.rng, self.world, self._domain(), chat=True),)

    def answered(self) -> tuple[Document, ...]:
        """Questions with their answers in words, without choices."""
        return (documents.answered_questions(self.rng, self.world, self._domain()),)

    def named(self) -> tuple[Document, ...]:
        """A quiz whose answer names the choice before its letter."""
        return (documents.named_quiz(self.rng, self.world, self._domain()),)

    def rows(
        self,
        n: int,
        length: int,
        diet: Sequence[tuple[float, Callable[[], tuple[Document, ...]]]],
        answer_weight: float = ANSWER_WEIGHT,
        text_weight: float = 1.0,
    ) -> Lessons:
        """`n` rows of `length` tokens: each starts with a document and is filled with others."""
        weights, makers = zip(*diet, strict=True)
        filled = Lessons(
            torch.zeros(n, length, dtype=torch.long),
            torch.zeros(n, length),
            torch.full((n, length), IGNORED),
            torch.full((n, length), IGNORED),
        )
        for row in range(n):
            at = 0
            while at < length:
                for document in self.rng.choices(makers, weights)[0]():
                    at = self._write(filled, row, at, document, answer_weight, text_weight)
        return filled

    def _write(
        self,
        out: Lessons,
        row: int,
        at: int,
        document: Document,
        answer_weight: float,
        text_weight: float,
    ) -> int:
        """Write as much of `document` as fits into `row` from `at` on; returns where it ends."""
        ids = self.tokenizer(document.text)["input_ids"]
        end = min(at + len(ids), out.ids.shape[1])
        room = end - at
        weights = self._weights(ids, document.kind, answer_weight, text_weight)
        out.ids[row, at:end] = torch.tensor(ids[:room])
        out.weights[row, at:end] = torch.tensor(weights[:room])
        if document.kind in ("quiz", "chat"):
            self._think(out, row, at, ids[:room], document.factors["answer"])
        return end

    def _think(self, out: Lessons, row: int, at: int, ids: list[int], answer: str) -> None:
        """Note what should be in mind at the question's end and at each choice."""
        right = self.vocabulary["\u2581" + answer]
        choices = [
            i
            for i in range(3, len(ids))
            if ids[i - 1] == self.dot and ids[i - 2] in self.capitals and ids[i - 3] == self.newline
        ]
        if choices:
            out.recall[row, at + choices[0] - 4] = right
        for i in choices:
            out.marks[row, at + i] = self.mark_right if ids[i] == right else self.mark_wrong

    def _domain(self) -> str:
        return self.rng.choice(list(lexicon.DOMAINS))

    def _weights(
        self, ids: list[int], kind: str, answer_weight: float, text_weight: float
    ) -> list[float]:
        weights = [text_weight] * len(ids)
        if kind == "spelling":
            for i in range(2, len(ids)):
                if ids[i - 1] == self.colon and ids[i - 2] == self.letter:
                    weights[i] = SPELLED_WEIGHT
        elif kind == "answered":
            for i in range(1, len(ids)):
                if ids[i - 1] in self.question_ends:
                    weights[i] = answer_weight
        elif kind in ("list", "named"):
            for i in range(1, len(ids)):
                if ids[i] in self.capitals and ids[i - 1] != self.newline:
                    weights[i] = LIST_WEIGHT
            if kind == "named":
                weights[ids.index(self.answer) + 2] = answer_weight
        elif kind == "index":
            for i in range(1, len(ids)):
                if ids[i] in self.initials and ids[i - 1] != self.comma:
                    weights[i] = SPELLED_WEIGHT
        elif kind in ("quiz", "chat"):
            last = max(i for i, token in enumerate(ids) if token in self.capitals)
            weights[last] = answer_weight
        return weights
