"""t_sae against a literal loop of the published objective, and numbers worked out by hand."""

import math

import pytest
import torch
from sequences import FakeSequences, contexts
from training import D_SAE, activations, at, make, set_weights
from twins import assert_saelens_agrees

from bench import ops
from bench.train import train_one
from bench.variant import Batch
from variants.t_sae import TSAE


@pytest.mark.parametrize(("similarity", "temperature"), [("dot", 1.0), ("cosine", 0.2)])
def test_the_contrast_equals_a_loop(similarity, temperature):
    sae = make(TSAE, k=3, contrast_by=similarity, contrast_temperature=temperature)
    g = ops.generator(0, "features")
    now, before = (torch.rand(6, 5, generator=g) for _ in range(2))
    valid = torch.tensor([True, True, False, True, True, True])

    def score(u, v):
        value = (u @ v).item()
        if similarity == "cosine":
            value /= (u.norm() * v.norm()).item()
        return math.exp(value / temperature)

    places, found = [i for i in range(6) if valid[i]], []
    for i in places:
        found.append(
            -math.log(score(now[i], before[i]) / sum(score(now[i], before[j]) for j in places))
        )
        found.append(
            -math.log(score(now[i], before[i]) / sum(score(now[j], before[i]) for j in places))
        )
    loss = sae.contrast(now, before, valid).item()
    assert loss == pytest.approx(sum(found) / len(found), rel=1e-4)


def test_a_number_by_hand():
    sae = make(TSAE, d_in=2, d_sae=4, k=2, high_share=0.5)
    eye = torch.eye(2)
    both = torch.tensor([True, True])
    # every token finds its neighbour with probability e / (e + 1)
    expected = math.log(1 + math.exp(-1))
    assert sae.contrast(eye, eye, both).item() == pytest.approx(expected)


def test_reconstruction_by_hand():
    sae = make(TSAE, d_in=2, d_sae=2, k=2, high_share=0.5, contrast=0.0, auxk_coef=0.0)
    set_weights(sae, W_enc=torch.eye(2), W_dec=torch.eye(2))
    losses = sae.losses(Batch(torch.tensor([[3.0, 2.0]])), at(2))
    assert losses["reconstruction"].item() == 0 and losses["high_level"].item() == 0.25 * 4


def test_pairs_are_neighbours_and_never_special(monkeypatch):
    sae, batch, seen = make(TSAE, k=3), contexts(b=3, T=6), []
    pre = sae._pre
    monkeypatch.setattr(sae, "_pre", lambda x: seen.append(x) or pre(x))
    valid = []
    contrast = sae.contrast
    monkeypatch.setattr(sae, "contrast", lambda n, b, v: valid.append(v) or contrast(n, b, v))
    sae.losses(batch, at())
    flat, mask = batch.contexts.flatten(0, 1), batch.mask.flatten()
    now, before = seen[1:]
    for n, (a, b) in enumerate(zip(now, before, strict=True)):
        here = int((flat == a).all(-1).nonzero())
        assert torch.equal(flat[here - 1], b) and here % 6 != 0
        assert valid[0][n] == (mask[here] and mask[here - 1])


def test_without_any_valid_pair_the_contrast_is_0():
    sae = make(TSAE, k=3)
    f = activations(4, 5)
    loss = sae.contrast(f, f, torch.zeros(4, dtype=torch.bool))
    assert loss.item() == 0


def test_training_with_it_tells_neighbours_by_their_high_level_latents(tmp_path):
    stream, found = FakeSequences(n_steps=120), {}
    for weight in (0.0, 5.0):
        sae = make(TSAE, k=4, high_share=0.3, contrast=weight)
        assert train_one(sae, stream).stop_reason is None
        assert (sae.encode(stream.x) > 0).sum(-1).float().mean() > 0
        batches = [b for _, b in zip(range(20), stream)]
        found[weight] = sum(sae._contrast(b, at()).item() for b in batches) / 20
        assert_saelens_agrees(sae, stream.x, tmp_path)
    assert found[5.0] < 0.98 * found[0.0]
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"k": 0.0}, "k=0.0"),
        ({"high_share": 1.0}, "high_share=1.0"),
        ({"contrast": -1.0}, "contrast=-1.0"),
        ({"contrast_temperature": 0.0}, "contrast_temperature=0.0"),
        ({"n_pairs": 1}, "n_pairs=1"),
    ],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        TSAE.Config(**config)


def test_special_tokens_do_not_count():
    sae, batch = make(TSAE, k=3), contexts(b=3, T=6)
    before = sae.losses(batch, at())["contrast"].item()
    batch.contexts[:, 0] = 100.0
    assert sae.losses(batch, at())["contrast"].item() == before
