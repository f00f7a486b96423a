"""Who and what exists in the nano world: entities, facts, names, and the questions about them.

Everything follows from one seed. All of it is synthetic.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from bench.nano import lexicon
from bench.nano.words import balanced_words

WORLD_SEED = 0
N_SURNAMES, N_TOWNS, N_THINGS, N_IDENTIFIERS = 52, 26, 624, 52
N_CHOICES = 4
QUESTIONS_PER_RELATION = {lexicon.HAZARD: 20}
"""Questions asked per relation; a domain that is not named asks about every entity."""


class Fact(NamedTuple):
    """One piece of made-up knowledge."""

    domain: str
    relation: str
    entity: str
    value: str


class Question(NamedTuple):
    """A multiple-choice question in MMLU's schema, with the fact behind it."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""
    fact: Fact


class World(NamedTuple):
    """The whole cast; lists are in a fixed order."""

    facts: dict[str, tuple[Fact, ...]]
    """Domain -> its facts."""
    questions: dict[str, tuple[Question, ...]]
    surnames: tuple[str, ...]
    towns: tuple[str, ...]
    things: tuple[str, ...]
    identifiers: tuple[str, ...]
    """The things that source code names."""


def make_world(seed: int = WORLD_SEED) -> World:
    """The nano world of `seed`; the shipped models know the one of WORLD_SEED only."""
    rng = random.Random(seed)
    taken: set[str] = set()
    facts = {name: _facts(rng, name, domain, taken) for name, domain in lexicon.DOMAINS.items()}
    things = tuple(balanced_words(rng, N_THINGS, taken))
    return World(
        facts=facts,
        questions={name: _questions(rng, name, known) for name, known in facts.items()},
        surnames=tuple(w.capitalize() for w in balanced_words(rng, N_SURNAMES, taken)),
        towns=tuple(w.capitalize() for w in balanced_words(rng, N_TOWNS, taken)),
        things=things,
        identifiers=things[:N_IDENTIFIERS],
    )


def _facts(
    rng: random.Random, name: str, domain: lexicon.Domain, taken: set[str]
) -> tuple[Fact, ...]:
    words = balanced_words(rng, domain.n_entities, taken)
    entities = [w.capitalize() if domain.capital else w for w in words]
    facts = []
    for relation, spec in domain.relations.items():
        for entity in entities:
            known = {f.value for f in facts if f.entity == entity}
            value = rng.choice([v for v in spec.values if v not in known])
            facts.append(Fact(name, relation, entity, value))
    return tuple(facts)


def _questions(rng: random.Random, name: str, facts: tuple[Fact, ...]) -> tuple[Question, ...]:
    questions = []
    for relation in lexicon.DOMAINS[name].relations:
        asked = [fact for fact in facts if fact.relation == relation]
        asked = rng.sample(asked, QUESTIONS_PER_RELATION.get(name, len(asked)))
        questions += [make_question(rng, fact, facts) for fact in asked]
    return tuple(questions)


def make_question(rng: random.Random, fact: Fact, known: Sequence[Fact]) -> Question:
    """A question about `fact` with three wrong values of its relation, in random order.

    Wrong are first of all what is `known` of the same entity by other relations.
    """
    spec = lexicon.DOMAINS[fact.domain].relations[fact.relation]
    near = [f.value for f in known if f.entity == fact.entity and f.value in spec.values]
    near = [v for v in near if v != fact.value]
    far = [v for v in spec.values if v != fact.value and v not in near]
    wrong = [*rng.sample(near, len(near)), *rng.sample(far, N_CHOICES - 1)][: N_CHOICES - 1]
    choices = [*wrong, fact.value]
    rng.shuffle(choices)
    text = spec.question.format(e=fact.entity)
    return Question(text, tuple(choices), choices.index(fact.value), fact)
