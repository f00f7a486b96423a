"""contrastive against literal loops, by hand, and against its base."""

import math

import pytest
import torch
from sequences import FakeSequences, batch_of, contexts
from training import D_IN, D_SAE, activations, at, make, set_weights
from twins import assert_saelens_agrees

from bench import ops
from bench.train import train_one
from variants.batch_topk import BatchTopK
from variants.contrastive import Contrastive
from variants.relu import ReLU
from variants.topk import TopK
from variants.vanilla import Vanilla

NO = torch.zeros


def contrastive(base=ReLU, **config):
    return make(Contrastive.on_base(base), **config)


def cos(u, v):
    lengths = (u.norm() * v.norm()).item()
    return (u @ v).item() / lengths if lengths else 0.0


def rand_f(n, seed=0):
    g = ops.generator(seed, "features")
    return torch.rand(n, D_SAE, generator=g) * (torch.rand(n, D_SAE, generator=g) < 0.4)


@pytest.mark.parametrize("n_hard", [0, 2])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_info_nce_equals_a_loop(temperature, n_hard):
    sae = contrastive(temperature=temperature)
    a, p, others = rand_f(6), rand_f(6, 1), rand_f(9, 2)
    a[2] = 0  # a silent anchor
    hard = [rand_f(6, 3 + i) for i in range(n_hard)]
    is_negative = torch.rand(6, 9, generator=ops.generator(0, "negatives")) < 0.5
    is_negative[4] = False  # has none, does not count
    is_valid = torch.tensor([True, True, True, False, True, True])
    found = []
    for i in (0, 1, 2, 5):
        negatives = [cos(a[i], others[j]) for j in range(9) if is_negative[i, j]]
        negatives += [cos(a[i], h[i]) for h in hard]
        scores = [math.exp(c / temperature) for c in [cos(a[i], p[i]), *negatives]]
        found.append(-math.log(scores[0] / sum(scores)) / math.log(len(scores)))
    assert found[2] == pytest.approx(1)  # silence is chance
    loss = sae.info_nce(a, p, others, is_negative, hard, is_valid).item()
    assert loss == pytest.approx(sum(found) / 4, rel=1e-4)


