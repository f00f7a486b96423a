"""jumprelu against SAELens's JumpReLUTrainingSAE, and numbers worked out by hand."""

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make, set_weights
from twins import assert_saelens_agrees, assert_same_gradients, saelens_step

from bench.train import train_one
from bench.variant import Batch
from variants.jumprelu import JumpReLU


def saelens_twin(sae):
    """SAELens's class; its bias before the encoder is switched off, as the paper has none."""
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    cfg = sae.cfg
    twin = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            apply_b_dec_to_input=False,
            jumprelu_bandwidth=cfg.bandwidth,
            jumprelu_sparsity_loss_mode=cfg.sparsity_loss,
            jumprelu_ste_to_input=cfg.ste_to_input,
            pre_act_loss_coefficient=cfg.pre_act_coef or None,
            target_l0=cfg.l0_aim,
        )
    )
    twin.load_state_dict(sae.state_dict())
    return twin


@pytest.mark.parametrize("ste_to_input", [False, True])
@pytest.mark.parametrize("penalty", ["step", "tanh", "quadratic"])
def test_acts_losses_and_gradients_equal_saelens(penalty, ste_to_input):
    settings = {"sparsity_loss": penalty, "ste_to_input": ste_to_input, "l0_aim": 5.0}
    sae = make(JumpReLU, l0_coef=0.2, bandwidth=0.3, pre_act_coef=0.4, **settings)
    x, step = activations(64), at(dead=[2, 7], sparsity_warmup=0.7)
    set_weights(
        sae,
        b_enc=torch.linspace(-0.3, 0.3, D_SAE),
        b_dec=torch.full((D_IN,), 0.1),
        threshold=torch.linspace(0.01, 0.4, D_SAE),
    )
    twin = saelens_twin(sae)
    theirs = saelens_step(twin, x, step, l0=0.2 * 0.7)
    ours = sae.losses(Batch(x), step)
    torch.testing.assert_close(sae.encode(x), theirs.feature_acts)
    torch.testing.assert_close(ours["reconstruction"], theirs.losses["mse_loss"])
    torch.testing.assert_close(ours["sparsity"], theirs.losses["l0_loss"])
    torch.testing.assert_close(ours["pre_act"], theirs.losses["pre_act_loss"])
    sum(ours.values()).backward()
    assert_same_gradients(sae, twin)


def test_numbers_by_hand():
    sae = make(JumpReLU, d_in=2, d_sae=2, l0_coef=0.5, bandwidth=2.0)
    set_weights(sae, W_enc=torch.eye(2), W_dec=torch.eye(2), threshold=[1.0, 3.0])
    x = torch.tensor([[1.5, 2.5]])  # the first latent passes, the second does not
    losses = sae.losses(Batch(x), at(2))
    assert losses["reconstruction"].item() == pytest.approx(2.5**2)
    assert losses["sparsity"].item() == pytest.approx(0.5 * 1)
    sum(losses.values()).backward()
    # both lie within 1 of their threshold t: d/dt is -t / 2 * dL/df of the error, -1/2 of the L0
    assert sae.threshold.grad.tolist() == pytest.approx([-0.25, 1.5 * 5 - 0.25])


def test_training_raises_thresholds_to_a_small_l0_and_keeps_them_above_0(tmp_path):
    stream = FakeStream(n_steps=200)
    l0 = {}
    for coef in (1e-4, 3e-2):
        sae = make(JumpReLU, l0_coef=coef, bandwidth=0.1)
        assert train_one(sae, stream).stop_reason is None
        l0[coef] = (sae.encode(stream.x) > 0).sum(-1).float().mean().item()
        assert (sae.threshold >= 0).all()
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    assert l0[3e-2] < 0.7 * l0[1e-4]
    assert_saelens_agrees(sae, stream.x, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"l0_coef": -1.0}, "l0_coef=-1.0"),
        ({"bandwidth": 0.0}, "bandwidth=0.0"),
        ({"initial_threshold": -0.1}, "initial_threshold=-0.1"),
    ],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        JumpReLU.Config(**config)


def test_an_aim_above_d_sae_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="l0_aim=64.0 exceeds d_sae=32"):
        make(JumpReLU, d_sae=32, sparsity_loss="quadratic", l0_aim=64.0)
