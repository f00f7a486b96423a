"""matryoshka against SAELens's MatryoshkaBatchTopKTrainingSAE, and numbers worked out by hand."""

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make, set_weights
from twins import assert_saelens_agrees, assert_same_gradients, saelens_step

from bench.train import train_one
from bench.variant import Batch
from variants.batch_topk import BatchTopK
from variants.matryoshka import Matryoshka


def saelens_twin(sae, coefficient):
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )

    cfg = MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        k=sae.cfg.k,
        aux_loss_coefficient=coefficient,
        matryoshka_widths=list(sae.widths),
    )
    twin = MatryoshkaBatchTopKTrainingSAE(cfg)
    weights = {n: v for n, v in sae.state_dict().items() if n != "threshold"}
    twin.load_state_dict(weights, strict=False)
    return twin


@pytest.mark.parametrize("dead", [[], list(range(0, D_SAE, 2))], ids=len)
def test_losses_and_gradients_equal_saelens(dead):
    groups = (1 / 6, 1 / 3, 1 / 2)
    sae = make(Matryoshka, k=3, groups=groups, auxk_coef=0.5, auxk_relu=False)
    set_weights(sae, b_enc=torch.linspace(-0.3, 0.3, D_SAE), b_dec=torch.full((D_IN,), 0.1))
    x, step, twin = activations(64), at(dead=dead), saelens_twin(sae, 0.5)
    assert sae.widths == [4, 12, 24]
    theirs = saelens_step(twin, x, step)
    ours = sae.losses(Batch(x), step)
    torch.testing.assert_close(ours["reconstruction"], theirs.losses["mse_loss"])
    torch.testing.assert_close(ours["first_4"], theirs.losses["inner_mse_loss_4"])
    torch.testing.assert_close(ours["first_12"], theirs.losses["inner_mse_loss_12"])
    torch.testing.assert_close(ours["auxk"], theirs.losses["auxiliary_reconstruction_loss"])
    sum(ours.values()).backward()
    assert_same_gradients(sae, twin)


def test_numbers_by_hand():
    sae = make(Matryoshka, d_in=2, d_sae=2, k=2, groups=(0.5, 0.5))
    set_weights(sae, W_enc=torch.eye(2), W_dec=torch.eye(2))
    losses = sae.losses(Batch(torch.tensor([[3.0, 2.0]])), at(2))
    assert losses["reconstruction"].item() == 0
    assert losses["first_1"].item() == 4  # the second component is left to the second latent


def test_one_level_is_batch_topk_bit_for_bit():
    stream = FakeStream(n_steps=60)
    saes = [make(Matryoshka, k=3, groups=(1.0,)), make(BatchTopK, k=3)]
    for sae in saes:
        train_one(sae, stream)
    first, second = (sae.state_dict() for sae in saes)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_first_latents_alone_explain_more_than_those_of_batch_topk(tmp_path):
    stream, errors = FakeStream(n_steps=200), {}
    for variant, config in ((Matryoshka, {"groups": (0.25, 0.75)}), (BatchTopK, {})):
        sae = make(variant, k=4, **config)
        assert train_one(sae, stream).stop_reason is None
        f = sae.encode(stream.x)
        assert (f > 0).sum().item() == 4 * len(stream.x)
        f[:, D_SAE // 4 :] = 0
        errors[variant] = (stream.x - sae.decode(f)).pow(2).sum().item()
        if variant is Matryoshka:
            assert_saelens_agrees(sae, stream.x, tmp_path)
    assert errors[Matryoshka] < 0.7 * errors[BatchTopK]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"k": 0.0}, "k=0.0"),
        ({"groups": (0.5, 0.6)}, "groups=.*sum to 1"),
        ({"groups": (1.5, -0.5)}, "groups=.*above 0"),
        ({"auxk_coef": -1.0}, "auxk_coef=-1.0"),
    ],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Matryoshka.Config(**config)


def test_levels_that_d_sae_cannot_have_are_refused():
    with pytest.raises(ValueError, match=r"levels \[0, 4\] of d_sae=4"):
        make(Matryoshka, d_sae=4, k=1, groups=(0.01, 0.99))
