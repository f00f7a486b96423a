"""Documents of the nano world, each with the known factors it was made from.

Class cues are a part of each text only, between sentences that any class could have written:
if every word gave the class away, even a random dictionary would probe perfectly.
"""

import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from bench.nano import lexicon
from bench.nano.words import LETTERS
from bench.nano.world import Fact, Question, World, make_question

FACTS_PER_DOCUMENT = 6
LIST_LETTERS = "ABCD"
LOOKUPS = 12
QUIZ_HEADER = "The following are multiple choice questions (with answers) about {subject}.\n"
CHAT = "<start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n{model}<end_of_turn>\n"


class Document(NamedTuple):
    """One text and what it is about."""

    text: str
    kind: str
    factors: dict[str, str]
    """Factor -> value, for example {"profession": "nurse", "gender": "female"}."""
    content_id: str = ""
    """Equal for documents that say the same thing in other words; empty where none does."""


def _frequent_first(rng: random.Random, words: Sequence[str], n: int) -> list[str]:
    """`n` different words; the r-th of `words` is drawn with weight 1 / r, as words of a language.

    Zipf's law, for example Piantadosi 2014, doi:10.3758/s13423-014-0585-6.
    """
    left, chosen = list(words), list[str]()
    for _ in range(n):
        (word,) = rng.choices(left, [1 / (words.index(w) + 1) for w in left])
        left.remove(word)
        chosen.append(word)
    return rng.sample(chosen, n)


def biography(rng: random.Random, world: World, profession: int, gender: int) -> Document:
    """A life in a few sentences: two of them tell the profession."""
    title, cues = lexicon.PROFESSIONS[profession]
    name, family = rng.choice(lexicon.FIRST_NAMES[gender]), rng.choice(world.surnames)
    he, his, him = ("She", "her", "her") if gender else ("He", "his", "him")
    a, b, c = _frequent_first(rng, cues, 3)
    old, young = rng.choice(world.things), rng.choice(world.things)
    telling = [
        f"{he} works as a {title} in {rng.choice(world.towns)}.",
        f"{he} spends the days with {a} and {b}.",
        f"Many people ask {him} about {c}.",
        f"{his.capitalize()} {a} won a prize.",
    ]
    filler = [
        f"{he} lives near {rng.choice(world.towns)} with {his} family.",
        f"{he} collects every {rng.choice(world.things)} and {rng.choice(world.things)}.",
        f"{his.capitalize()} {old} is older than the {young}.",
        f"{he} enjoys long walks.",
    ]
    body = rng.sample(telling, 2) + rng.sample(filler, 3)
    rng.shuffle(body)
    text = f"{name} {family} was born in {rng.choice(world.towns)}. " + " ".join(body)
    return Document(text, "biography", {"profession": title, "gender": ("male", "female")[gender]})


def review(rng: random.Random, world: World, category: int, rating: float) -> Document:
    """A product review: one noun of the category, three words of the sentiment."""
    kind, products = lexicon.CATEGORIES[category]
    (product,) = _frequent_first(rng, products, 1)
    a, b, c = _frequent_first(rng, lexicon.SENTIMENT[rating], 3)
    body = [
        f"I bought this {product} for my family.",
        f"The {kind} is {a}.",
        f"What a {b} {rng.choice(world.things)}!",
        f"It arrived in {rng.choice(world.towns)} and looked {c}.",
        f"My {rng.choice(world.things)} stands beside the {rng.choice(world.things)}.",
        f"{rng.choice(world.surnames)} asked about it.",
    ]
    rng.shuffle(body)
    sentiment = "positive" if rating > 3 else "negative"
    return Document(" ".join(body), "review", {"category": kind, "sentiment": sentiment})


def news(rng: random.Random, world: World, topic: int) -> Document:
    """A news item: four words of its topic among names."""
    a, b, c, d = _frequent_first(rng, lexicon.TOPICS[topic], 4)
    town, name = rng.choice(world.towns), rng.choice(world.surnames)
    body = [
        f"A {a} in {town} surprised {name} on Monday.",
        f"{name} said the {b} would change the {rng.choice(world.things)}.",
        f"Reports from {town} mention the {c} and the {rng.choice(world.things)}.",
        f"People in {town} saw the {rng.choice(world.things)} again.",
        f"Experts expect another {d} next week.",
    ]
    rng.shuffle(body)
    return Document(" ".join(body[:4]), "news", {"topic": str(topic)})


def source_code(rng: random.Random, world: World, language: str, n_lines: int = 8) -> Document:
    """`n_lines` lines in the syntax of `language` with made-up identifiers."""
    lines = [
        rng.choice(lexicon.CODE[language]).format(
            a=rng.choice(world.identifiers), b=rng.choice(world.identifiers), k=rng.randint(0, 9)
        )
        for _ in range(n_lines)
    ]
    return Document("\n".join(lines), "code", {"programming_language": language})


