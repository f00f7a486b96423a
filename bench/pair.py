"""Whether an SAE of a base model means anything on its instruct sibling.

It does only where both models have the same residual stream, layers and tokens. Only configs and
tokenizers are read.
"""

from collections.abc import Iterator

from bench.model_files import FACTS, facts, tokenizer_of
from bench.models import ModelSpec

NAMES = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "vocab_size": "vocab_size"}


def differences(
    base: ModelSpec, instruct: ModelSpec, hook_name: str | None = None
) -> Iterator[str]:
    """Everything that forbids the transfer, the plainest first, with both values.

    Kinds as declared, width, layers, vocabulary size and map, the hook and the chat template.
    Raises UserError if the files of either are missing.
    """
    if instruct.kind != "instruct":
        yield f"{instruct.name!r} is declared {instruct.kind!r}, not 'instruct'"
    one, other = facts(base), facts(instruct)
    for field in FACTS:
        if one[field] != other[field]:
            yield f"{NAMES[field]} differs, {one[field]} and {other[field]}"
    if hook_name is not None:
        yield from hook_problems(hook_name, min(m["num_hidden_layers"] for m in (one, other)))
    tokenizer = tokenizer_of(instruct)
    if tokenizer_of(base).get_vocab() != tokenizer.get_vocab():
        yield "their tokenizers map tokens to different ids"
    if not tokenizer.chat_template:
        yield f"the tokenizer of {instruct.name!r} has no chat template"


def hook_problems(hook_name: str, n_layers: int) -> Iterator[str]:
    """Why a hook is none of a model with so many layers."""
    parts = hook_name.split(".")
    if len(parts) < 3 or parts[0] != "blocks" or not parts[1].isdigit():
        yield f"hook_name={hook_name!r}: must look like blocks.2.hook_resid_post"
    elif int(parts[1]) >= n_layers:
        yield f"hook_name={hook_name!r}: the models have layers 0 to {n_layers - 1}"
