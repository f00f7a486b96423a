"""fixed_orthogonal and adaptive_orthogonal against loops, by hand, and against their base."""

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make, set_weights
from twins import assert_saelens_agrees

from bench import ops
from bench.train import train_one
from bench.variant import Batch
from variants.adaptive_orthogonal import AdaptiveOrthogonal
from variants.batch_topk import BatchTopK
from variants.fixed_orthogonal import FixedOrthogonal
from variants.jumprelu import JumpReLU
from variants.relu import ReLU
from variants.topk import TopK
from variants.vanilla import Vanilla

ALL = torch.arange(D_SAE)
BASES = [(ReLU, {}), (TopK, {"k": 3}), (BatchTopK, {"k": 3}), (JumpReLU, {}), (Vanilla, {})]


def fixed(base=ReLU, **config):
    return make(FixedOrthogonal.on_base(base), **config)


def adaptive(base=ReLU, **config):
    return make(AdaptiveOrthogonal.on_base(base), **({"group_size": 4} | config))


def cosine(sae, i, j):
    rows = sae.W_dec.detach().double()
    return (rows[i] @ rows[j] / rows[i].norm() / rows[j].norm()).item()


def hinge_loop(sae, weight):
    """Mean over i of the largest weight(i, j) * relu(C_ij - tau)^2 over j != i."""
    found = [
        max(
            weight(i, j) * max(cosine(sae, i, j) - sae.cfg.tau, 0) ** 2
            for j in range(D_SAE)
            if j != i
        )
        for i in range(D_SAE)
    ]
    return sum(found) / D_SAE


def test_the_hinge_equals_a_loop():
    sae = fixed(tau=0.3)
    assert sae.orthogonality(ALL).item() == pytest.approx(hinge_loop(sae, lambda i, j: 1), rel=1e-4)


def test_welch_equals_a_loop_over_pairs():
    sae = fixed(penalty="welch")
    pairs = [cosine(sae, i, j) ** 2 for i in range(D_SAE) for j in range(D_SAE) if i != j]
    bound = (D_SAE - D_IN) / (D_IN * (D_SAE - 1))
    expected = sum(pairs) / len(pairs) - bound
    assert sae.orthogonality(ALL).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_the_grouped_hinge_equals_a_loop(share):
    sae = adaptive(share=share, tau=0.1)
    sae.groups.copy_(torch.arange(D_SAE) % 5 - 1)
    g = sae.groups.tolist()
    expected = hinge_loop(sae, lambda i, j: share if g[i] == g[j] >= 0 else 1)
    assert sae.orthogonality(ALL).item() == pytest.approx(expected, rel=1e-4)


def test_numbers_by_hand():
    rows = [[1.0, 0], [0.6, 0.8], [0, -1]]  # cosines .6, 0, -.8
    sae = make(FixedOrthogonal.on_base(ReLU), d_in=2, d_sae=3, tau=0.2)
    set_weights(sae, W_dec=rows)
    assert sae.orthogonality(torch.arange(3)).item() == pytest.approx(2 * 0.4**2 / 3)
    sae = make(FixedOrthogonal.on_base(ReLU), d_in=2, d_sae=3, penalty="welch")
    set_weights(sae, W_dec=rows)
    expected = (0.6**2 + 0.8**2) / 3 - (3 - 2) / (2 * 2)
    assert sae.orthogonality(torch.arange(3)).item() == pytest.approx(expected)


@pytest.mark.parametrize("penalty", ["hinge", "welch"])
def test_samples_of_latents_estimate_without_bias(penalty):
    sae = fixed(penalty=penalty)
    parts = [sae.orthogonality(rows).item() for rows in ALL.split(6)]
    assert sum(parts) / len(parts) == pytest.approx(sae.orthogonality(ALL).item(), rel=1e-4)


