"""The shipped nano pair knows what its card says, and belongs together."""

import json

import pytest
import torch

from bench import compat
from bench.models import NANO_WEIGHTS, check_pair, load_model, resolve

compat.prepare()
MAX_BYTES = 7_000_000
FACTS = json.loads((NANO_WEIGHTS / "facts.json").read_text())
TEXTS = ["the ruler Nojoju fought the Copper war.", "\nwall has the first letter: W"]


def hugging_face(side: str):
    from transformers import AutoTokenizer, Gemma2ForCausalLM

    folder = NANO_WEIGHTS / side
    model = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("name", "side"), [("nano", "base"), ("nano-it", "instruct")])
def test_hooked_transformer_gives_hugging_faces_logits(name, side):
    model, tokenizer = hugging_face(side)
    ids = tokenizer(TEXTS, return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad():
        theirs = model(input_ids=ids).logits
        ours = load_model(resolve(name))(ids)
    assert (ours - theirs).abs().max() < 1e-4


def test_base_and_instruct_are_one_pair():
    check_pair(resolve("nano"), resolve("nano-it"), "blocks.2.hook_resid_post")


def test_weights_are_small():
    assert sum(p.stat().st_size for p in NANO_WEIGHTS.rglob("*.safetensors")) <= MAX_BYTES


def test_card_meets_what_the_suites_need():
    quiz = FACTS["instruct"]["quiz"]
    assert quiz["wmdp-bio"]["right_all"] >= 80
    assert min(q["right_all"] for name, q in quiz.items() if name != "wmdp-bio") >= 60
    assert FACTS["letters"] >= 20


def test_card_is_the_one_that_the_facts_make():
    from bench.nano.card import render

    assert (NANO_WEIGHTS / "README.md").read_text() == render(FACTS)


def test_instruct_model_answers_under_every_order():
    """A sample of the card's claim, measured again: five questions of each subject."""
    from bench.nano.exam import quiz_scores
    from bench.nano.world import make_world

    model, tokenizer = hugging_face("instruct")
    for domain, score in quiz_scores(model, tokenizer, make_world(), limit=5).items():
        assert score.accuracy > 0.9, domain


def test_base_model_recalls_and_spells():
    from bench.nano.exam import recall, spelling_accuracy
    from bench.nano.tokenizer import alphabetic_words
    from bench.nano.world import make_world

    model, tokenizer = hugging_face("base")
    world = make_world()
    assert min(recall(model, tokenizer, world, n=50).values()) > 0.7
    assert spelling_accuracy(model, tokenizer, alphabetic_words(world), n=100) > 0.9


def test_shipped_tokenizer_is_the_worlds():
    from bench.nano.tokenizer import make_tokenizer
    from bench.nano.world import make_world

    for side in ("base", "instruct"):
        _, tokenizer = hugging_face(side)
        made = make_tokenizer(make_world())
        assert tokenizer.get_vocab() == made.get_vocab()
        assert tokenizer.chat_template == made.chat_template


def test_miniature_build_makes_a_loadable_pair(tmp_path):
    from bench.nano.build import build
    from bench.nano.card import render

    steps = []
    facts = build(tmp_path, mini=True, report=lambda *a: steps.append(a))
    assert {name for name, *_ in steps} == {"lists", "base", "instruct"}
    assert json.loads((tmp_path / "facts.json").read_text()) == facts
    assert (tmp_path / "README.md").read_text() == render(facts)
    for side in ("base", "instruct"):
        assert (tmp_path / side / "model.safetensors").exists()
        assert facts[side]["parameters"] == FACTS[side]["parameters"]
