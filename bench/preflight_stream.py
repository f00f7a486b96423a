"""What the activation stream would refuse, told before a model is loaded."""

from collections.abc import Iterator

from bench import registry
from bench.config import RunConfig
from bench.errors import UserError
from bench.models import ModelSpec
from bench.pilot import FACTORS
from bench.shapes import Shape, shape_of
from bench.texts import is_file, text_size

GB = 1e9


def problems(config: RunConfig, spec: ModelSpec) -> Iterator[str]:
    """One line per reason why training could not start.

    A model whose sizes are not known beforehand is checked when it is loaded, also before training.
    """
    yield from _text(config)
    shape = shape_of(spec)
    if shape is not None:
        yield from _model(config, spec, shape)


def _text(config: RunConfig) -> Iterator[str]:
    """A file that is not there, or in which even one byte per token would be too little."""
    train = config.train
    if not is_file(train.dataset):
        return
    try:
        n_bytes = text_size(train.dataset)
    except UserError as error:
        yield str(error)
        return
    wanted = train.tokens + train.heldout_tokens
    is_packed = train.dataset.endswith(".parquet")  # its bytes say little about its text
    if n_bytes == 0 or (n_bytes < wanted and not is_packed):
        yield (
            f"train.dataset={train.dataset!r}: has {n_bytes} bytes for the {wanted} tokens of "
            "train.tokens and train.heldout_tokens; lower them"
        )


def _model(config: RunConfig, spec: ModelSpec, shape: Shape) -> Iterator[str]:
    size, width = config.train.context_size, shape.width(config.hook_name)
    if size > shape.n_ctx:
        yield f"train.context_size={size}: exceeds the {shape.n_ctx} of model {spec.name!r}"
    if width is None:
        yield (
            f"hook_name={config.hook_name!r}: is no hook of model {spec.name!r} with one row per "
            "token; take hook_resid_post"
        )
    elif config.d_in not in (None, width):
        yield f"d_in={config.d_in}: {config.hook_name} of model {spec.name!r} is {width} wide"


def too_much(config: RunConfig, spec: ModelSpec, need: int, free: int) -> str:
    """That a training does not fit, with both numbers and what to lower."""
    return (
        f"train.d_sae={config.train.d_sae}: {at_once(config)} SAEs at once beside model "
        f"{spec.name!r} need {need / GB:.1f} GB, {config.device} has {free / GB:.1f} GB free; "
        "train fewer, or lower d_sae, batch_size or buffer_tokens"
    )


def at_once(config: RunConfig) -> int:
    """The most SAEs that train together: those of the run, or its pilots before.

    Raises UserError for a variant that cannot be loaded.
    """
    n_pilots = len(searches(config)) * len(FACTORS)
    return max(len(config.variants) * len(config.seeds), n_pilots)


def searches(config: RunConfig) -> set[tuple[str, str]]:
    """The variants, each with its settings, whose knob pilots have to find.

    Raises UserError for a variant that cannot be loaded.
    """
    found = set()
    for what in config.variants:
        knob = registry.load("variants", what.name, what.config).knob
        if what.target_l0 is not None and knob is not None and not knob.native:
            found.add((what.name, repr(sorted(what.config.items()))))
    return found
