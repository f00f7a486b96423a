"""How much memory a training takes, told before it starts.

An estimate of the largest parts; what it leaves out (code, allocator, optimiser scratch) is the
`BASE_BYTES`. A slow test holds it against the memory that true shapes took.
"""

from dataclasses import astuple, dataclass
from pathlib import Path

from bench.config import RunConfig
from bench.shapes import Shape
from bench.validate import parse_hook

FLOAT = 4
"""Bytes of a float32, in which SAEs are trained."""
BYTES = {"float32": 4, "bfloat16": 2}
COPIES = 4
"""Of each SAE's weights: themselves, the gradient and Adam's two moments."""
TEMPORARIES = 6
"""[batch_size, d_sae] matrices that live at once in one SAE's step: its feature acts before and
behind the activation function, what autograd keeps of them, and their gradients."""
LM_TEMPORARIES = 6
"""Matrices of attention scores, and of MLP acts, that live at once in the language model."""
BASE_BYTES = 10**9
"""Python, torch and what else is loaded."""
TOKENS_PER_PASS = 4096
"""Tokens that the language model reads at a time."""
SAMPLE_TOKENS = 16_384
"""Tokens from which the input scale, the mean and the variants' start are taken."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they hold."""

    language_model: int
    """Weights up to the hook's layer."""
    reading: int
    """What the model computes of one group of contexts."""
    buffer: int
    """Activations that wait to be mixed, the held-out split and the sample."""
    saes: int
    """Weights, gradients and moments of all SAEs that train at once."""
    step: int
    """What a step of one SAE computes."""
    base: int = BASE_BYTES

    @property
    def total(self) -> int:
        return sum(astuple(self))


def estimate(config: RunConfig, shape: Shape, n_saes: int) -> Estimate:
    """What training `n_saes` SAEs at once takes on the device of the run."""
    train, size = config.train, BYTES[config.dtype]
    d_in = shape.width(config.hook_name) or shape.d_model
    layer, _ = parse_hook(config.hook_name)
    n_tokens = min(train.tokens, max(train.buffer_tokens, 4 * train.batch_size))
    sae = 2 * d_in * train.d_sae + train.d_sae + d_in
    return Estimate(
        language_model=_weights(shape, layer + 1, size),
        reading=_reading(shape, train.context_size, size),
        buffer=(n_tokens + TOKENS_PER_PASS) * d_in * size
        + (train.heldout_tokens + SAMPLE_TOKENS) * d_in * FLOAT,
        saes=n_saes * COPIES * sae * FLOAT,
        step=TEMPORARIES * train.batch_size * train.d_sae * FLOAT + sae * FLOAT,
    )


def needed(config: RunConfig, shape: Shape, n_saes: int) -> int:
    """Bytes at the worst moment: in training, or before it when the model is loaded."""
    return max(estimate(config, shape, n_saes).total, loading(shape, config.dtype))


def loading(shape: Shape, dtype: str) -> int:
    """Bytes while the model is loaded: Hugging Face's copy and TransformerLens's, whole."""
    return 2 * _weights(shape, shape.n_layers, BYTES[dtype]) + shape.vocab_params * BYTES[dtype]


def contexts_per_pass(context_size: int) -> int:
    """Contexts that the model reads at a time."""
    return max(1, TOKENS_PER_PASS // context_size)


def available(device: str) -> int | None:
    """Free bytes of memory on a device; None where they cannot be told."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines}
    return int(kilobytes["MemAvailable"]) * 1024 if "MemAvailable" in kilobytes else None


def _weights(shape: Shape, n_layers: int, size: int) -> int:
    rotary = 2 * shape.n_ctx * shape.rotary_dim * FLOAT  # sines and cosines of each layer
    return shape.vocab_params * size + n_layers * (shape.layer_params * size + rotary)


def _reading(shape: Shape, context_size: int, size: int) -> int:
    n_contexts = contexts_per_pass(context_size)
    scores = n_contexts * shape.n_heads * context_size**2
    mlp = n_contexts * context_size * shape.d_mlp
    return LM_TEMPORARIES * max(scores, mlp) * size
