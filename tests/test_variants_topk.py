"""topk against SAELens's TopKTrainingSAE, and numbers worked out by hand."""

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make, set_weights

from bench.ops import geometric_median
from bench.train import train_one
from bench.variant import Batch
from variants.topk import TopK


def saelens_twin(sae, coefficient=1.0):
    """SAELens's class with the same weights."""
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    twin = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=sae.d_in, d_sae=sae.d_sae, k=sae.cfg.k, aux_loss_coefficient=coefficient
        )
    )
    twin.load_state_dict(sae.state_dict())
    return twin


# SAELens does not rectify the dead latents of the auxiliary error, hence auxk_relu=False
@pytest.mark.parametrize("dead", [[], [1, 5], list(range(0, D_SAE, 2))], ids=len)
def test_acts_losses_and_gradients_equal_saelens(dead):
    from sae_lens.saes.sae import TrainStepInput

    sae, x = make(TopK, k=3, auxk_coef=0.5, auxk_relu=False), activations(64)
    set_weights(sae, b_enc=torch.linspace(-0.3, 0.3, D_SAE), b_dec=torch.full((D_IN,), 0.1))
    step, twin = at(dead=dead), saelens_twin(sae, 0.5)
    theirs = twin.training_forward_pass(
        TrainStepInput(x, {}, step.dead, n_training_steps=1, is_logging_step=False)
    )
    ours = sae.losses(Batch(x), step)
    torch.testing.assert_close(sae.encode(x), theirs.feature_acts)
    torch.testing.assert_close(ours["reconstruction"], theirs.losses["mse_loss"])
    torch.testing.assert_close(ours["auxk"], theirs.losses["auxiliary_reconstruction_loss"])
    assert (ours["auxk"] > 0) == bool(dead)
    sum(ours.values()).backward()
    theirs.loss.backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad)


def test_the_k_largest_are_kept():
    sae = make(TopK, d_in=2, d_sae=4, k=1)
    set_weights(sae, W_enc=[[1.0, 2, 0, 0], [0, 0, 3, -1]])
    f = sae.encode(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert f.tolist() == [[0, 2, 0, 0], [0, 0, 3, 0]]


def test_auxiliary_error_by_hand():
    sae = make(TopK, d_in=4, d_sae=4, k=1, auxk_coef=0.5)
    set_weights(sae, W_enc=torch.eye(4), W_dec=torch.eye(4))
    x = torch.tensor([[4.0, 3.0, 0.0, -2.0]])
    losses = sae.losses(Batch(x), at(4, dead=[1]))
    assert losses["reconstruction"].item() == 9 + 4  # x_hat = (4, 0, 0, 0)
    # left over: (0, 3, 0, -2); the dead latent gives (0, 3, 0, 0); 1 dead of at most 2
    assert losses["auxk"].item() == pytest.approx(0.5 * (1 / 2) * 4)
    # a dead latent with a negative pre-activation gives nothing
    assert sae.losses(Batch(x), at(4, dead=[3]))["auxk"].item() == pytest.approx(0.5 * 0.5 * 13)


def test_auxiliary_error_moves_dead_latents_only():
    sae = make(TopK, k=2)
    sae.losses(Batch(activations(64)), at(dead=[4, 9]))["auxk"].backward()
    moved = sae.W_enc.grad.abs().sum(0).nonzero().flatten().tolist()
    assert moved == [4, 9]


def test_without_weight_there_is_no_auxiliary_error():
    dead = at(dead=[4, 9])
    assert make(TopK, k=2, auxk_coef=0.0).losses(Batch(activations(4)), dead)["auxk"].item() == 0


def test_k_above_d_sae_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="k=64 exceeds d_sae=32"):
        make(TopK, d_sae=32, k=64)


@pytest.mark.parametrize(
    ("config", "message"), [({"k": 0}, "k=0"), ({"auxk_coef": -1.0}, "auxk_coef=-1.0")]
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        TopK.Config(**config)


def test_training_explains_the_variance_with_k_latents_and_unit_rows():
    sae, stream = make(TopK, k=3), FakeStream(n_steps=200)
    assert train_one(sae, stream).stop_reason is None
    f = sae.encode(stream.x)
    assert (f != 0).sum(-1).max() <= 3
    error = (stream.x - sae.decode(f)).pow(2).sum()
    assert error < 0.2 * (stream.x - stream.x.mean(0)).pow(2).sum()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_encode_takes_any_leading_axes_and_no_row_depends_on_another():
    sae, x = make(TopK, k=3), activations(6)
    f = sae.encode(x)
    assert torch.equal(sae.encode(x.view(2, 3, D_IN)).view(6, D_SAE), f)
    torch.testing.assert_close(sae.encode(x[:1]), f[:1])


def test_the_bias_starts_at_the_geometric_median():
    sae, x = make(TopK, k=3), activations(50)
    x[:3] += 100  # which would pull the mean along
    sae.start(x)
    torch.testing.assert_close(sae.b_dec.detach(), geometric_median(x))
    assert (sae.b_dec - x[3:].mean(0)).norm() < 1
