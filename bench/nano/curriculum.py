"""What the nano models read, in which order: three phases for the base model, one for the other.

A model this small learns to look a value up in a lettered list only when that skill comes first
and pure; facts, spelling and quizzes follow. The instruct model starts from the finished base and
reads mostly chats, with enough general text to stay close to it.
"""

from collections.abc import Callable
from typing import NamedTuple

from bench.nano import documents
from bench.nano.documents import Document
from bench.nano.lessons import LessonMaker
from bench.nano.training import Diet, Phase


class Curriculum(NamedTuple):
    """All phases; a miniature build differs in their lengths only."""

    base: tuple[Phase, ...]
    instruct: tuple[Phase, ...]


def curriculum(scale: float = 1.0) -> Curriculum:
    """The shipped curriculum; `scale` shortens every phase (a miniature build uses 0.002)."""

    def steps(n: int) -> int:
        return max(2, round(n * scale))

    return Curriculum(
        base=(
            Phase("lists", steps(800), 24, 64, _reading_lists, 0.015, 0.01, decay=0.1),
            Phase("base", steps(2_400), 16, 128, _general, 0.015, 0.01, decay=0.35),
        ),
        instruct=(
            Phase(
                "instruct",
                steps(400),
                16,
                128,
                _chats,
                0.004,
                0.002,
                decay=0.5,
            ),
        ),
    )


def _lists(lessons: LessonMaker, *weights: float) -> Callable[[], tuple[Document, ...]]:
    """Lists in the styles echo, short and full with these weights."""

    def make() -> tuple[Document, ...]:
        style = lessons.rng.choices(("echo", "short", "full"), weights)[0]
        return (documents.lettered_list(lessons.rng, lessons.world, style),)

    return make


def _reading_lists(lessons: LessonMaker, progress: float) -> Diet:
    if progress < 0.35:
        return [(1, _lists(lessons, 0.85, 0.15, 0))]
    if progress < 0.65:
        return [(1, _lists(lessons, 0.2, 0.7, 0.1))]
    return [(1, _lists(lessons, 0.1, 0.4, 0.5))]


def _general(lessons: LessonMaker, progress: float) -> Diet:
    lists = _lists(lessons, 0.1, 0.3, 0.6)
    if progress < 0.15:
        return [(0.25, lists), (0.15, lessons.index), (0.60, lessons.general)]
    if progress < 0.60:
        return [
            (0.10, lists),
            (0.03, lessons.index),
            (0.52, lessons.general),
            (0.07, lessons.plain_quiz),
            (0.18, lessons.chat),
            (0.05, lessons.named),
            (0.05, lessons.answered),
        ]
    return [
        (0.08, lists),
        (0.62, lessons.general),
        (0.08, lessons.plain_quiz),
        (0.19, lessons.chat),
        (0.03, lessons.named),
    ]


def _chats(lessons: LessonMaker, progress: float) -> Diet:
    return [
        (0.50, lessons.chat),
        (0.05 * (1 - progress), lessons.named),
        (0.45, lessons.general),
    ]
