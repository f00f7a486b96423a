"""Prompts come from the tokenizer's template, and for Gemma equal sae_bench's own text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench import chat
from bench.errors import UserError

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
"""As published with google/gemma-2-2b-it, tokenizer_config.json."""
LLAMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start|>' + message['role'] + '<|end|>\n\n' "
    "+ message['content'] | trim + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
SPECIAL = ["<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>"]


def tokenizer(template: str | None = GEMMA, *, bos: str | None = "<bos>"):
    """Letters as tokens, bare and after a space, with a chat template."""
    words = [*SPECIAL, "\n", ":", "(", "Answer", *"ABCD", *(f" {letter}" for letter in "ABCD")]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    made = Tokenizer(model)
    from tokenizers import Regex

    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\s|[^\w\s]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token=bos,
        extra_special_tokens=SPECIAL[2:],
        chat_template=template,
    )


TOKENIZER = tokenizer()
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30)


@settings(deadline=None)  # the first example imports sae_bench
@given(text=TEXT, choices=st.tuples(TEXT, TEXT, TEXT, TEXT), order=st.permutations(range(4)))
def test_gemmas_prompt_is_that_of_sae_bench(text, choices, order):
    from sae_bench.evals.unlearning.utils.metrics import PRE_WMDP_BIO, convert_wmdp_data_to_prompt

    theirs = convert_wmdp_data_to_prompt(
        text, choices, prompt_format="GEMMA_INST_FORMAT", permute_choices=order
    )
    last = choices[order[-1]]
    ours = chat.question(TOKENIZER, PRE_WMDP_BIO, text, choices, order)
    if last == last.rstrip() and last:  # the template trims what the user says, sae_bench does not
        assert ours == theirs
    form = chat.prompt_format(TOKENIZER)
    words = theirs.removesuffix("<end_of_turn>\n<start_of_turn>model\nAnswer: (")
    words = words.removeprefix("<bos><start_of_turn>user\n")
    assert form.format(prompt=words) + chat.ANSWER == theirs


def test_gemmas_format_is_the_constant_of_sae_bench():
    from sae_bench.evals.unlearning.utils.var import GEMMA_INST_FORMAT

    assert chat.prompt_format(TOKENIZER) == GEMMA_INST_FORMAT


def test_another_familys_prompt_is_its_own():
    form = chat.prompt_format(tokenizer(LLAMA))
    assert form.format(prompt="Q") == (
        "<bos><|start|>user<|end|>\n\nQ<|eot|><|start|>assistant<|end|>\n\n"
    )


def test_braces_of_a_template_survive():
    form = chat.prompt_format(tokenizer("{{ bos_token }}{{ '{' }}{{ messages[0]['content'] }}"))
    assert form.format(prompt="Q") == "<bos>{Q"


@pytest.mark.parametrize("template", ["{{ messages[0]['content'] }}", LLAMA])
def test_a_prompt_has_exactly_one_bos(template):
    own = tokenizer(template)
    prompt = chat.prompt_format(own).format(prompt="A")
    assert prompt.count("<bos>") == 1
    assert chat.prompt_ids(own, prompt).count(own.bos_token_id) == 1


def test_two_bos_are_refused():
    double = tokenizer("{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}")
    with pytest.raises(UserError, match="writes 2 BOS, not one"):
        chat.prompt_format(double)
    with pytest.raises(UserError, match="has 2 BOS tokens, not one"):
        chat.prompt_ids(double, "<bos><bos>A")


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(UserError, match="has no chat template"):
        chat.turn(tokenizer(None), "Q")


def test_a_template_that_drops_what_the_user_says_is_refused():
    with pytest.raises(UserError, match="loses what the user says"):
        chat.turn(tokenizer("{{ bos_token }}hello"), "Q")


def test_answers_are_the_letters_bare_and_after_a_space():
    found = chat.answer_ids(TOKENIZER)
    words = TOKENIZER.convert_ids_to_tokens([i for ids in found for i in ids])
    assert words == ["A", " A", "B", " B", "C", " C", "D", " D"]


def test_a_letter_that_is_no_token_is_refused():
    own = tokenizer()
    own.backend_tokenizer.model = models.WordLevel({"<unk>": 0, "B": 1}, unk_token="<unk>")
    with pytest.raises(UserError, match=re.escape("answer 'A': is not one token")):
        chat.answer_ids(own)
