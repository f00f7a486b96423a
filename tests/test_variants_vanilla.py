"""vanilla against a literal loop over its definition, and a number worked out by hand."""

import pytest
import torch
from training import D_SAE, FakeStream, activations, at, make, set_weights

from bench.ops import geometric_median
from bench.train import train_one
from bench.variant import Batch
from variants.vanilla import RESAMPLED_ENCODER_NORM, Vanilla


@torch.no_grad()
def literal_losses(sae, x):
    """Mean of the error's norm (or its square), and of the sum of f, token by token."""
    errors, squares, l1 = [], [], []
    for token in x:
        f = [
            max(0.0, float((token - sae.b_dec) @ sae.W_enc[:, i] + sae.b_enc[i]))
            for i in range(sae.d_sae)
        ]
        x_hat = sae.b_dec + sum(f_i * sae.W_dec[i] for i, f_i in enumerate(f))
        errors.append(float((token - x_hat).norm()))
        squares.append(float((token - x_hat).norm() ** 2))
        l1.append(sum(f))
    return [sum(values) / len(x) for values in (errors, squares, l1)]


@pytest.mark.parametrize("squared", [False, True])
def test_losses_equal_the_literal_definition(squared):
    sae, x = make(Vanilla, l1=0.3, squared=squared), activations(6)
    set_weights(sae, b_dec=torch.full((8,), 0.1), b_enc=torch.linspace(-0.2, 0.2, D_SAE))
    norm, square, l1 = literal_losses(sae, x)
    losses = sae.losses(Batch(x), at(sparsity_warmup=0.5))
    assert losses["reconstruction"].item() == pytest.approx(square if squared else norm, rel=1e-5)
    assert losses["sparsity"].item() == pytest.approx(0.5 * 0.3 * l1, rel=1e-5)


def test_a_number_by_hand():
    sae = make(Vanilla, d_in=2, d_sae=2, l1=0.1)
    set_weights(sae, W_enc=[[1.0, 0], [0, 1]], W_dec=[[0.0, 1], [1, 0]])
    losses = sae.losses(Batch(torch.tensor([[3.0, 4.0]])), at(2))  # f = (3, 4), x_hat = (4, 3)
    assert losses["reconstruction"].item() == pytest.approx(2**0.5)
    assert losses["sparsity"].item() == pytest.approx(0.7)


def test_decoder_rows_stay_unit_and_their_gradient_tangential():
    sae = make(Vanilla)
    batch = Batch(activations(32))
    sum(sae.losses(batch, at()).values()).backward()
    before = sae.W_dec.grad.clone()
    sae.after_backward(at())
    assert ((before * sae.W_dec).sum(-1).abs() > 1e-4).any()
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(-1), torch.zeros(D_SAE))
    set_weights(sae, W_dec=sae.W_dec * 3)
    sae.after_step(batch, at())
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_resampling_points_dead_latents_at_badly_reconstructed_inputs():
    sae, x = make(Vanilla), activations(40)
    set_weights(sae, b_dec=torch.full((8,), 0.05), b_enc=torch.full((D_SAE,), -1e-3))
    x[3:] = 0.05  # nothing fires and b_dec is right: only the first three inputs have an error
    alive = [i for i in range(D_SAE) if i not in (2, 7)]
    norm = sae.W_enc.norm(dim=0)[alive].mean()
    kept = sae.W_enc[:, alive].clone(), sae.W_dec[alive].clone()
    revived = []
    sae.resample(x, at(dead=[2, 7], revive=revived.append))
    candidates = torch.nn.functional.normalize(x[:3] - sae.b_dec, dim=-1)
    for i in (2, 7):
        assert (candidates @ sae.W_dec[i]).max().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(sae.W_enc[:, i], sae.W_dec[i] * norm * RESAMPLED_ENCODER_NORM)
        assert sae.b_enc[i] == 0
    assert torch.equal(sae.W_enc[:, alive], kept[0]) and torch.equal(sae.W_dec[alive], kept[1])
    assert revived[0].nonzero().flatten().tolist() == [2, 7]


def test_resampling_happens_at_its_fractions_of_training_only(monkeypatch):
    stream, steps = FakeStream(n_steps=40), []
    sae = make(Vanilla, resample_every=0.25, resample_until=0.6)
    monkeypatch.setattr(sae, "resample", lambda x, step: steps.append(round(step.progress * 40)))
    train_one(sae, stream)
    assert steps == [9, 19]  # the steps that end a quarter and a half


def test_without_resampling_nothing_is_drawn_after_the_start():
    quiet = make(Vanilla, resample_every=0.0)
    before = quiet._generator.get_state()
    train_one(quiet, FakeStream(n_steps=10))
    assert torch.equal(quiet._generator.get_state(), before)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"l1": -0.1}, "l1=-0.1"), ({"resample_every": 1.5}, "resample_every=1.5 must be in")],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Vanilla.Config(**config)


def test_training_explains_the_variance_and_more_l1_gives_fewer_active_latents():
    saes = [make(Vanilla, l1=l1) for l1 in (0.02, 0.3)]
    stream = FakeStream(n_steps=200)
    for sae in saes:
        assert train_one(sae, stream).stop_reason is None
    few, fewer = ((sae.encode(stream.x) > 0).sum(-1).float().mean() for sae in saes)
    error = (stream.x - saes[0](stream.x)).pow(2).sum()
    assert error < 0.2 * (stream.x - stream.x.mean(0)).pow(2).sum()
    assert fewer < 0.7 * few


def test_the_bias_starts_at_the_geometric_median():
    sae, x = make(Vanilla), activations(50)
    sae.start(x)
    torch.testing.assert_close(sae.b_dec.detach(), geometric_median(x))
