"""batch_topk against SAELens's BatchTopKTrainingSAE, and numbers worked out by hand."""

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make, set_weights
from twins import assert_saelens_agrees, assert_same_gradients, saelens_step

from bench.train import train_one
from bench.variant import Batch
from variants.batch_topk import BatchTopK


def saelens_twin(sae, coefficient):
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    cfg = BatchTopKTrainingSAEConfig(
        d_in=sae.d_in, d_sae=sae.d_sae, k=sae.cfg.k, aux_loss_coefficient=coefficient
    )
    twin = BatchTopKTrainingSAE(cfg)
    weights = {n: v for n, v in sae.state_dict().items() if n != "threshold"}
    twin.load_state_dict(weights, strict=False)
    return twin


@pytest.mark.parametrize("dead", [[], [1, 5], list(range(0, D_SAE, 2))], ids=len)
@pytest.mark.parametrize("k", [3, 2.5])
def test_acts_losses_and_gradients_equal_saelens(dead, k):
    sae, x = make(BatchTopK, k=k, auxk_coef=0.5, auxk_relu=False), activations(64)
    set_weights(sae, b_enc=torch.linspace(-0.3, 0.3, D_SAE), b_dec=torch.full((D_IN,), 0.1))
    step, twin, fired = at(dead=dead), saelens_twin(sae, 0.5), []
    theirs = saelens_step(twin, x, step)
    ours = sae.losses(Batch(x), step._replace(fired=fired.append))
    torch.testing.assert_close(ours["reconstruction"], theirs.losses["mse_loss"])
    torch.testing.assert_close(ours["auxk"], theirs.losses["auxiliary_reconstruction_loss"])
    assert torch.equal(fired[0], (theirs.feature_acts > 0).sum(0))
    sum(ours.values()).backward()
    assert_same_gradients(sae, twin)


def test_a_row_may_have_more_latents_than_another():
    sae = make(BatchTopK, d_in=2, d_sae=2, k=1)
    set_weights(sae, W_enc=torch.eye(2), W_dec=torch.eye(2))
    x = torch.tensor([[5.0, 4.0], [1.0, 0.5]])  # the two largest of four lie in the first row
    assert sae.losses(Batch(x), at(2))["reconstruction"].item() == pytest.approx((1 + 0.25) / 2)


def test_the_final_threshold_gives_an_l0_of_k_and_no_row_depends_on_another():
    sae, stream = make(BatchTopK, k=3), FakeStream(n_steps=100)
    assert train_one(sae, stream).stop_reason is None
    f = sae.encode(stream.x)
    assert (f > 0).sum().item() == 3 * len(stream.x)
    torch.testing.assert_close(sae.encode(stream.x[:1]), f[:1])


def test_until_the_end_the_threshold_follows_the_smallest_kept_activation():
    sae, x = make(BatchTopK, k=2), activations(64)
    losses_at = [at(number=i, length=1 / 400) for i in range(2)]
    sae.losses(Batch(x), losses_at[0])
    pre = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
    smallest = pre.flatten().topk(128).values[-1]
    torch.testing.assert_close(sae.threshold, smallest)
    sae.losses(Batch(2 * x), losses_at[1])  # b_dec is 0: all is doubled; a quarter of the way
    torch.testing.assert_close(sae.threshold, 1.25 * smallest)


def test_plain_saelens_gives_the_same_acts(tmp_path):
    sae, stream = make(BatchTopK, k=3), FakeStream(n_steps=30)
    train_one(sae, stream)
    assert sae.export().architecture == "jumprelu"
    assert_saelens_agrees(sae, stream.x, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"), [({"k": 0.0}, "k=0.0"), ({"auxk_coef": -1.0}, "auxk_coef=-1.0")]
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        BatchTopK.Config(**config)


def test_k_above_d_sae_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="k=64 exceeds d_sae=32"):
        make(BatchTopK, d_sae=32, k=64)
