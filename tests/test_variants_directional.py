"""directional against literal loops over pairs, by hand, and against its base."""

from itertools import combinations

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make, set_weights
from twins import assert_saelens_agrees

from bench.train import train_one
from bench.variant import Batch
from variants.batch_topk import BatchTopK
from variants.directional import Directional
from variants.relu import ReLU
from variants.topk import TopK
from variants.vanilla import Vanilla

ALL = torch.arange(D_SAE)
NONE = torch.zeros(D_SAE, dtype=torch.bool)
UNCHANGED = {"coef": 0.0, "reset_every": 0.0, "reset_warmup": 0.0}


def directional(base=ReLU, dead=NONE, **config):
    sae = make(Directional.on_base(base), **({"k_fraction": 0.2} | config))
    noise = torch.randn(D_IN, D_SAE, generator=torch.Generator().manual_seed(1))
    set_weights(sae, W_enc=sae.W_enc + 0.3 * noise, b_enc=torch.linspace(-0.2, 0.2, D_SAE))
    sae.refresh_mask(dead)
    return sae


def unit(v):
    return v / v.norm()


def similarity(sae, i, j):
    left = sae.W_dec[i] if sae.cfg.similarity == "decoder" else sae.W_enc[:, i]
    value = (unit(left.detach()) @ unit(sae.W_dec[j].detach())).item()
    return abs(value) if sae.cfg.direction == "absolute" else value


def literal_mask(sae, dead=NONE):
    """Ordered pairs of M, each latent's similarities sorted out."""
    k = round(sae.cfg.k_fraction * (D_SAE - 1))
    alive = [i for i in range(D_SAE) if not dead[i]]
    pairs = set()
    for i in alive:
        others = [j for j in alive if j != i]
        pairs |= {(i, j) for j in sorted(others, key=lambda j: -similarity(sae, i, j))[:k]}
        if sae.cfg.bidirectional:
            pairs |= {(j, i) for j in sorted(others, key=lambda j: -similarity(sae, j, i))[:k]}
    return pairs


def literal_penalty(sae, x, pairs):
    f = (sae.encode(x) * sae.W_dec.norm(dim=-1)).detach()
    if sae.cfg.weighting == "binary":
        f = (f > 0).float()
    total = 0.0
    for i, j in pairs:
        together = (f[:, i] * f[:, j]).mean().item()
        if sae.cfg.normalise:
            rms = [f[:, n].pow(2).mean().sqrt().item() for n in (i, j)]
            together = together / (rms[0] * rms[1]) if together else 0.0
        cosine = (unit(sae.W_dec[i]) @ unit(sae.W_dec[j])).item()
        total += (
            together
            * {"signed": max(cosine, 0), "absolute": abs(cosine), "none": 1}[sae.cfg.direction]
        )
    return total / len(pairs)


def as_pairs(mask):
    return {(int(i), int(j)) for i, j in mask.nonzero()}


@pytest.mark.parametrize("dead", [[], [0, 5, 6], list(range(20))], ids=len)
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("kind", ["decoder", "enc_dec"])
def test_the_mask_equals_a_sort(kind, bidirectional, dead):
    gone = torch.zeros(D_SAE, dtype=torch.bool).index_fill(0, torch.tensor(dead).long(), True)
    sae = directional(similarity=kind, bidirectional=bidirectional, dead=gone)
    expected = literal_mask(sae, gone)
    assert as_pairs(sae.mask(ALL)) == expected
    assert sae.n_pairs.item() == len(expected)
    some = torch.tensor([7, 2, 11, 20])
    inside = {(int(some[i]), int(some[j])) for i, j in as_pairs(sae.mask(some))}
    assert inside == {(i, j) for i, j in expected if {i, j} <= set(some.tolist())}


def test_a_mask_found_in_blocks_is_the_same(monkeypatch):
    whole = directional(similarity="enc_dec")
    monkeypatch.setattr("variants.directional.BLOCK", 5)
    blocks = directional(similarity="enc_dec")
    assert torch.equal(whole.mask(ALL), blocks.mask(ALL)) and whole.n_pairs == blocks.n_pairs


def test_by_rows_and_bidirectional_differ_only_where_the_similarity_is_asymmetric():
    for kind, is_same in (("decoder", True), ("enc_dec", False)):
        both, rows = (
            {
                frozenset(p)
                for p in as_pairs(directional(similarity=kind, bidirectional=b).mask(ALL))
            }
            for b in (True, False)
        )
        assert (both == rows) is is_same


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("direction", "weighting"),
    [
        ("signed", "magnitude"),
        ("absolute", "magnitude"),
        ("none", "magnitude"),
        ("signed", "binary"),
    ],
)
def test_the_penalty_equals_a_loop_over_pairs(direction, weighting, normalise):
    sae = directional(direction=direction, weighting=weighting, normalise=normalise)
    x = activations(40)
    expected = literal_penalty(sae, x, literal_mask(sae))
    assert sae.co_activation(x, ALL).item() == pytest.approx(expected, rel=1e-3)


def test_a_number_by_hand():
    sae = make(Directional.on_base(ReLU), d_in=2, d_sae=2, k_fraction=1.0)
    set_weights(sae, W_enc=torch.eye(2), W_dec=[[3.0, 0], [0.6, 0.8]])
    sae.refresh_mask(torch.zeros(2, dtype=torch.bool))
    x = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    # C = .6; the norm 3 cancels in A = mean(f0 f1) / rms(f0) rms(f1) = .5 / sqrt(1 * .5)
    assert sae.co_activation(x, torch.arange(2)).item() == pytest.approx(0.6 * 0.5**0.5)


