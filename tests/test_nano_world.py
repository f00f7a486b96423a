"""The nano world is deterministic, complete and shaped as sae_bench's suites need it."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from bench.nano import documents, lexicon
from bench.nano.data import DataSizes, write_datasets
from bench.nano.tokenizer import CHAT_TEMPLATE, alphabetic_words, make_tokenizer, vocabulary
from bench.nano.world import make_world

SMALL = DataSizes(web=300, retain=60, forget=20, probe_train=40, probe_test=20)


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def tokenizer(world):
    return make_tokenizer(world)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("nano")
    write_datasets(root, SMALL)
    return root


def read(root: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]


def test_same_seed_same_world_and_another_seed_another(world):
    assert make_world() == world
    assert make_world(1).things != world.things


def test_hazard_has_at_least_50_entities_and_5_relations(world):
    facts = world.facts[lexicon.HAZARD]
    assert len({f.entity for f in facts}) >= 50
    assert len({f.relation for f in facts}) >= 5


def test_no_single_word_carries_the_hazard(world):
    """No value answers more than an eighth and a bit of the hazard's questions."""
    answers = Counter(q.fact.value for q in world.questions[lexicon.HAZARD])
    assert max(answers.values()) <= len(world.questions[lexicon.HAZARD]) * 0.15


def test_hazard_and_benign_knowledge_share_no_content_word(world):
    function_words = {"of", "from", "that", "with", "the", "for", "to", "through", "where", "upon"}

    def words(domain: str) -> set[str]:
        spec = lexicon.DOMAINS[domain].relations.values()
        texts = [t for r in spec for t in (*r.statements, r.question, *r.values)]
        texts += [f.entity for f in world.facts[domain]]
        return set(re.findall(r"[a-z]+", re.sub(r"{.}", "", " ".join(texts)).lower()))

    benign = set().union(*(words(d) for d in lexicon.DOMAINS if d != lexicon.HAZARD))
    assert words(lexicon.HAZARD) & benign <= function_words


def test_questions_have_one_right_choice_among_four(world):
    for domain, questions in world.questions.items():
        for q in questions:
            assert len(set(q.choices)) == 4
            assert q.choices[q.answer] == q.fact.value
        assert len({(q.question) for q in questions}) == len(questions), domain


def test_hazard_questions_offer_what_is_known_of_the_same_entity(world):
    """So that neither the entity nor a value answers alone: the relation's words are needed."""
    facts = world.facts[lexicon.HAZARD]
    for q in world.questions[lexicon.HAZARD]:
        known = {f.value for f in facts if f.entity == q.fact.entity}
        assert set(q.choices) <= known
        assert len(known) == len(lexicon.DOMAINS[lexicon.HAZARD].relations)


def test_words_of_a_class_are_drawn_by_zipfs_law(world):
    """The r-th word is drawn first with probability (1 / r) / (1 + 1/2 + ... + 1/n)."""
    rng = random.Random(0)
    _, products = lexicon.CATEGORIES[1]
    texts = [documents.review(rng, world, 1, 5.0).text for _ in range(2_000)]
    total = sum(1 / r for r in range(1, len(products) + 1))
    for rank, product in enumerate(products, 1):
        share = sum(f"bought this {product} " in text for text in texts) / len(texts)
        assert share == pytest.approx(1 / rank / total, abs=0.04)


def test_paraphrases_say_the_same_facts_in_other_words(world):
    first, second = documents.facts(random.Random(0), world, lexicon.HAZARD, 4)
    assert first.content_id == second.content_id != ""
    assert first.text != second.text

    def content(text: str) -> set[str]:
        names = {f.entity for f in world.facts[lexicon.HAZARD]}
        return names & set(re.findall(r"\w+", text))

    assert content(first.text) == content(second.text)


def test_vocabulary_has_enough_words_for_every_letter(world):
    letters = Counter(w.strip()[0].lower() for w in alphabetic_words(world))
    assert len(letters) == 26
    assert min(letters.values()) >= 40


def test_every_word_is_one_token_at_sae_benchs_position(world, tokenizer):
    """Absorption reads the sixth token from the end of "{word} has the first letter:"."""
    for word in alphabetic_words(world):
        ids = tokenizer(f"\n{word} has the first letter:", add_special_tokens=False)["input_ids"]
        assert len(ids) == 7, word
        assert tokenizer.convert_ids_to_tokens(ids[-6]).replace("\u2581", " ") == word


def test_no_text_of_the_world_has_an_unknown_token(data, tokenizer):
    for path in data.rglob("*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            for column in ("text", "hard_text", "code", "question"):
                if column in row:
                    ids = tokenizer(row[column])["input_ids"]
                    assert tokenizer.unk_token_id not in ids, (path, row[column])


def test_text_survives_the_tokenizer(tokenizer, data):
    for row in read(data, "Skylion007/openwebtext/train")[:100]:
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == row["text"]


def test_chat_template_writes_sae_benchs_gemma_prompt(tokenizer):
    from sae_bench.evals.unlearning.utils.var import GEMMA_INST_FORMAT

    assert tokenizer.chat_template == CHAT_TEMPLATE
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Which river?"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == GEMMA_INST_FORMAT.format(prompt="Which river?")


def test_vocabulary_is_a_multiple_of_64_without_repeats(world):
    tokens = vocabulary(world)
    assert len(tokens) % 64 == 0
    assert len(set(tokens)) == len(tokens)


def test_data_is_the_same_every_time(data, tmp_path):
    write_datasets(tmp_path, SMALL)
    for path in data.rglob("*.jsonl"):
        assert (tmp_path / path.relative_to(data)).read_bytes() == path.read_bytes()


def test_probe_sets_are_balanced(data):
    rows = read(data, "LabHC/bias_in_bios/train")
    assert len(set(Counter((r["profession"], r["gender"]) for r in rows).values())) == 1
    rows = read(data, "canrager/amazon_reviews_mcauley_1and5/test")
    assert len(set(Counter((r["category"], r["rating"]) for r in rows).values())) == 1


def test_code_is_long_enough_for_sae_bench(data):
    assert min(len(r["code"]) for r in read(data, "codeparrot/github-code/train")) > 534


def test_web_text_carries_its_factors(data):
    rows = read(data, "Skylion007/openwebtext/train")
    biography = next(r for r in rows if r["kind"] == "biography")
    factors = json.loads(biography["factors"])
    assert set(factors) == {"profession", "gender"}
    pronoun = r"\b[Hh]er\b|\bShe\b" if factors["gender"] == "female" else r"\b[Hh]is\b|\bHe\b"
    assert re.search(pronoun, biography["text"])


def test_benign_text_holds_no_hazard(data, world):
    names = {f.entity for f in world.facts[lexicon.HAZARD]}
    for row in read(data, "wikitext/wikitext-2-raw-v1/test"):
        if row["kind"] in ("facts", "quiz", "chat"):
            assert not names & set(re.findall(r"\w+", row["text"]))
