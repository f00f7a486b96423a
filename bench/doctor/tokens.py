"""What suites take for granted about a tokenizer, tried on words and prompts."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from bench import chat, model_files
from bench.doctor.report import Check
from bench.doctor.subject import Subject
from bench.errors import UserError
from bench.models import ModelSpec

WORDS = 500
"""Words of the vocabulary that are tried, evenly spread."""
WRONG = 0.01
"""Fraction of words that may stand elsewhere: sae_bench leaves out none of them."""


def checks(subject: Subject) -> Iterator[Check]:
    """Only of tokenizers that are on this machine."""
    for suite in subject.config.suites:
        settings = subject.settings(suite)
        if hasattr(settings, "prompt_token_pos") and _is_here(subject.spec):
            yield word_position(suite, settings, model_files.tokenizer_of(subject.spec))
    asked, instruct = subject.on("instruct"), subject.instruct
    if asked and instruct is not None and _is_here(instruct):
        yield chat_prompt(asked, model_files.tokenizer_of(instruct))


def word_position(suite: str, settings: Any, tokenizer: Any) -> Check:
    """Absorption reads the word's activations at one position, counted from the prompt's end.

    sae_bench 0.6.0 does not check that the word stands there (`evals/absorption/eval_config.py`:
    "double-check token_pos matches prompting_template for other tokenizers").
    """
    template, position = settings.prompt_template, settings.prompt_token_pos
    try:
        template.format(word="")
    except (LookupError, ValueError, AttributeError) as error:
        message = f"suites.{suite}.prompt_template={template!r}: is no template: {error}"
        fix = "`{word}` where the word goes, and no other braces"
        return Check("word position", "fail", message, fix, (suite,))
    words = _words(tokenizer)
    if not words:
        message = f"suites.{suite}: the tokenizer has no words of letters"
        return Check("word position", "fail", message, "leave the suite out", (suite,))
    wrong = [w for w in words if not _is_at(tokenizer, template, w, position)]
    if len(wrong) <= WRONG * len(words):
        share = f"{len(words) - len(wrong)} of {len(words)} words"
        return Check("word position", "pass", f"{suite}: {share} stand at token {position}")
    example = template.format(word=wrong[0])
    right = _position(tokenizer, template, words)
    message = (
        f"suites.{suite}.prompt_token_pos={position}: in {example!r} that is "
        f"{_token_at(tokenizer, example, position)!r} ({len(wrong)} of {len(words)} words)"
    )
    fix = f"`prompt_token_pos: {right}`" if right else "another prompt_template"
    return Check("word position", "fail", message, fix, (suite,))


def chat_prompt(suites: tuple[str, ...], tokenizer: Any) -> Check:
    """Questions are asked in the model's chat format, with one BOS, and answered by one letter."""
    try:
        prompt = chat.question(tokenizer, "About x.\n", "Which?", "abcd", (0, 1, 2, 3))
        n_tokens = len(chat.prompt_ids(tokenizer, prompt))
        letters = sum(map(len, chat.answer_ids(tokenizer)))
    except UserError as error:
        return Check("chat prompt", "fail", str(error), "another instruct model", suites)
    message = f"{n_tokens} tokens for a short question, {letters} tokens mean A, B, C, D"
    return Check("chat prompt", "pass", message)


def _words(tokenizer: Any) -> list[str]:
    """Words that are one token, with the space before them, evenly spread over the vocabulary."""
    decoded = (tokenizer.convert_tokens_to_string([t]) for t in sorted(tokenizer.get_vocab()))
    words = [w for w in decoded if w.strip().isascii() and w.strip().isalpha()]
    words = [w for w in words if len(w.strip()) > 1 and w.strip() == w.lstrip()]
    return list(islice(words, 0, None, max(1, len(words) // WORDS)))


def _is_at(tokenizer: Any, template: str, word: str, position: int) -> bool:
    """Whether the whole word, with or without the space before it, is the token there."""
    return _token_at(tokenizer, template.format(word=word), position).strip() == word.strip()


def _token_at(tokenizer: Any, prompt: str, position: int) -> str:
    """The text of one token of the last line of a prompt."""
    ids = tokenizer(f"\n{prompt}", add_special_tokens=False)["input_ids"]
    if not -len(ids) <= position < len(ids):
        return ""
    return tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens([ids[position]]))


def _position(tokenizer: Any, template: str, words: list[str]) -> int | None:
    """Where nearly all words stand, counted from the end; None if there is no such place."""
    for position in range(-1, -33, -1):
        wrong = sum(not _is_at(tokenizer, template, w, position) for w in words)
        if wrong <= WRONG * len(words):
            return position
    return None


def _is_here(spec: ModelSpec) -> bool:
    return not {"tokenizer", model_files.CONFIG} & set(model_files.missing(spec))
