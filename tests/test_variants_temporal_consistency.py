"""temporal_consistency against a literal loop over pairs, by hand, and against its base."""

import math

import pytest
import torch
from sequences import FakeSequences, batch_of, contexts
from training import D_IN, D_SAE, at, make, set_weights
from twins import assert_saelens_agrees

from bench.train import train_one
from variants.batch_topk import BatchTopK
from variants.relu import ReLU
from variants.temporal_consistency import TemporalConsistency
from variants.topk import TopK
from variants.vanilla import Vanilla

SCALES = [range(1, 5), range(5, 17), range(17, 1000)]


def temporal(base=ReLU, **config):
    return make(TemporalConsistency.on_base(base), **config)


def literal(sae, f, mask, largest, weights=(1, 1, 1)):
    """1 - cosine of every pair, summed up one after the other. f [b, T, d_sae]."""
    b, T, _ = f.shape
    centred = f - sae.mean_f
    norms = [centred[i, t].norm().item() for i in range(b) for t in range(T) if mask[i, t]]
    least = 0.1 * sum(norms) / len(norms)

    def loss(i, s, t):
        if not f[i, s].any() or not f[i, t].any():
            return 1.0
        lengths = [max(centred[i, u].norm().item(), least) for u in (s, t)]
        return 1 - (centred[i, s] @ centred[i, t]).item() / (lengths[0] * lengths[1])

    total = weight = 0.0
    for scale, w in zip(SCALES, weights):
        per_offset = []
        for offset in (d for d in scale if d <= largest):
            pairs = [
                loss(i, t, t + offset)
                for i in range(b)
                for t in range(T - offset)
                if mask[i, t] and mask[i, t + offset]
            ]
            per_offset += [sum(pairs) / len(pairs)] if pairs else []
        if per_offset:
            total += w * sum(per_offset) / len(per_offset)
            weight += w
    return total / weight


