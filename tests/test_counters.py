"""Work is counted where it is done, whoever asks for it, and only while somebody counts."""

import pytest

from bench.counters import Work, counting
from tests import tiny


@pytest.fixture(scope="module")
def model():
    from bench.models import load_model

    return load_model(tiny.pair()[0])


def test_tokens_are_counted_per_block_and_only_where_logits_are_made(model):
    import torch

    tokens = torch.full((2, 5), 7)
    with counting([model]) as work:
        model.reset_hooks()  # as sae_bench does, which must not end the count
        model(tokens)
        resid = model(tokens, stop_at_layer=1)
        model(resid, start_at_layer=2, stop_at_layer=3)
    assert work == Work(lm_block_tokens=10 * 3 + 10 + 10, unembed_tokens=10)
    model(tokens)
    assert work.unembed_tokens == 10
    assert not model.blocks[0]._forward_pre_hooks


def test_an_sae_is_counted_in_every_shape_and_left_as_it_was():
    import torch

    sae = tiny.make_sae()
    with counting(saes=[sae]) as outer:
        sae.decode(sae.encode(torch.zeros(2, 5, tiny.D_MODEL)))
        with counting(saes=[sae]) as inner:
            sae(torch.zeros(3, tiny.D_MODEL))
        sae.encode(torch.zeros(1, tiny.D_MODEL))
    assert inner == Work(sae_encoded_tokens=3, sae_decoded_tokens=3)
    assert outer == Work(sae_encoded_tokens=14, sae_decoded_tokens=13)
    assert {"encode", "decode"}.isdisjoint(vars(sae))


def test_probes_are_counted_however_they_are_fitted():
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression.fit
    with counting() as work:
        LogisticRegression().fit(np.eye(2), [0, 1])
        weight = torch.ones(1, requires_grad=True)
        for optimiser in (torch.optim.Adam([weight]), torch.optim.SGD([weight])):
            weight.sum().backward()
            optimiser.step()
    assert work == Work(probe_fits=1, probe_steps=2)
    assert LogisticRegression.fit is fit


def test_what_was_shared_is_told_apart_in_the_record():
    own, shared = Work(unembed_tokens=3), Work(unembed_tokens=40)
    recorded = own.recorded(shared)
    assert recorded["unembed_tokens"] == 3
    assert recorded["shared_unembed_tokens"] == 40
    assert set(own.recorded()) == {name for name in recorded if not name.startswith("shared_")}
