"""Whether an SAE of a base model means anything on its instruct sibling.

It does only where both models have the same residual stream, layers and tokens. Only configs and
tokenizers are read.
"""

from collections.abc import Iterator

from bench.errors import UserError
from bench.model_files import FACTS, facts, tokenizer_of
from bench.models import ModelSpec, siblings
from bench.result import SaeInfo
from bench.shapes import shape_of

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


def check_trained_on(sae: SaeInfo, spec: ModelSpec) -> None:
    """Raise UserError unless an SAE is of the run's model or its sibling, with a hook they have."""
    known = [sibling.name for sibling in siblings(spec)]
    if sae.model not in known:
        raise UserError(
            f"SAE {sae.label!r}: was trained on {sae.model!r}, and is only evaluated there or on "
            f"its sibling, not on {', '.join(known)}"
        )
    if spec.n_layers is not None:
        for problem in hook_problems(sae.hook_name, spec.n_layers):
            raise UserError(f"SAE {sae.label!r}: {problem}")
    shape = shape_of(spec)
    width = shape.width(sae.hook_name) if shape else None
    if None not in (width, sae.d_in) and width != sae.d_in:
        raise UserError(
            f"SAE {sae.label!r}: is {sae.d_in} wide, {sae.hook_name} of {spec.name} is {width}"
        )


def hook_problems(hook_name: str, n_layers: int) -> Iterator[str]:
    """Why a hook is none of a model with so many layers."""
    parts = hook_name.split(".")
    if len(parts) < 3 or parts[0] != "blocks" or not parts[1].isdigit():
        yield f"hook_name={hook_name!r}: must look like blocks.2.hook_resid_post"
    elif int(parts[1]) >= n_layers:
        yield f"hook_name={hook_name!r}: the models have layers 0 to {n_layers - 1}"