def test_samples_of_latents_estimate_without_bias():
    sae, x = directional(), activations(40)
    some = torch.arange(D_SAE)
    found = [
        sae.co_activation(x, torch.tensor(pair)).item() for pair in combinations(range(D_SAE), 2)
    ]
    # the floor of the mean squares follows the sample, but does not act here
    assert sum(found) / len(found) == pytest.approx(sae.co_activation(x, some).item(), rel=1e-3)


@pytest.mark.parametrize(
    ("base", "config"), [(ReLU, {}), (TopK, {"k": 3}), (BatchTopK, {"k": 3}), (Vanilla, {})]
)
def test_without_weight_and_resets_it_is_its_base_bit_for_bit(base, config):
    stream, weights = FakeStream(n_steps=40), []
    for variant, extra in ((base, {}), (Directional.on_base(base), UNCHANGED)):
        sae = make(variant, **config, **extra)
        assert train_one(sae, stream).stop_reason is None
        weights.append({n: p.detach() for n, p in sae.named_parameters()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_it_lowers_co_activation_in_training():
    stream, found = FakeStream(n_steps=150), {}
    for coef in (0.0, 2.0):
        sae = make(Directional.on_base(ReLU), coef=coef, l1=0.01)
        train_one(sae, stream)
        sae.refresh_mask(NONE)
        found[coef] = sae.co_activation(stream.x, ALL).item()
    assert found[2.0] < 0.7 * found[0.0]


# what would make the penalty small without telling latents apart


def test_shrinking_gains_nothing():
    sae, x = directional(), activations(64)
    sae.co_activation(x, ALL).backward()
    scale = (sae.W_enc * sae.W_enc.grad).sum() + (sae.b_enc * sae.b_enc.grad).sum()
    size = (sae.W_enc * sae.W_enc.grad).abs().sum()
    assert scale.abs() < 1e-3 * size
    before = sae.co_activation(x, ALL).item()
    set_weights(sae, W_enc=1e-2 * sae.W_enc, b_enc=1e-2 * sae.b_enc, W_dec=5 * sae.W_dec)
    assert sae.co_activation(x, ALL).item() == pytest.approx(before, rel=1e-3)


def test_duplicates_cost_the_most():
    sae, x = directional(k_fraction=1.0), activations(64)
    before = sae.co_activation(x, ALL).item()
    set_weights(
        sae,
        W_dec=sae.W_dec[:1].expand(D_SAE, -1).clone(),
        W_enc=sae.W_enc[:, :1].expand(-1, D_SAE).clone(),
        b_enc=torch.full((D_SAE,), 0.2),
    )
    assert sae.co_activation(x, ALL).item() == pytest.approx(1, rel=1e-3) and before < 1


def test_dead_latents_do_not_dilute_the_mean():
    x, dead = activations(64), NONE.clone()
    dead[12:] = True
    sae = directional(k_fraction=1.0, dead=dead)
    set_weights(sae, b_enc=torch.where(dead, -9.0, sae.b_enc))
    alive = literal_penalty(sae, x, [(i, j) for i in range(12) for j in range(12) if i != j])
    assert sae.co_activation(x, ALL).item() == pytest.approx(alive, rel=1e-3)


def test_dead_latents_are_reset_at_badly_explained_inputs_after_the_warm_up():
    x, revived = activations(64), []
    for progress, expected in ((0.0, 0), (0.24, 1), (0.74, 0)):
        sae = directional(reset_every=0.25, reset_warmup=0.1)
        step = at(dead=[3], progress=progress, length=0.01, revive=revived.append)
        before = sae.W_dec.detach().clone()
        sae.after_step(Batch(x), step)
        moved = (sae.W_dec != before).any(-1).nonzero().flatten().tolist()
        assert moved == [3] * expected, progress
    assert len(revived) == 1 and revived[0].nonzero().flatten().tolist() == [3]
    cosines = unit(before[0]) @ sae.W_dec.detach().T
    assert cosines.isfinite().all()


def test_the_base_resets_none_before_the_warm_up_either():
    x = activations(64)
    for warmup, n_moved in ((0.5, 0), (0.0, 1)):
        sae = make(Directional.on_base(Vanilla), reset_every=0.0, reset_warmup=warmup)
        before = sae.W_dec.detach().clone()
        sae.after_step(Batch(x), at(dead=[3], progress=0.24, length=0.01))
        assert ((sae.W_dec - before).abs().amax(-1) > 1e-3).sum() == n_moved


def test_what_was_trained_with_it_exports_as_its_base(tmp_path):
    stream, sae = FakeStream(n_steps=30), make(Directional.on_base(ReLU))
    train_one(sae, stream)
    set_weights(sae, W_dec=torch.nn.functional.normalize(sae.W_dec, dim=-1))
    assert_saelens_agrees(sae, stream.x, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weighting": "binary", "direction": "none"}, "is a constant"),
        ({"coef": -1.0}, "coef=-1.0"),
        ({"k_fraction": 0.0}, "k_fraction=0.0"),
        ({"n_sample": 1}, "n_sample=1"),
        ({"mask_every": 0.0}, "mask_every=0.0"),
        ({"reset_until": 2.0}, "reset_until=2.0"),
    ],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make(Directional.on_base(ReLU), **config)