def test_a_number_by_hand():
    sae = make(Contrastive.on_base(ReLU), d_in=2, d_sae=2, temperature=1.0)
    a, p, other = torch.tensor([[[3.0, 4.0]], [[5.0, 0.0]], [[0.0, 2.0]]])
    yes = torch.ones(1, 1, dtype=torch.bool)
    expected = math.log(1 + math.exp(0.8 - 0.6)) / math.log(2)  # cosines .6 and .8, 1 negative
    assert sae.info_nce(a, p, other, yes, [], yes[0]).item() == pytest.approx(expected)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_pairs_are_two_positions_of_one_context_at_offsets_that_grow(progress):
    sae, mask = contrastive(n_anchors=400), contexts(b=50, T=12).mask
    pairs = sae.draw_pairs(mask, at(progress=progress))
    assert len(pairs.anchors) == 400 == len(pairs.anchors.unique())
    assert torch.equal(pairs.anchors // 12, pairs.positives // 12)
    distance = (pairs.anchors - pairs.positives).abs()[pairs.is_valid]
    largest = max(1, round(progress * 11))
    assert distance.min() == 1 and 0.8 * largest <= distance.max() <= largest
    flat = mask.flatten()
    expected = flat[pairs.anchors] & flat[pairs.positives]
    assert not (pairs.is_valid & ~expected).any() and pairs.is_valid.sum() > 20


def test_a_limit_of_the_offset_holds():
    sae, mask = contrastive(max_offset=2, curriculum=False), contexts(b=5, T=12).mask
    pairs = sae.draw_pairs(mask, at())
    assert (pairs.anchors - pairs.positives).abs()[pairs.is_valid].max() == 2


def test_negatives_are_of_other_contexts_and_never_special(monkeypatch):
    sae, batch, seen = contrastive(), contexts(b=3, T=6), {}

    def spy(a, p, others, is_negative, hard, is_valid):
        seen.update(others=others, is_negative=is_negative)
        return a.sum() * 0

    monkeypatch.setattr(sae, "info_nce", spy)
    step = at()
    sae.losses(batch, step)
    pairs, others = sae.draw_pairs(batch.mask, step), sae._draw_others(batch.mask, step)
    for n, anchor in enumerate(pairs.anchors.tolist()):
        for m, other in enumerate(others.tolist()):
            allowed = anchor // 6 != other // 6 and other % 6 != 0
            assert seen["is_negative"][n, m] == allowed


def test_no_anchor_has_more_than_256_negatives(monkeypatch):
    sae, batch, seen = contrastive(), contexts(b=10, T=80), []
    monkeypatch.setattr(
        sae, "info_nce", lambda a, p, o, is_negative, h, v: seen.append(is_negative) or a.sum() * 0
    )
    sae.losses(batch, at())
    assert seen[0].sum(1).max() == 256


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_mixed_negative_keeps_the_norm_and_at_most_the_rest_of_the_anchor(share):
    sae, a, other = contrastive(), rand_f(30), rand_f(30, 1)
    order = torch.randperm(D_SAE, generator=ops.generator(0, "order"))
    mixed = sae.mix(a, other, share, order)
    torch.testing.assert_close(mixed.norm(dim=1), a.norm(dim=1))
    for i in range(30):
        kept, total = 0.0, a[i].pow(2).sum().item()
        used = 0.0
        for j in order.tolist():
            used += a[i, j].item() ** 2
            if used <= (1 - share) * total + 1e-7:
                assert mixed[i, j] == a[i, j]
                kept += a[i, j].item() ** 2
        assert kept <= (1 - share) * total + 1e-6
    assert 0 < (mixed * a).sum(1).mean() / a.pow(2).sum(1).mean() < 1


def test_hard_negatives_have_no_gradient_and_become_harder():
    sae, a, others = contrastive(n_mixed=3), rand_f(8).requires_grad_(), rand_f(5, 1)
    is_other = torch.ones(8, 5, dtype=torch.bool)
    nearness = []
    for progress in (0.0, 1.0):
        hard = sae._mixed(a, others, is_other, at(progress=progress))
        assert len(hard) == 3 and not any(h.requires_grad for h in hard)
        nearness.append(sum(torch.cosine_similarity(h, a).mean().item() for h in hard))
    assert nearness[0] < nearness[1]


def test_the_latent_axis_equals_a_loop():
    sae = contrastive(axis="feature", temperature=0.5)
    a, p = rand_f(20), rand_f(20, 1)
    a[:, 3] = p[:, 3] = 0  # a silent latent
    valid = torch.ones(20, dtype=torch.bool)
    valid[5:8] = False
    found = []
    for i in range(D_SAE):
        scores = [math.exp(cos(a[valid, i], p[valid, j]) / 0.5) for j in range(D_SAE)]
        found.append(-math.log(scores[i] / sum(scores)) / math.log(D_SAE))
    assert found[3] == pytest.approx(1)
    loss = sae.between_latents(a, p, valid, at()).item()
    assert loss == pytest.approx(sum(found) / D_SAE, rel=1e-4)


def test_paraphrases_are_compared_by_their_mean_features():
    x = activations(4 * 5).view(4, 5, D_IN)
    batch = batch_of(x, paraphrase_id=torch.tensor([7, -1, 7, -1]))
    sae = contrastive(positives="paraphrase", n_mixed=0, adapt_total=False, coef=1.0)
    sae.start(batch.x)
    f = (sae.encode(x) * sae.W_dec.norm(dim=-1)).detach()[:, 1:].mean(1)
    expected = []
    for i, j in ((0, 2), (2, 0)):
        scores = [math.exp(cos(f[i], f[n]) / 0.1) for n in (j, 1, 3)]
        expected.append(-math.log(scores[0] / sum(scores)) / math.log(3))
    found = sae.losses(batch, at())["contrast"] / sae.input_variance
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-4)
    with pytest.raises(ValueError, match="positives='paraphrase': the data has none"):
        sae.losses(batch._replace(paraphrase_id=None), at())