@pytest.mark.parametrize(("T", "progress"), [(6, 1.0), (24, 1.0), (24, 0.3), (24, 0.0)])
def test_the_term_equals_a_loop_over_pairs(T, progress):
    sae, batch = temporal(scale_weights=(1.0, 2.0, 0.5)), contexts(b=3, T=T)
    set_weights(sae, b_enc=torch.full((D_SAE,), -0.35))
    mask = batch.mask.clone()
    mask[1, T // 2 :] = False  # padding
    f = sae.encode(batch.contexts).detach()
    f[2, 3] = 0  # a token without any latent
    sae.mean_f.copy_(f[mask].mean(0))
    largest = 4 + progress * max(T - 1 - 4, 0)
    found = sae.consistency(f, mask, at(progress=progress)).item()
    assert found == pytest.approx(literal(sae, f, mask, largest, (1, 2, 0.5)), rel=1e-4)


def test_a_number_by_hand():
    sae = make(TemporalConsistency.on_base(ReLU), d_in=2, d_sae=2)
    f = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    # cosines: .7071 at offset 1 twice, 0 at offset 2; both in the short scale
    found = sae.consistency(f, torch.ones(1, 3, dtype=torch.bool), at(2)).item()
    assert found == pytest.approx(((1 - 0.5**0.5) + 1) / 2)


@pytest.mark.parametrize(
    ("base", "config"), [(ReLU, {}), (TopK, {"k": 3}), (BatchTopK, {"k": 3}), (Vanilla, {})]
)
def test_without_weight_gate_and_pruning_it_is_its_base_bit_for_bit(base, config):
    stream, weights = FakeSequences(n_steps=25), []
    for variant, extra in ((base, {}), (TemporalConsistency.on_base(base), {"coef": 0.0})):
        sae = make(variant, **config, **extra)
        assert train_one(sae, stream).stop_reason is None
        weights.append({n: p.detach() for n, p in sae.named_parameters()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_training_with_it_makes_neighbours_alike(tmp_path):
    stream, found = FakeSequences(n_steps=150), {}
    for coef in (0.0, 5.0):
        sae = temporal(coef=coef, l1=0.02)
        assert train_one(sae, stream).stop_reason is None
        batch = next(iter(stream))
        f = sae.encode(batch.contexts).detach()
        sae.mean_f.copy_(f[batch.mask].mean(0))
        found[coef] = sae.consistency(f, batch.mask, at(progress=1.0)).item()
    assert found[5.0] < 0.9 * found[0.0]
    set_weights(sae, W_dec=torch.nn.functional.normalize(sae.W_dec, dim=-1))
    assert_saelens_agrees(sae, stream.x, tmp_path)


def test_the_running_mean_starts_at_the_first_batch_and_leaves_special_tokens_out():
    sae, batch = temporal(), contexts()
    batch.contexts[:, 0] = 100.0  # BOS
    sae.losses(batch, at(number=0))
    f = sae.encode(batch.contexts[batch.mask]) * sae.W_dec.norm(dim=-1)
    torch.testing.assert_close(sae.mean_f, f.mean(0).detach())


# what would make the term small without making features consistent


def random_f(b=4, T=8):
    return torch.rand(b, T, D_SAE, generator=torch.Generator().manual_seed(3)) * 1.0


def settled(sae, f, mask):
    sae.mean_f.copy_(f[mask].mean(0))
    return sae.consistency(f, mask, at(progress=1.0)).item()


def test_silence_does_not_pay():
    sae, mask = temporal(), torch.ones(4, 8, dtype=torch.bool)
    topics = random_f(4, 1).expand(4, 8, D_SAE).clone()
    consistent = settled(sae, topics, mask)
    assert consistent == pytest.approx(0, abs=1e-5)
    noisy = topics.clone()
    noisy[:, 3] = random_f(4, 8)[:, 3]
    silenced = topics.clone()
    silenced[:, 3] = 0
    assert settled(sae, silenced, mask) > 0.9 * settled(sae, noisy, mask)
    assert settled(sae, torch.zeros(4, 8, D_SAE), mask) == 1  # all dead: no better than chance


def test_a_constant_latent_and_duplicates_do_not_pay():
    sae, mask = temporal(), torch.ones(4, 8, dtype=torch.bool)
    f = random_f()
    before = settled(sae, f, mask)
    constant = f.clone()
    constant[..., 0] += 50.0  # what b_dec would take out again
    assert settled(sae, constant, mask) == pytest.approx(before, rel=1e-3)
    doubled = torch.cat([f[..., :12], f[..., :12]], -1)
    half = torch.cat([f[..., :12], torch.zeros_like(f[..., :12])], -1)
    assert settled(sae, doubled, mask) == pytest.approx(settled(sae, half, mask), rel=1e-3)


def test_shrinking_does_not_pay():
    sae, mask = temporal(), torch.ones(4, 8, dtype=torch.bool)
    f = random_f()
    assert settled(sae, 1e-3 * f, mask) == pytest.approx(settled(sae, f, mask), rel=1e-3)


def test_adaptive_weights_follow_the_running_losses():
    f, mask = random_f(4, 8), torch.ones(4, 8, dtype=torch.bool)
    sae = temporal(adapt_scales=True)
    sae.mean_f.copy_(f[mask].mean(0))
    found = sae.consistency(f, mask, at(number=0, progress=1.0)).item()
    short, medium, _ = sae.scale_losses.tolist()
    assert found == pytest.approx((short**2 + medium**2) / (short + medium), rel=1e-4)
    sae = temporal(adapt_total=True, coef=1.0)
    batch = contexts()
    sae.start(batch.x)
    set_weights(sae, W_dec=torch.zeros(D_SAE, D_IN))
    assert sae.losses(batch, at(number=0))["consistency"].item() == 0  # explains nothing yet


@pytest.mark.parametrize("gate", ["bias", "scale"])
def test_a_gate_starts_neutral_and_follows_positions(gate):
    sae, batch = temporal(gate=gate, gate_rank=4, n_positions=5), contexts()
    x, positions = batch.contexts, batch.positions
    base = make(ReLU)
    assert torch.equal(base.W_enc, sae.W_enc)
    torch.testing.assert_close(sae.encode(x, positions), base.encode(x))
    set_weights(sae, U=torch.randn(4, D_SAE, generator=torch.Generator().manual_seed(0)))
    shift = sae.P[positions.clamp_max(4)] @ sae.U
    expected = {
        "bias": torch.relu(x @ sae.W_enc + sae.b_enc + shift),
        "scale": base.encode(x) * 2 / (1 + torch.exp(-shift)),
    }[gate]
    torch.testing.assert_close(sae.encode(x, positions), expected)
    # what fires under a positive scale is what fires without one
    assert torch.equal(sae.encode(x, positions) > 0, base.encode(x) > 0) is (gate == "scale")
    with pytest.raises(ValueError, match="has no SAELens architecture"):
        sae.export()


def test_a_gate_learns_and_its_objective_sees_every_token():
    sae, batch = temporal(gate="bias", coef=0.0), contexts()
    fired = []
    losses = sae.losses(batch, at(fired=fired.append))
    base = make(ReLU).losses(batch, at())
    for name in ("reconstruction", "sparsity"):  # neutral so far, and the same tokens
        torch.testing.assert_close(losses[name], base[name])
    sum(losses.values()).backward()
    assert sae.U.grad.abs().sum() > 0 and len(fired) == 1


def test_the_latents_that_persist_least_are_pruned_on_a_cosine_schedule():
    sae = temporal(prune_fraction=0.5, prune_from=0.2, prune_until=0.6, min_firings=10)
    sae.counts[0] = 100.0
    sae.counts[1] = 100.0
    sae.counts[2] = torch.arange(D_SAE) * 4.0  # latent 0 never goes on, latent 23 nearly always
    sae.counts[3] = 1_000.0
    sae.counts[0, 1] = 5  # too few firings for a score
    again = torch.arange(D_SAE) * 0.04
    score = (again - 0.1) / 0.9
    score[1] = math.inf
    torch.testing.assert_close(sae.persistence(), score)
    pruned = []
    for progress in (0.1, 0.3, 0.4, 0.6, 0.9):
        sae.prune(progress)
        pruned.append(int(sae.pruned.sum()))
    share = (1 - math.cos(math.pi * 0.25)) / 2
    assert pruned == [0, round(12 * share), 6, 12, 12]
    assert sae.pruned.nonzero().flatten().tolist() == [0, *range(2, 13)]


@pytest.mark.parametrize(("base", "config"), [(ReLU, {}), (TopK, {"k": 3}), (Vanilla, {})])
def test_pruned_latents_never_fire_again(base, config):
    sae, stream = temporal(base, prune_fraction=0.25, min_firings=1, **config), FakeSequences(80)
    assert train_one(sae, stream).stop_reason is None
    assert sae.pruned.sum() == D_SAE // 4
    assert not sae.encode(stream.x)[:, sae.pruned].any()
    assert sae.encode(stream.x)[:, ~sae.pruned].any()


def test_firings_are_counted_within_contexts_only():
    sae = make(TemporalConsistency.on_base(ReLU), d_in=1, d_sae=1, prune_fraction=0.5)
    set_weights(sae, W_enc=[[1.0]], W_dec=[[1.0]])
    x = torch.tensor([[9.0, 1, 1, 0], [9, 0, 1, 1]])[..., None]  # BOS first
    sae.losses(batch_of(x), at(1, length=1.0))
    assert sae.counts.flatten().tolist() == [4, 3, 2, 6]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"coef": -1.0}, "coef=-1.0"),
        ({"scale_weights": (0.0, 0.0, 0.0)}, "scale_weights="),
        ({"n_contexts": 0}, "n_contexts=0"),
        ({"prune_fraction": 1.0}, "prune_fraction=1.0"),
        ({"prune_from": 0.7}, "prune_from=0.7 must be below prune_until=0.6"),
        ({"gate": "bias", "base": "topk"}, "gate='bias' needs base='relu', not 'topk'"),
    ],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        TemporalConsistency.Config(**config)