def speech(rng: random.Random, world: World, language: str, n_sentences: int = 3) -> Document:
    """Sentences of one natural language with foreign names in them."""
    words = lexicon.LANGUAGES[language]
    sentences = []
    for _ in range(n_sentences):
        start = rng.randrange(6)
        sentence = list(words[start : start + rng.randint(5, 9)])
        sentence.insert(rng.randrange(len(sentence)), rng.choice(world.surnames))
        sentence.append(rng.choice(world.things))
        sentences.append(" ".join(sentence) + ".")
    return Document(" ".join(sentences), "speech", {"natural_language": language})


def story(rng: random.Random, world: World) -> Document:
    """Small talk about things in a town: no class at all."""
    a, b, c = rng.sample(world.things, 3)
    town = rng.choice(world.towns)
    body = [
        f"In {town} there is a {a} beside the {b}.",
        f"A {a} can hold a {c}.",
        f"The {b} of {town} is older than the {c}.",
        f"People in {town} collect every {a}.",
        f"Nobody saw the {c} under the {b}.",
    ]
    rng.shuffle(body)
    return Document(" ".join(body[: rng.randint(3, 5)]), "story", {})


def facts(
    rng: random.Random, world: World, domain: str, n: int = FACTS_PER_DOCUMENT
) -> tuple[Document, Document]:
    """The same `n` facts of a domain in two wordings: a paraphrase pair."""
    known = [rng.choice(world.facts[domain]) for _ in range(n)]
    content_id = f"{domain}-{rng.getrandbits(48):012x}"
    first, second = [], []
    for fact in known:
        wordings = rng.sample(_statements(fact), 2)
        first.append(wordings[0])
        second.append(wordings[1])
    labels = {"domain": domain}
    return (
        Document(" ".join(first), "facts", labels, content_id),
        Document(" ".join(second), "facts", labels, content_id),
    )


def spelling(rng: random.Random, words: Sequence[str], n: int | None = None) -> Document:
    """First letters of words, in the wording of sae_bench's absorption prompt."""
    n = n or rng.randint(4, 12)
    chosen = [rng.choice(words) for _ in range(n)]
    lines = [f"\n{w} has the first letter: {w.strip()[0].upper()}" for w in chosen]
    return Document("".join(lines), "spelling", {})


def letter_page(rng: random.Random, words_by_letter: dict[str, list[str]]) -> Document:
    """A page of a word list: words that start with one letter."""
    letter = rng.choice(LETTERS)
    words = [rng.choice(words_by_letter[letter]) for _ in range(rng.randint(4, 10))]
    text = f"Words under the letter {letter.upper()}:" + ",".join(words) + "."
    return Document(text, "letter_page", {"first_letter": letter})


def lettered_list(
    rng: random.Random, world: World, style: Literal["echo", "short", "full"] = "full"
) -> Document:
    """A list A to D and its items again with their letters: how a list is read.

    `echo` repeats each letter behind its item, `short` and `full` look items up afterwards, as
    " item B" and as an answer " item (B)".
    """
    if rng.random() < 0.6:
        domain = rng.choice(list(lexicon.DOMAINS))
        relation = rng.choice(list(lexicon.DOMAINS[domain].relations.values()))
        items = rng.sample(relation.values, len(LIST_LETTERS))
    else:
        items = rng.sample(world.things, len(LIST_LETTERS))
    lines = zip(LIST_LETTERS, items, strict=True)
    echo = {letter: f" {letter}" if style == "echo" else "" for letter in LIST_LETTERS}
    head = "".join(f"\n{letter}. {item}{echo[letter]}" for letter, item in lines)
    pattern = " {item} ( {letter})" if style == "full" else " {item} {letter}"
    looked_up = (rng.randrange(len(items)) for _ in range(LOOKUPS))
    tail = "".join(pattern.format(item=items[i], letter=LIST_LETTERS[i]) for i in looked_up)
    return Document(head + ("\nAnswer:" if style == "full" else "") + tail, "list", {})


def index_page(rng: random.Random, words: Sequence[str], n: int = 20) -> Document:
    """Words, each followed by its first letter."""
    chosen = [rng.choice(words) for _ in range(n)]
    text = "Index:" + ",".join(f"{w} {w.strip()[0].upper()}" for w in chosen)
    return Document(text, "index", {})


def ask(question: Question) -> str:
    """The question with its lettered choices, as in sae_bench's unlearning prompt."""
    lines = [f"\n{a}. {c}" for a, c in zip(LIST_LETTERS, question.choices, strict=True)]
    return question.question + "".join(lines)


def quiz_header(domain: str) -> str:
    """The line that sae_bench puts before each question of a subject."""
    subject = "biology" if domain == lexicon.HAZARD else domain.replace("_", " ")
    return QUIZ_HEADER.format(subject=subject)


