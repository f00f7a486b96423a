"""The questions, as sae_bench words them, and the instruct model ready to be asked them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import chat
from bench.context import EvalContext, patched, sae_bench_on
from bench.unlearning.config import PROMPT_NAME
from bench.unlearning.grid import HAZARD, Ids, side_sets
from bench.word_deletion import without_words

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

MIN_PER_SET = 2
"""One to choose a setting on, one to measure it on; sae_bench fails on a set of none."""


class TooFewQuestions(Exception):
    """The model knows too little to be asked; says of what it knows how much."""


class Question(NamedTuple):
    """One multiple-choice question."""

    text: str
    choices: list[str]
    answer: int
    """Index of the right choice."""

    def prompt(self, dataset: str, order: Sequence[int] = (0, 1, 2, 3)) -> str:
        """sae_bench's prompt with the choices in this order."""
        from sae_bench.evals.unlearning.utils import metrics

        subject = dataset.replace("_", " ")
        hazard, benign = metrics.PRE_WMDP_BIO, metrics.PRE_QUESTION_FORMAT
        return metrics.convert_wmdp_data_to_prompt(
            self.text,
            self.choices,
            prompt_format="GEMMA_INST_FORMAT",
            permute_choices=order,
            pre_question=hazard if dataset == HAZARD else benign.format(subject=subject),
        )

    def without(self, words: frozenset[str]) -> "Question":
        """The question with these words left out of its text and choices."""
        kept = [without_words(choice, words) for choice in self.choices]
        return Question(without_words(self.text, words), kept, self.answer)


def questions(ctx: EvalContext, dataset: str) -> list[Question]:
    """Every question of a set; a question's id is its place."""
    path = "cais/wmdp" if dataset == HAZARD else "cais/mmlu"
    rows = ctx.hub.load_dataset(path, dataset, split="test")
    return [Question(row["question"], row["choices"], row["answer"]) for row in rows]


def chat_texts(ctx: EvalContext, datasets: Sequence[str]) -> list[str]:
    """Every question in the model's own chat format."""
    tokenizer: Any = ctx.model("instruct").tokenizer
    texts = []
    for name in datasets:
        for question in questions(ctx, name):
            turn = {"role": "user", "content": "\n".join([question.text, *question.choices])}
            texts.append(tokenizer.apply_chat_template([turn], tokenize=False))
    return texts


@contextmanager
def asked(ctx: EvalContext) -> Iterator["HookedTransformer"]:
    """The instruct model as sae_bench wants it: under a name that it knows, in its own format.

    sae_bench picks the prompt by `cfg.model_name` and refuses names without "it" in them. The
    prompt it picks is Gemma's; here the model's own chat template stands in its place. Raises
    UserError for a tokenizer without one.
    """
    from sae_bench.evals.unlearning.utils import metrics

    with sae_bench_on(ctx, "instruct") as model:
        own = chat.prompt_format(model.tokenizer)
        with (
            patched(metrics, "GEMMA_INST_FORMAT", own),
            patched(model.cfg, "model_name", PROMPT_NAME),
        ):
            yield model


def check_enough(ids: Ids, needed: int) -> None:
    """Raise TooFewQuestions unless there are `needed` on the hazard, and on all else together.

    It is raised before the long part; sae_bench would fail on an empty batch after it.
    """
    n_side = sum(len(ids[name]) for name in side_sets(ids))
    wanted = [(HAZARD, len(ids[HAZARD]), needed), ("benign sets together", n_side, needed)]
    wanted += [(name, len(found), MIN_PER_SET) for name, found in ids.items() if name != HAZARD]
    few = [f"{name}: {n} questions, {least} needed" for name, n, least in wanted if n < least]
    if few:
        raise TooFewQuestions(
            f"too few questions are answered right under all 24 orders: {'; '.join(few)}"
        )
