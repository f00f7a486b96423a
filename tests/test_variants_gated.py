"""gated against SAELens's GatedTrainingSAE, and numbers worked out by hand."""

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make, set_weights
from twins import assert_saelens_agrees, assert_same_gradients, saelens_step

from bench.train import train_one
from bench.variant import Batch
from variants.gated import Gated


def some_weights(sae):
    set_weights(
        sae,
        b_enc=torch.linspace(-0.3, 0.3, D_SAE),
        b_mag=torch.linspace(0.2, -0.1, D_SAE),
        r_mag=torch.linspace(-1, 1, D_SAE),
        b_dec=torch.full((D_IN,), 0.1),
    )


def saelens_twin(sae):
    from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig

    twin = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=sae.d_in, d_sae=sae.d_sae))
    state = {n: v.detach().clone() for n, v in sae.state_dict().items()}
    state["b_gate"] = state.pop("b_enc")
    twin.load_state_dict(state)
    return twin


def test_acts_losses_and_gradients_equal_saelens_as_far_as_unit_rows_can_move():
    # SAELens lets the auxiliary gradient reach the decoder, and its L1 weighs with row norms, whose
    # gradient is radial: our rows stay unit
    sae, x, step = make(Gated, l1=0.2, freeze_aux_decoder=False), activations(64), at()
    some_weights(sae)
    twin = saelens_twin(sae)
    theirs = saelens_step(twin, x, step, l1=0.2 * 0.7)
    ours = sae.losses(Batch(x), step._replace(sparsity_warmup=0.7))
    torch.testing.assert_close(sae.encode(x), theirs.feature_acts)
    torch.testing.assert_close(ours["reconstruction"], theirs.losses["mse_loss"])
    torch.testing.assert_close(ours["sparsity"], theirs.losses["l1_loss"])
    torch.testing.assert_close(ours["auxiliary"], theirs.losses["auxiliary_reconstruction_loss"])
    sum(ours.values()).backward()
    assert_same_gradients(sae, twin, renamed={"b_enc": "b_gate"}, radial=False)


def test_the_auxiliary_gradient_stays_out_of_a_frozen_decoder():
    sae, x = make(Gated), activations(16)
    some_weights(sae)
    sae.losses(Batch(x), at())["auxiliary"].backward()
    assert sae.W_dec.grad is None
    assert sae.W_enc.grad.abs().sum() > 0 and sae.b_enc.grad.abs().sum() > 0


def test_numbers_by_hand():
    sae = make(Gated, d_in=2, d_sae=2, l1=0.5)
    set_weights(sae, W_enc=torch.eye(2), W_dec=torch.eye(2), b_enc=[0.0, -4.0], b_mag=[1.0, 0.0])
    x = torch.tensor([[2.0, 3.0]])  # gates (2, -1), so f = (2 + 1, 0)
    assert sae.encode(x).tolist() == [[3, 0]]
    losses = {name: term.item() for name, term in sae.losses(Batch(x), at(2)).items()}
    assert losses == pytest.approx({"reconstruction": 1 + 9, "sparsity": 1, "auxiliary": 9})


def test_training_explains_the_variance_and_plain_saelens_gives_the_same_acts(tmp_path):
    sae, stream = make(Gated, l1=0.02), FakeStream(n_steps=200)
    assert train_one(sae, stream).stop_reason is None
    error = (stream.x - sae(stream.x)).pow(2).sum()
    assert error < 0.2 * (stream.x - stream.x.mean(0)).pow(2).sum()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    assert_saelens_agrees(sae, stream.x, tmp_path)


def test_a_bad_value_is_refused():
    with pytest.raises(ValueError, match="l1=-1.0"):
        Gated.Config(l1=-1.0)
