"""Every data set that the suites read, made from the nano world, under its hub id and schema.

Layout: `<root>/<hub id>/[<config>/]<split>.jsonl`, the layout of every offline mirror. Rows have
the hub's columns; general text has its known factors beside them.
"""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.nano import documents, lexicon
from bench.nano.documents import Document
from bench.nano.tokenizer import alphabetic_words
from bench.nano.world import World, make_world

DATA_VERSION = 3
"""Raised whenever the same seed gives other rows, so that nothing stale is reused."""
SEED = 77
CODE_LINES = 40
MIN_CODE_CHARS = 534
"""sae_bench skips code samples of at most 384 + 150 characters (dataset_utils.py)."""
LANGUAGE_PAIRS = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
"""Language -> the europarl configuration that sae_bench reads it from."""
FACTS_PER_FORGET_TEXT = 8
MIN_RETAIN_CHARS = 50


class DataSizes(NamedTuple):
    """Rows per data set."""

    web: int = 30_000
    """Documents of openwebtext-style text (about 45 tokens each)."""
    retain: int = 2_500
    forget: int = 800
    probe_train: int = 400
    """Largest probe training set that a suite may ask for; both classes together."""
    probe_test: int = 200


def write_datasets(root: Path, sizes: DataSizes | None = None, world: World | None = None) -> None:
    """Write all data sets below `root`. Same arguments, same bytes."""
    sizes = sizes or DataSizes()
    world = world or make_world()
    words = alphabetic_words(world)
    for name, rows in _tables(world, words, sizes):
        path = root / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _tables(
    world: World, words: list[str], sizes: DataSizes
) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """(path without ending, rows) of each file; each has a generator of its own."""
    domains = list(lexicon.DOMAINS)
    benign = [d for d in domains if d != lexicon.HAZARD]
    web = documents.general_text(_rng("web"), world, words, domains, sizes.web)
    yield "Skylion007/openwebtext/train", map(_web_row, web)
    retain = documents.encyclopedia(_rng("retain"), world, words, benign, sizes.retain)
    long_enough = (d for d in retain if len(d.text) > MIN_RETAIN_CHARS)
    yield "wikitext/wikitext-2-raw-v1/test", map(_web_row, long_enough)
    yield "bio-forget-corpus/train", map(_web_row, _forget(world, sizes.forget))
    for split, n in (("train", sizes.probe_train), ("test", sizes.probe_test)):
        yield from _probe_tables(world, split, n)
    code_rows = _code(world, (sizes.probe_train + sizes.probe_test) // 2 + 5)
    yield "codeparrot/github-code/train", code_rows
    for language, pair in LANGUAGE_PAIRS.items():
        rows = _speech(world, language, pair, (sizes.probe_train + sizes.probe_test) // 2 + 5)
        yield f"Helsinki-NLP/europarl/{pair}/train", rows
    for domain in domains:
        folder = "cais/wmdp" if domain == lexicon.HAZARD else "cais/mmlu"
        yield f"{folder}/{domain}/test", _questions(world, domain)


def _rng(name: str) -> random.Random:
    return random.Random(f"{SEED}-{name}")


def _web_row(document: Document) -> dict[str, Any]:
    return {
        "text": document.text,
        "kind": document.kind,
        "factors": json.dumps(document.factors, sort_keys=True),
        "content_id": document.content_id,
    }


def _forget(world: World, n: int) -> Iterator[Document]:
    rng = _rng("forget")
    for _ in range(n):
        yield documents.facts(rng, world, lexicon.HAZARD, FACTS_PER_FORGET_TEXT)[0]


def _probe_tables(
    world: World, split: str, n: int
) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """The balanced classification sets: n // 4 rows per quadrant, n // 2 per class."""
    quadrant, half = n // 4 + 5, n // 2 + 5
    rng = _rng(f"bios-{split}")
    bios = [
        {
            "hard_text": documents.biography(rng, world, profession, gender).text,
            "profession": profession,
            "gender": gender,
        }
        for profession in lexicon.PROFESSIONS
        for gender in (0, 1)
        for _ in range(quadrant)
    ]
    yield f"LabHC/bias_in_bios/{split}", bios
    rng_reviews = _rng(f"reviews-{split}")
    reviews = [
        {
            "text": documents.review(rng_reviews, world, category, rating).text,
            "category": category,
            "rating": rating,
        }
        for category in lexicon.CATEGORIES
        for rating in lexicon.SENTIMENT
        for _ in range(quadrant)
    ]
    yield f"canrager/amazon_reviews_mcauley_1and5/{split}", reviews
    rng_news = _rng(f"news-{split}")
    items = [
        {"text": documents.news(rng_news, world, topic).text, "label": topic}
        for topic in lexicon.TOPICS
        for _ in range(half)
    ]
    yield f"fancyzhx/ag_news/{split}", items


def _code(world: World, n: int) -> Iterator[dict[str, Any]]:
    rng = _rng("code")
    for language in lexicon.CODE:
        for _ in range(n):
            text = documents.source_code(rng, world, language, CODE_LINES).text
            while len(text) <= MIN_CODE_CHARS:
                text += "\n" + documents.source_code(rng, world, language, CODE_LINES).text
            yield {"code": text, "language": language}


def _speech(world: World, language: str, pair: str, n: int) -> Iterator[dict[str, Any]]:
    rng = _rng(f"speech-{language}")
    other = next(side for side in pair.split("-") if side != language)
    for _ in range(n):
        text = documents.speech(rng, world, language).text
        yield {"translation": {language: text, other: ""}}


def _questions(world: World, domain: str) -> list[dict[str, Any]]:
    return [
        {"question": q.question, "choices": list(q.choices), "answer": q.answer}
        for q in world.questions[domain]
    ]
