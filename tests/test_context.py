"""sae_bench gets our model, data and seed for the time of a call, and leaves no trace."""

import importlib
import os
import random

import numpy as np
import pytest
import torch

from bench import context
from bench.context import LOAD_DATASET, patched, sae_bench_on
from bench.errors import UserError
from tests import tiny


def global_state():
    return (
        random.random.__self__.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        os.getcwd(),
        [importlib.import_module(name).load_dataset for name in LOAD_DATASET],
    )


def test_nothing_global_survives_the_block(tmp_path):
    from transformer_lens import HookedTransformer

    loader = HookedTransformer.__dict__["from_pretrained_no_processing"]
    ctx = tiny.context(tmp_path)
    before = global_state()
    with pytest.raises(ZeroDivisionError):
        disturb_and_fail(ctx)
    assert global_state() == before
    assert HookedTransformer.__dict__["from_pretrained_no_processing"] is loader


def disturb_and_fail(ctx):
    with sae_bench_on(ctx, "base"):
        torch.set_grad_enabled(False)
        random.random(), np.random.rand(), torch.rand(1)
        raise ZeroDivisionError


def test_inside_the_block_sae_bench_reads_our_data_and_model(tmp_path):
    from transformer_lens import HookedTransformer

    ctx = tiny.context(tmp_path)
    with sae_bench_on(ctx, "instruct") as model:
        assert os.getcwd() == str(ctx.work)
        for name in LOAD_DATASET:
            rows = importlib.import_module(name).load_dataset("fancyzhx/ag_news", split="test")
            assert set(rows[0]) == {"text", "label"}
        loaded = HookedTransformer.from_pretrained_no_processing("anything", dtype="float32")
    assert loaded is model is ctx.model("instruct")
    assert loaded is not ctx.model("base")


def test_every_block_starts_from_the_same_seed(tmp_path):
    draws = []
    for _ in range(2):
        with sae_bench_on(tiny.context(tmp_path), "base"):
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_a_model_comes_back_without_hooks(tmp_path):
    ctx = tiny.context(tmp_path)
    ctx.model("base").add_hook(tiny.HOOK, lambda x, hook: x * 0)
    assert not ctx.model("base").hook_dict[tiny.HOOK].fwd_hooks


def test_a_pair_is_checked_before_the_instruct_model_is_loaded(tmp_path, monkeypatch):
    def refuse(base, instruct):
        raise UserError(f"{base.name} and {instruct.name}")

    monkeypatch.setattr(context, "check_pair", refuse)
    ctx = tiny.context(tmp_path)
    ctx._models.clear()
    with pytest.raises(UserError, match="nano and nano-it"):
        ctx.model("instruct")


def test_l0_is_taken_from_training_or_measured(tmp_path):
    ctx = tiny.context(tmp_path)
    assert context.l0(ctx, tiny.handle("known", l0=7.5)) == 7.5
    assert context.l0(ctx, tiny.handle("dead", tiny.make_sae(b_enc=-100.0))) == 0
    # half of all random latents are positive
    assert 20 < context.l0(ctx, tiny.handle("random")) < 44


class Thing:
    """A class with and without the attribute on its instance."""

    @classmethod
    def name(cls):
        return "original"


def test_patched_puts_back_class_and_instance_attributes():
    thing = Thing()
    with patched(thing, "name", lambda: "patched"):
        assert thing.name() == "patched"
    assert "name" not in vars(thing)
    with patched(Thing, "name", classmethod(lambda cls: "patched")):
        assert thing.name() == "patched"
    assert thing.name() == "original"
