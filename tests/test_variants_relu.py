"""relu against SAELens's StandardTrainingSAE, and a number worked out by hand."""

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make, set_weights

from bench.train import train_one
from bench.variant import Batch
from variants.relu import ReLU


def saelens_twin(sae):
    """SAELens's class with the same weights; its bias before the encoder is switched off, as the
    April 2024 update has none."""
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig

    twin = StandardTrainingSAE(
        StandardTrainingSAEConfig(d_in=sae.d_in, d_sae=sae.d_sae, apply_b_dec_to_input=False)
    )
    twin.load_state_dict(sae.state_dict())
    return twin


def test_acts_losses_and_gradients_equal_saelens():
    from sae_lens.saes.sae import TrainStepInput

    sae, x = make(ReLU, l1=0.2), activations(64)
    set_weights(
        sae,
        W_dec=sae.W_dec * torch.linspace(1, 20, D_SAE)[:, None],
        b_enc=torch.linspace(-0.01, 0.01, D_SAE),
        b_dec=torch.full((D_IN,), 0.1),
    )
    twin = saelens_twin(sae)
    theirs = twin.training_forward_pass(
        TrainStepInput(x, {"l1": 0.2 * 0.7}, None, n_training_steps=1, is_logging_step=False)
    )
    ours = sae.losses(Batch(x), at(sparsity_warmup=0.7))
    torch.testing.assert_close(sae.encode(x), theirs.feature_acts)
    torch.testing.assert_close(ours["reconstruction"], theirs.losses["mse_loss"])
    torch.testing.assert_close(ours["sparsity"], theirs.losses["l1_loss"])
    sum(ours.values()).backward()
    theirs.loss.backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad)


def test_a_number_by_hand():
    sae = make(ReLU, d_in=2, d_sae=2, l1=0.1)
    set_weights(sae, W_enc=[[1.0, 0], [0, 1]], W_dec=[[0.0, 2], [1, 0]])
    losses = sae.losses(Batch(torch.tensor([[3.0, 4.0]])), at(2))  # f = (3, 4), x_hat = (4, 6)
    assert losses["reconstruction"].item() == pytest.approx(1 + 4)
    assert losses["sparsity"].item() == pytest.approx(0.1 * (3 * 2 + 4 * 1))


def test_without_weight_the_penalty_is_zero():
    assert make(ReLU, l1=0.0).losses(Batch(activations(4)), at())["sparsity"].item() == 0


def test_exported_rows_are_unit_and_the_output_is_the_same():
    sae, stream = make(ReLU, l1=0.05), FakeStream(n_steps=100)
    train_one(sae, stream)
    set_weights(sae, W_dec=sae.W_dec * torch.linspace(0.1, 3, D_SAE)[:, None])
    exported = sae.export()
    state = exported.state
    f = torch.relu(stream.x @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(state["W_dec"].norm(dim=-1), torch.ones(D_SAE))
    torch.testing.assert_close(f @ state["W_dec"] + state["b_dec"], sae(stream.x))
    assert exported.cfg == {"apply_b_dec_to_input": False}


def test_encode_takes_any_leading_axes():
    sae, x = make(ReLU), activations(6)
    assert torch.equal(sae.encode(x.view(2, 3, D_IN)).view(6, D_SAE), sae.encode(x))


@pytest.mark.parametrize(
    ("config", "message"),
    [({"l1": -1.0}, "l1=-1.0"), ({"decoder_init_norm": 0.0}, "norm=0.0")],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ReLU.Config(**config)


def test_before_training_a_silent_sae_predicts_the_mean():
    sae, x = make(ReLU), activations(50)
    sae.start(x)
    torch.testing.assert_close(sae.decode(torch.zeros(D_SAE)), x.mean(0))
