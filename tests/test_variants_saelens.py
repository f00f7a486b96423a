"""The adapter gives what SAELens's own classes give, for every architecture that it trains."""

import pytest
import torch
from training import D_SAE, FakeStream, activations, at, make
from twins import exported_and_loaded, saelens_step

from bench import registry
from bench.errors import UserError
from bench.strict import build
from bench.train import train_one
from bench.variant import Batch

SMALL = {
    "standard": {},
    "gated": {},
    "topk": {"k": 3},
    "batchtopk": {"k": 3.0},
    "matryoshka_batchtopk": {"k": 3.0},
    "jumprelu": {"jumprelu_bandwidth": 0.1},
    "matching_pursuit": {"max_iterations": 3},
}


def adapted(architecture, **config):
    variant = registry.load("variants", f"saelens:{architecture}")
    return make(variant, **(SMALL[architecture] | config))


def test_every_training_architecture_is_here_but_the_signed_one():
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    assert set(SAE_TRAINING_CLASS_REGISTRY) == {*SMALL, "abstopk"}
    with pytest.raises(UserError, match="saelens:abstopk.*signed"):
        registry.load("variants", "saelens:abstopk")


@pytest.mark.parametrize("architecture", SMALL)
def test_losses_and_gradients_are_those_of_the_library(architecture):
    from copy import deepcopy

    sae, x = adapted(architecture), activations(64)
    twin, step = deepcopy(sae.sae), at(dead=[1, 5])
    coefficients = {name: getattr(c, "value", c) for name, c in twin.get_coefficients().items()}
    theirs = saelens_step(twin, x, step, **coefficients)
    terms = sae.losses(Batch(x), step)
    loss = sum(terms.values())
    torch.testing.assert_close(loss, theirs.loss)
    loss.backward()
    assert {n for n, _ in sae.named_parameters()} == {n for n, _ in twin.named_parameters()}
    for name, parameter in twin.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(sae.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize("architecture", SMALL)
def test_training_goes_down_and_plain_saelens_loads_what_it_gave(architecture, tmp_path):
    sae, stream = adapted(architecture), FakeStream(n_steps=60)
    sae.start(stream.sample)
    before = sum(t.item() for t in sae.losses(Batch(stream.x), at()).values())
    assert train_one(sae, stream).stop_reason is None
    assert sum(t.item() for t in sae.losses(Batch(stream.x), at()).values()) < before
    loaded, norms = exported_and_loaded(sae, tmp_path, 3.0), sae.W_dec.norm(dim=-1)
    is_rescaled = getattr(sae.sae.cfg, "rescale_acts_by_decoder_norm", False)
    with torch.no_grad():
        f = sae.encode(stream.x)
        f = f if is_rescaled else f * norms
        torch.testing.assert_close(loaded.encode(3 * stream.x), 3 * f, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(loaded(3 * stream.x), 3 * sae(stream.x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loaded.W_dec.norm(dim=-1), torch.ones(D_SAE))
    torch.testing.assert_close(sae.encode(stream.x[:1]), sae.encode(stream.x)[:1])


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_the_final_threshold_gives_an_l0_of_k(architecture):
    sae, stream = adapted(architecture), FakeStream(n_steps=30)
    train_one(sae, stream)
    assert (sae.encode(stream.x) > 0).sum().item() == 3 * len(stream.x)


def test_all_start_from_the_weights_that_the_seed_gives_and_leave_the_global_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    saes = [adapted("topk"), adapted("jumprelu")]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(saes[0].W_dec, saes[1].W_dec)
    assert {n for n, _ in saes[0].named_parameters()} == {"W_enc", "b_enc", "W_dec", "b_dec"}


def test_settings_and_knob_are_those_of_the_architecture():
    variant = registry.load("variants", "saelens:jumprelu")
    config = build(variant.Config, {"l0_coefficient": 0.5, "jumprelu_ste_to_input": True})
    assert variant.knob.name == "l0_coefficient" and config.jumprelu_ste_to_input
    with pytest.raises(UserError, match="unknown field 'l0_coeficient': did you mean"):
        build(variant.Config, {"l0_coeficient": 0.5})
    assert registry.load("variants", "saelens:topk").knob.native
    assert registry.load("variants", "saelens:topk") is registry.load("variants", "saelens:topk")


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="saelens:topkk.*no such architecture; have: .*topk"):
        registry.load("variants", "saelens:topkk")
    with pytest.raises(UserError, match="'relu:x': takes no choice"):
        registry.load("variants", "relu:x")
    with pytest.raises(ValueError, match="residual_threshold=0.1 is in units of x"):
        adapted("matching_pursuit", residual_threshold=0.1)
    with pytest.raises(ValueError, match="k=25 exceeds d_sae=24"):
        adapted("topk", k=25)
    for architecture, knob in (("topk", "k"), ("gated", "l1_coefficient")):
        with pytest.raises(ValueError, match=f"{knob}=-1 must be at least 0"):
            registry.load("variants", f"saelens:{architecture}").Config(**{knob: -1})
