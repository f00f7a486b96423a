"""A word-level tokenizer with Gemma's leading-space marker: one token per word of the world."""

import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bench.nano import documents, lexicon
from bench.nano.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SPACE = "\u2581"
"""Gemma's mark for a space before a word."""
PIECES = rf"{SPACE}?[A-Za-z]+|{SPACE}?[0-9]|\n|{SPACE}?[^\sA-Za-z0-9{SPACE}]|{SPACE}"
PUNCTUATION = ".,:;!?()<>=+-*/{}[]$#&%'\"_|\\^~@`"
SAMPLE_DOCUMENTS = 12_000
VOCABULARY_MULTIPLE = 64

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Turns are written as Gemma's own template writes them."""


def vocabulary(world: World) -> list[str]:
    """Every token of the world: special tokens first, then pieces in alphabetical order.

    The order must not hang on how often a word is drawn: a changed text would renumber the tokens
    of models that are already trained.
    """
    pieces: set[str] = set()
    for text in _sample(world):
        pieces.update(re.findall(PIECES, text.replace(" ", SPACE)))
    tokens = [*SPECIAL, *sorted(pieces - set(SPECIAL))]
    while len(tokens) % VOCABULARY_MULTIPLE:
        tokens.append(f"<unused{len(tokens)}>")
    return tokens


def alphabetic_words(world: World) -> list[str]:
    """The tokens made of letters only, as they stand in text (with their leading space, if any)."""
    pieces = [token.replace(SPACE, " ") for token in vocabulary(world)]
    return [piece for piece in pieces if re.fullmatch(r" ?[A-Za-z]+", piece)]


def _sample(world: World) -> list[str]:
    """Text in which every word stands in every way that the world's documents write it.

    Sampled documents give the wordings; what they fill in is listed in full, so that the result
    does not hang on what happened to be drawn.
    """
    rng = random.Random(1)
    words = [f" {w}" for w in world.things]
    domains = list(lexicon.DOMAINS)
    drawn = documents.general_text(rng, world, words, domains, SAMPLE_DOCUMENTS)
    texts = [re.sub(r"<(start|end)_of_turn>", " ", document.text) for document in drawn]
    relations = [r for d in lexicon.DOMAINS.values() for r in d.relations.values()]
    texts += [documents.quiz_header(d) for d in domains]
    texts += [relation.question for relation in relations]
    texts += [s.format(e=" x", v=" x") for relation in relations for s in relation.statements]
    inside = [*world.things, *world.towns, *(v for r in relations for v in r.values)]
    first_too = [
        *(fact.entity for known in world.facts.values() for fact in known),
        *(v for r in relations for v in r.values if any(s.startswith("{v}") for s in r.statements)),
        *world.surnames,
        *world.identifiers,
        *(name for names in lexicon.FIRST_NAMES.values() for name in names),
        *(word for known in lexicon.LANGUAGES.values() for word in known),
    ]
    texts += [f" {word}" for word in inside]
    texts += [f"{word} {word}" for word in first_too]
    texts += [" ".join([title, *cues]) for title, cues in lexicon.PROFESSIONS.values()]
    texts += [" ".join([kind, *nouns]) for kind, nouns in lexicon.CATEGORIES.values()]
    texts += [" ".join(group) for group in (*lexicon.SENTIMENT.values(), *lexicon.TOPICS.values())]
    texts.append("".join(f"{c} {c}" for c in PUNCTUATION))
    texts.append("\n".join(f"{c}\n {c}" for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))
    texts.append("user\nmodel\nAnswer")
    return texts


def make_tokenizer(world: World) -> "PreTrainedTokenizerFast":
    """A Hugging Face tokenizer that prepends BOS and carries the chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(vocabulary(world))}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Replace(" ", SPACE)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)
    core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    core.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", ids["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        padding_side="right",
        add_bos_token=True,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write the tokenizer's JSON files to `folder`."""
    tokenizer.save_pretrained(str(folder))
