"""Controls: matched in L0, as good as an untrained SAE can be, and safe for sae_bench."""

import pytest
import torch
from training import D_IN, activations

from bench import controls
from bench.checkpoint import measure
from bench.config import ControlConfig
from bench.errors import UserError

X = 30 * activations(2000)
D_SAE = 64


def sae_of(exported, d_sae=D_SAE):
    """A sae_lens SAE with these weights."""
    from sae_lens import SAE

    sae = SAE.from_dict(
        {"architecture": exported.architecture, "d_in": D_IN, "d_sae": d_sae, **exported.cfg}
    )
    sae.load_state_dict(exported.state)
    return sae


@pytest.mark.parametrize("target_l0", [2.0, 5.4])
def test_the_random_dictionary_has_the_target_l0_and_unit_rows(target_l0):
    sae = sae_of(controls.make(ControlConfig("random", target_l0), X, D_SAE, seed=0))
    assert measure(sae, X).l0 == pytest.approx(round(target_l0), abs=0.05)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    cosine = torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec)
    torch.testing.assert_close(cosine, torch.ones(D_SAE))


def test_no_other_gain_of_the_random_dictionary_explains_more():
    exported = controls.make(ControlConfig("random", 4.0), X, D_SAE, seed=0)
    best = measure(sae_of(exported), X).explained_variance
    assert 0 < best < 1
    for factor in (0.9, 1.1):
        scaled = exported.state | {"W_enc": factor * exported.state["W_enc"]}
        assert measure(sae_of(exported._replace(state=scaled)), X).explained_variance < best


def test_the_mean_never_fires_and_explains_nothing():
    exported = controls.make(ControlConfig("mean"), X, D_SAE, seed=0)
    sae = sae_of(exported)
    found = measure(sae, 1000 * X)
    assert (found.l0, found.n_dead) == (0, D_SAE)
    torch.testing.assert_close(sae(X[:1])[0], X.mean(0))
    assert measure(sae, X).explained_variance == pytest.approx(0, abs=1e-6)
    for weight in (sae.W_enc.T, sae.W_dec):  # sae_bench takes cosines between the rows of each
        torch.testing.assert_close(weight.norm(dim=-1), torch.ones(D_SAE))


def test_seeds_give_other_rows_and_targets_the_same():
    def rows(target, seed):
        config = ControlConfig("random", target)
        return controls.make(config, X, D_SAE, seed).state["W_dec"]

    assert torch.equal(rows(2.0, 0), rows(8.0, 0))
    assert not torch.equal(rows(2.0, 0), rows(2.0, 1))


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (ControlConfig("random"), "'random': needs a target_l0"),
        (ControlConfig("mean", 3.0), "'mean': no latent of it fires"),
    ],
)
def test_a_target_that_is_missing_or_useless_is_refused(control, message):
    with pytest.raises(UserError, match=message):
        controls.check(control)
