"""Sizes of models and the memory estimate, against the models themselves and closed forms."""

from dataclasses import replace

import pytest
import torch
from tiny import HOOK, pair

from bench import memory
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.models import load_model, resolve
from bench.shapes import GEMMA_2_2B, shape_of

CONFIG = RunConfig(
    name="gemma",
    model="gemma-2-2b",
    hook_name="blocks.12.hook_resid_post",
    train=TrainConfig(d_sae=16_384, tokens=500_000_000, context_size=1024),
    variants=(VariantConfig("topk"),),
    dtype="bfloat16",
)


def test_sizes_of_a_local_model_are_those_of_the_loaded_one():
    spec = pair()[0]
    shape, cfg = shape_of(spec), load_model(spec).cfg
    assert shape is not None
    assert (shape.d_model, shape.n_layers, shape.n_heads) == (24, cfg.n_layers, cfg.n_heads)
    assert (shape.n_key_value_heads, shape.d_head) == (cfg.n_key_value_heads, cfg.d_head)
    assert (shape.d_mlp, shape.d_vocab, shape.n_ctx) == (cfg.d_mlp, cfg.d_vocab, cfg.n_ctx)
    assert shape.rotary_dim == cfg.rotary_dim


def test_weights_are_counted_as_in_the_loaded_model():
    shape, model = shape_of(pair()[0]), load_model(pair()[0])
    assert shape is not None
    matrices = [p.numel() for name, p in model.blocks[0].named_parameters() if "W_" in name]
    assert shape.layer_params == sum(matrices)
    assert shape.vocab_params == model.embed.W_E.numel()


def test_the_table_has_gemma_as_published():
    from transformers import Gemma2Config

    theirs = Gemma2Config()  # whose defaults are the 2B model
    assert shape_of(resolve("gemma-2-2b")) == GEMMA_2_2B
    assert GEMMA_2_2B.d_model == theirs.hidden_size
    assert GEMMA_2_2B.n_layers == theirs.num_hidden_layers
    assert GEMMA_2_2B.d_mlp == theirs.intermediate_size
    assert GEMMA_2_2B.d_vocab == theirs.vocab_size
    assert GEMMA_2_2B.n_ctx == theirs.max_position_embeddings
    n = GEMMA_2_2B.n_layers * GEMMA_2_2B.layer_params + GEMMA_2_2B.vocab_params
    assert n == pytest.approx(2.614e9, rel=1e-3)  # "Gemma 2", arXiv:2408.00118, table 2


def test_every_model_of_the_table_has_sizes_that_agree_with_it():
    from bench.models import MODELS

    for spec in MODELS.values():
        shape = shape_of(spec)
        assert shape is not None, spec.name
        assert (shape.d_model, shape.n_layers) == (spec.d_model, spec.n_layers)


def test_a_folder_without_a_config_has_no_sizes(tmp_path):
    assert shape_of(replace(pair()[0], source=str(tmp_path))) is None


@pytest.mark.parametrize(
    ("hook", "width"),
    [
        (HOOK, 24),
        ("blocks.0.mlp.hook_post", 48),
        ("blocks.0.hook_attn_out", 24),
        ("blocks.0.attn.hook_z", None),
    ],
)
def test_widths_are_those_of_the_hooks(hook, width):
    from bench.reader import activations

    shape, model = shape_of(pair()[0]), load_model(pair()[0])
    assert shape is not None and shape.width(hook) == width
    if width is not None:
        assert activations(model, hook, torch.tensor([[2, 50, 60]])).shape == (1, 3, width)


def test_the_parts_follow_from_the_config():
    one, two = (memory.estimate(CONFIG, GEMMA_2_2B, n) for n in (1, 2))
    n_params = 2 * 2304 * 16_384 + 16_384 + 2304
    assert two.saes - one.saes == 16 * n_params  # weights, gradient and two moments in float32
    assert (one.step, one.buffer) == (two.step, two.buffer)
    # 13 of 26 layers and one embedding, two bytes a weight
    assert one.language_model == pytest.approx(3.2e9, rel=0.1)
    small = replace(CONFIG, train=replace(CONFIG.train, buffer_tokens=2**18))
    freed = one.buffer - memory.estimate(small, GEMMA_2_2B, 1).buffer
    assert freed == 2**18 * 2304 * 2
    assert one.total == sum(
        [one.language_model, one.reading, one.buffer, one.saes, one.step, one.base]
    )


def test_a_pass_of_the_model_has_about_as_many_tokens_whatever_the_context():
    assert [memory.contexts_per_pass(size) for size in (128, 1024, 8192)] == [32, 4, 1]


def test_available_memory_is_told():
    free = memory.available("cpu")
    assert free is None or free > 10**8
