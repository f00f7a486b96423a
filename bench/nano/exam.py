"""What a nano model knows: measured after building, written into its model card."""

import itertools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bench.nano import documents, lexicon
from bench.nano.world import Question, World

if TYPE_CHECKING:
    from transformers import Gemma2ForCausalLM, PreTrainedTokenizerFast

BATCH = 256
ICL_LINES = 3


class QuizScore(NamedTuple):
    """Multiple-choice result of one subject."""

    asked: int
    right_all: int
    """Questions answered rightly under all 24 orders of their choices."""
    accuracy: float
    """Over questions and orders."""


@torch.no_grad()
def quiz_scores(
    model: "Gemma2ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    world: World,
    limit: int | None = None,
) -> dict[str, QuizScore]:
    """The first `limit` questions (None: all) of each subject under all 24 orders, as chats."""
    scores = {}
    for domain, known in world.questions.items():
        questions = known[:limit]
        prompts, answers = [], []
        for question in questions:
            for order in itertools.permutations(range(len(question.choices))):
                prompts.append(chat_prompt(domain, question, order))
                answers.append(order.index(question.answer))
        right = _letters(model, tokenizer, prompts) == torch.tensor(answers)
        by_question = right.view(len(questions), -1)
        scores[domain] = QuizScore(
            len(questions), int(by_question.all(1).sum()), float(right.float().mean())
        )
    return scores


def chat_prompt(domain: str, question: Question, order: Sequence[int]) -> str:
    """sae_bench's unlearning prompt for Gemma (evals/unlearning/utils/var.py), without its BOS."""
    asked = question._replace(choices=tuple(question.choices[i] for i in order))
    user = documents.quiz_header(domain) + documents.ask(asked)
    return f"<start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\nAnswer: ("


@torch.no_grad()
def spelling_accuracy(
    model: "Gemma2ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    words: Sequence[str],
    n: int = 300,
    seed: int = 3,
) -> float:
    """Share of first letters named rightly after three examples."""
    rng = random.Random(seed)
    prompts, answers = [], []
    for _ in range(n):
        text = documents.spelling(rng, words, ICL_LINES + 1).text
        prompts.append(text[: text.rindex(" ")])
        answers.append(tokenizer.convert_tokens_to_ids("\u2581" + text[-1]))
    return _accuracy(model, tokenizer, prompts, answers)


@torch.no_grad()
def recall(
    model: "Gemma2ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    world: World,
    n: int = 200,
    seed: int = 4,
) -> dict[str, float]:
    """Share of facts whose value the model names, per domain (chance 1/16 or 1/8)."""
    rng = random.Random(seed)
    shares = {}
    for domain, known in world.facts.items():
        prompts, answers = [], []
        for fact in rng.choices(known, k=n):
            spec = lexicon.DOMAINS[domain].relations[fact.relation]
            wordings = [s for s in spec.statements if s.index("{e}") < s.index("{v}")]
            text = rng.choice(wordings).format(e=fact.entity, v="{v}")
            prompts.append(text[: text.index(" {v}")])
            answers.append(tokenizer.convert_tokens_to_ids("\u2581" + fact.value))
        shares[domain] = _accuracy(model, tokenizer, prompts, answers)
    return shares


@torch.no_grad()
def text_loss(model: "Gemma2ForCausalLM", ids: Tensor) -> float:
    """Mean next-token loss in nats. ids [n, T]."""
    total = 0.0
    for rows in ids.split(BATCH // 8):
        total += float(model(input_ids=rows, labels=rows, use_cache=False).loss) * len(rows)
    return total / len(ids)


def _accuracy(
    model: "Gemma2ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[str],
    answers: Sequence[int],
) -> float:
    best = _last_logits(model, tokenizer, prompts).argmax(-1)
    return float((best == torch.tensor(answers)).float().mean())


def _letters(
    model: "Gemma2ForCausalLM", tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[str]
) -> Tensor:
    """Index of the likeliest of A to D after each prompt, with or without a space, as sae_bench."""
    marks = [m + c for m in ("", "\u2581") for c in documents.LIST_LETTERS]
    columns = torch.tensor(tokenizer.convert_tokens_to_ids(marks))
    logits = _last_logits(model, tokenizer, prompts)[:, columns]
    return logits.view(len(prompts), 2, -1).amax(1).argmax(-1)


@torch.no_grad()
def _last_logits(
    model: "Gemma2ForCausalLM", tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[str]
) -> Tensor:
    """Logits [n, vocabulary] after the last token of each prompt."""
    found = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(list(prompts[start : start + BATCH]), padding=True, return_tensors="pt")
        last = batch["attention_mask"].sum(1) - 1
        hidden = model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        found.append(model.lm_head(hidden[torch.arange(len(last)), last]))
    return torch.cat(found)