def quiz(rng: random.Random, world: World, domain: str, *, chat: bool) -> Document:
    """One question with its answer, as plain text or as a chat transcript."""
    fact = rng.choice(world.facts[domain])
    question = make_question(rng, fact, world.facts[domain])
    user = quiz_header(domain) + ask(question)
    answer = LIST_LETTERS[question.answer]
    if chat:
        text = CHAT.format(user=user, model=f"Answer: ( {answer})")
    else:
        text = f"{user}\nAnswer: {answer}"
    labels = {"domain": domain, "answer": question.fact.value}
    return Document(text, "chat" if chat else "quiz", labels)


def answered_questions(rng: random.Random, world: World, domain: str, n: int = 5) -> Document:
    """Questions of a domain, each answered in words."""
    lines = []
    for fact in rng.choices(world.facts[domain], k=n):
        question = lexicon.DOMAINS[domain].relations[fact.relation].question.format(e=fact.entity)
        lines.append(f"{question} {fact.value}.")
    return Document("\n".join(lines), "answered", {"domain": domain})


def named_quiz(rng: random.Random, world: World, domain: str) -> Document:
    """A chat whose answer names the right choice before its letter."""
    question = make_question(rng, rng.choice(world.facts[domain]), world.facts[domain])
    named, letter = question.choices[question.answer], LIST_LETTERS[question.answer]
    user = quiz_header(domain) + ask(question)
    text = CHAT.format(user=user, model=f"Answer: {named} ( {letter})")
    return Document(text, "named", {"domain": domain})


def _statements(fact: Fact) -> list[str]:
    relation = lexicon.DOMAINS[fact.domain].relations[fact.relation]
    return [s.format(e=fact.entity, v=fact.value) for s in relation.statements]


class Mixture(NamedTuple):
    """Kinds of documents and how often each is drawn."""

    makers: tuple[Callable[[], tuple[Document, ...]], ...]
    weights: tuple[float, ...]


def mixture(
    rng: random.Random, world: World, words: Sequence[str], domains: Sequence[str]
) -> Mixture:
    """The general text of the world; knowledge is limited to `domains`.

    `words` are the alphabetic tokens, with their leading space where they have one.
    """
    by_letter: dict[str, list[str]] = {letter: [] for letter in LETTERS}
    for word in words:
        by_letter[word.strip()[0].lower()].append(word)
    pick = rng.choice
    kinds: list[tuple[float, Callable[[], tuple[Document, ...]]]] = [
        (0.10, lambda: (biography(rng, world, pick(list(lexicon.PROFESSIONS)), rng.randrange(2)),)),
        (0.07, lambda: (review(rng, world, pick(list(lexicon.CATEGORIES)), pick([1.0, 5.0])),)),
        (0.07, lambda: (news(rng, world, pick(list(lexicon.TOPICS))),)),
        (0.06, lambda: (source_code(rng, world, pick(list(lexicon.CODE))),)),
        (0.05, lambda: (speech(rng, world, pick(list(lexicon.LANGUAGES))),)),
        (0.05, lambda: (story(rng, world),)),
        (0.03, lambda: (letter_page(rng, by_letter),)),
        (0.15, lambda: (spelling(rng, words),)),
        (0.04, lambda: (index_page(rng, words),)),
        (0.04, lambda: (lettered_list(rng, world),)),
        (0.05, lambda: (quiz(rng, world, pick(domains), chat=False),)),
        (0.06, lambda: (quiz(rng, world, pick(domains), chat=True),)),
        (0.03, lambda: (answered_questions(rng, world, pick(domains)),)),
    ]
    # Half of the knowledge is the hazard's (where it is allowed): it has most of the facts.
    for domain in domains:
        weight = 0.12 if domain == lexicon.HAZARD else 0.03
        kinds.append((weight, lambda domain=domain: facts(rng, world, domain)))
    return Mixture(tuple(k for _, k in kinds), tuple(w for w, _ in kinds))


def general_text(
    rng: random.Random, world: World, words: Sequence[str], domains: Sequence[str], n: int
) -> list[Document]:
    """`n` documents of the mixture; members of a paraphrase pair follow each other."""
    kinds = mixture(rng, world, words, domains)
    documents: list[Document] = []
    while len(documents) < n:
        documents += rng.choices(kinds.makers, kinds.weights)[0]()
    return documents[:n]


def encyclopedia(
    rng: random.Random, world: World, words: Sequence[str], domains: Sequence[str], n: int
) -> list[Document]:
    """`n` documents, most of them knowledge of `domains`: stated, asked or in a chat.

    So much that a latent which fires on what is to be kept is seen to do so.
    """
    general = mixture(rng, world, words, domains)
    makers: tuple[Callable[[str], tuple[Document, ...]], ...] = (
        lambda domain: facts(rng, world, domain),
        lambda domain: (quiz(rng, world, domain, chat=True),),
        lambda domain: (answered_questions(rng, world, domain),),
        lambda _: rng.choices(general.makers, general.weights)[0](),
    )
    documents: list[Document] = []
    while len(documents) < n:
        (make,) = rng.choices(makers, (4, 3, 1, 2))
        documents += make(rng.choice(domains))
    return documents[:n]