@pytest.mark.parametrize(("base", "config"), BASES)
@pytest.mark.parametrize("term", [FixedOrthogonal, AdaptiveOrthogonal])
def test_without_weight_it_is_its_base_bit_for_bit(term, base, config):
    stream, weights = FakeStream(n_steps=25), []
    for variant, extra in ((base, {}), (term.on_base(base), {"coef": 0.0})):
        if variant is not base and term is AdaptiveOrthogonal:
            extra["group_size"] = 4
        sae = make(variant, **config, **extra)
        assert train_one(sae, stream).stop_reason is None
        weights.append({n: p.detach() for n, p in sae.named_parameters()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_with_share_1_and_a_fixed_total_adaptive_is_fixed_bit_for_bit():
    stream, weights = FakeStream(n_steps=25), []
    shared = {"coef": 0.5, "n_sample": 10}
    for sae in (fixed(**shared), adaptive(share=1.0, adapt_total=False, **shared)):
        assert train_one(sae, stream).stop_reason is None
        weights.append({n: p.detach() for n, p in sae.named_parameters()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    base = make(ReLU)
    train_one(base, stream)
    assert not torch.equal(base.W_dec, weights[0]["W_dec"])  # and it does act


def test_the_term_is_in_units_of_the_variance_of_the_input():
    x, shares = activations(64), []
    for scale in (1.0, 10.0):
        sae = fixed(coef=0.5)
        sae.start(scale * x)
        term = sae.losses(Batch(scale * x), at())["orthogonality"]
        shares.append((term / ops.variance(scale * x)).item())
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)


# what would make the penalty small without making rows orthogonal


def test_duplicates_cost_the_most():
    sae = fixed()
    set_weights(sae, W_dec=sae.W_dec[:1].expand(D_SAE, -1).clone())
    assert sae.orthogonality(ALL).item() == pytest.approx(0.8**2, rel=1e-4)


def test_neither_short_rows_nor_silent_latents_help():
    sae = fixed()
    before = sae.orthogonality(ALL).item()
    set_weights(sae, W_dec=0.01 * sae.W_dec, b_enc=torch.full((D_SAE,), -9.0))
    assert sae.orthogonality(ALL).item() == pytest.approx(before, rel=1e-4)


def test_training_with_it_lowers_the_largest_cosines():
    stream, found = FakeStream(n_steps=150), {}
    for coef in (0.0, 5.0):
        sae = fixed(coef=coef)
        train_one(sae, stream)
        found[coef] = sae.orthogonality(ALL).item()
    assert found[5.0] < 0.7 * found[0.0]


def test_the_total_weight_follows_progress_and_explained_variance():
    sae, x = adaptive(ramp=0.5, ev_low=0.2, ev_high=0.8), activations(64)
    set_weights(sae, W_dec=torch.zeros(D_SAE, D_IN), b_dec=x.mean(0))
    assert sae.total_share(x, at(number=0, progress=0.25)).item() == 0  # explains nothing
    sae.explained.fill_(0.5)  # half way between ev_low and ev_high, half way up the ramp
    share = sae.total_share(x, at(number=5, progress=0.25, length=1e-9))
    assert share.item() == pytest.approx(0.25, rel=1e-3)
    assert not share.requires_grad


def test_latents_that_fire_together_are_grouped_and_the_dead_are_left_out():
    sae = make(AdaptiveOrthogonal.on_base(ReLU), d_in=4, d_sae=4, group_size=2)
    set_weights(sae, W_enc=torch.eye(4))
    x = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [2, 0, 0, 2.0]])
    sae.regroup(x, at(4))
    g = sae.groups.tolist()
    assert g[0] == g[3] != g[1] == g[2]
    sae.regroup(x, at(4, dead=[3]))
    assert sae.groups[3] == -1 and sae.groups[:3].min() >= 0


def test_groups_are_found_anew_every_so_often():
    sae, x = adaptive(update_every=0.25, group_by="direction"), activations(32)
    seen = []
    for i in range(20):
        sae.groups.fill_(-1)
        sae.after_step(Batch(x), at(number=i, progress=i / 20, length=1 / 20))
        seen.append(int(sae.groups.max()) >= 0)
    assert [i for i, found in enumerate(seen) if found] == [0, 4, 9, 14, 19]


def test_what_was_trained_with_it_exports_as_its_base(tmp_path):
    stream, sae = FakeStream(n_steps=30), adaptive(BatchTopK, k=3)
    train_one(sae, stream)
    assert_saelens_agrees(sae, stream.x, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"coef": -1.0}, "coef=-1.0"),
        ({"tau": 1.0}, "tau=1.0"),
        ({"n_sample": 0}, "n_sample=0"),
        ({"share": 2.0}, "share=2.0"),
        ({"update_every": 0.0}, "update_every=0.0"),
        ({"ev_low": 0.9, "ev_high": 0.5}, "ev_low=0.9 must be below ev_high=0.5"),
        ({"group_size": 5}, "group_size=5 exceeds d_in / 2 = 4"),
    ],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        adaptive(**config)