@pytest.mark.parametrize(
    ("base", "config"), [(ReLU, {}), (TopK, {"k": 3}), (BatchTopK, {"k": 3}), (Vanilla, {})]
)
def test_without_weight_it_is_its_base_bit_for_bit(base, config):
    stream, weights = FakeSequences(n_steps=25), []
    for variant, extra in ((base, {}), (Contrastive.on_base(base), {"coef": 0.0})):
        sae = make(variant, **config, **extra)
        assert train_one(sae, stream).stop_reason is None
        weights.append({n: p.detach() for n, p in sae.named_parameters()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("axis", "strong"), [("token", 0.5), ("feature", 3.0)])
def test_training_with_it_tells_contexts_apart(axis, strong, tmp_path):
    stream, found = FakeSequences(n_steps=100), {}
    for coef in (0.0, strong):
        sae = contrastive(coef=coef, l1=0.02, axis=axis, adapt_total=False)
        assert train_one(sae, stream).stop_reason is None
        sae.cfg = type(sae.cfg)(coef=1.0, axis=axis, adapt_total=False)
        batches = [sae.losses(b, at(progress=1.0))["contrast"].item() for b in stream]
        found[coef] = sum(batches) / len(batches)
    assert found[strong] < 0.98 * found[0.0]
    set_weights(sae, W_dec=torch.nn.functional.normalize(sae.W_dec, dim=-1))
    assert_saelens_agrees(sae, stream.x, tmp_path)


# what would make the term small without telling contexts apart


def chance(sae, f, b=4):
    """The term on features of b contexts of equally many tokens, neighbours as positives."""
    T = len(f) // b
    context = torch.arange(len(f)) // T
    is_negative = context[:, None] != context
    yes = torch.ones(len(f), dtype=torch.bool)
    positive = f.view(b, T, -1).roll(1, 1).reshape(len(f), -1)
    return sae.info_nce(f, positive, f, is_negative, [], yes).item()


def test_neither_dead_nor_constant_latents_nor_duplicates_nor_shrinking_pay():
    sae, f = contrastive(), rand_f(32)
    before = chance(sae, f)
    assert chance(sae, NO(32, D_SAE)) == pytest.approx(1)
    constant = f.clone()
    constant[:, 0] = 1e3
    assert chance(sae, constant) == pytest.approx(1, rel=1e-2)
    assert chance(sae, 1e-3 * f) == pytest.approx(before, rel=1e-3)
    half = torch.cat([f[:, :12], NO(32, 12)], 1)
    doubled = torch.cat([f[:, :12], f[:, :12]], 1)
    assert chance(sae, doubled) == pytest.approx(chance(sae, half), rel=1e-3)


def test_the_weight_follows_progress_and_explained_variance():
    batch, found = contexts(), {}
    for adapt_total in (True, False):
        sae = contrastive(adapt_total=adapt_total, ramp=0.5, coef=1.0)
        sae.start(batch.x)
        sae.explained.fill_(0.6)
        step = at(number=5, progress=0.25, length=1e-9)
        found[adapt_total] = sae.losses(batch, step)["contrast"].item()
    assert found[True] == pytest.approx(0.5 * 0.6 * found[False], rel=1e-4)


def test_a_projection_head_leaves_the_base_as_it_is_and_is_not_exported():
    sae, base, batch = contrastive(head_dim=5, adapt_total=False), make(ReLU), contexts()
    assert torch.equal(sae.W_enc, base.W_enc)
    sae.losses(batch, at())["contrast"].backward()
    assert sae.head.grad.shape == (D_SAE, 5) and sae.head.grad.abs().sum() > 0
    assert sae.export().state.keys() == base.export().state.keys()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"coef": -1.0}, "coef=-1.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"mix_fraction": 0.3}, "mix_fraction=0.3"),
        ({"n_anchors": 0}, "n_anchors=0"),
        ({"n_mixed": -1}, "n_mixed=-1"),
        ({"ramp": 2.0}, "ramp=2.0"),
        ({"positives": "paraphrase", "axis": "feature"}, "no two views"),
        ({"head_dim": 4, "axis": "feature"}, "head_dim=4"),
    ],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Contrastive.Config(**config)
