"""Prompts for instruct models of any family, written by the tokenizer's own chat template.

For Gemma-2 this is character for character what sae_bench 0.6.0 has hard-coded
(`evals/unlearning/utils/var.py: GEMMA_INST_FORMAT`), and all that it has.
"""

from collections.abc import Sequence
from typing import Any

from bench.errors import UserError

LETTERS = "ABCD"
SLOT = "THE-WORDS-OF-THE-USER"
ANSWER = "Answer: ("
"""How sae_bench starts the model's turn."""


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer says how a conversation is written."""
    return bool(tokenizer.chat_template)


def turn(tokenizer: Any, text: str, answer: str = "") -> str:
    """What a user says, and the model's turn as far as `answer`; BOS included where there is one.

    Raises UserError if the tokenizer has no chat template, or one that does not keep the text.
    """
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not has_template(tokenizer):
        raise UserError(f"tokenizer {name!r}: has no chat template, so nothing can be asked")
    message = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    if text.strip() not in prompt:
        raise UserError(f"tokenizer {name!r}: its chat template loses what the user says")
    return prompt + answer


def prompt_format(tokenizer: Any) -> str:
    """The template's text around a user's words, for `str.format(prompt=...)`.

    It takes the place of sae_bench's GEMMA_INST_FORMAT, and has exactly one BOS where the model has
    one. Raises UserError as `turn` does.
    """
    before, _, after = turn(tokenizer, SLOT).partition(SLOT)
    bos = tokenizer.bos_token
    if bos and bos not in before:
        before = bos + before  # a template may leave it to the tokenizer
    if bos and (before + after).count(bos) != 1:
        raise UserError(f"chat template: writes {(before + after).count(bos)} BOS, not one")
    return f"{_escaped(before)}{{prompt}}{_escaped(after)}"


def question(
    tokenizer: Any, subject: str, text: str, choices: Sequence[str], order: Sequence[int]
) -> str:
    """A multiple-choice question in sae_bench's words, the choices in this order.

    `subject` is the line that it puts first, with its end of line.
    """
    lines = [f"\n{letter}. {choices[i]}" for letter, i in zip(LETTERS, order, strict=True)]
    return turn(tokenizer, "".join([subject, text, *lines]), ANSWER)


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a rendered prompt, with one BOS where the model has one.

    Raises UserError for more: a template that writes BOS and a tokenizer that adds it again.
    """
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    if bos is not None and ids.count(bos) != 1:
        raise UserError(f"prompt {prompt[:40]!r}: has {ids.count(bos)} BOS tokens, not one")
    return ids


def answer_ids(tokenizer: Any) -> list[list[int]]:
    """The tokens that mean A, B, C and D: the bare letter, and after a space where that is one.

    Raises UserError if a letter is not one token of its own.
    """
    found = [_single(tokenizer, letter) + _single(tokenizer, f" {letter}") for letter in LETTERS]
    for letter, ids in zip(LETTERS, found, strict=True):
        if not ids:
            raise UserError(f"answer {letter!r}: is not one token of this tokenizer")
    if len({i for ids in found for i in ids}) != sum(map(len, found)):
        raise UserError("answers A, B, C, D: share a token, so they cannot be told apart")
    return found


def _escaped(text: str) -> str:
    """Braces doubled, as `str.format` wants them."""
    return text.replace("{", "{{").replace("}", "}}")


def _single(tokenizer: Any, text: str) -> list[int]:
    """Its id if it is one token, else nothing."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else []
