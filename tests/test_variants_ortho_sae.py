"""ortho_sae against a literal loop, by hand, and against its base."""

import pytest
import torch
from torch.nn.functional import normalize
from training import D_SAE, FakeStream, make, set_weights
from twins import assert_saelens_agrees

from bench.train import train_one
from variants.batch_topk import BatchTopK
from variants.ortho_sae import OrthoSAE


def ortho(**config):
    return make(OrthoSAE.on_base(BatchTopK), k=3, **config)


@pytest.mark.parametrize("chunk_size", [5, 8, 100])
def test_the_penalty_equals_a_loop_over_chunks(chunk_size):
    sae, order = ortho(chunk_size=chunk_size), torch.randperm(D_SAE)
    D, found = normalize(sae.W_dec.detach(), dim=-1), []
    for chunk in order.tensor_split(-(-D_SAE // chunk_size)):
        assert len(chunk) <= chunk_size
        for i in chunk.tolist():
            found.append(max((D[i] @ D[j]).item() for j in chunk.tolist() if j != i) ** 2)
    assert sae.orthogonality(order).item() == pytest.approx(sum(found) / D_SAE, rel=1e-4)


def test_a_number_by_hand():
    sae = make(OrthoSAE.on_base(BatchTopK), d_in=2, d_sae=3, k=1)
    set_weights(sae, W_dec=[[1.0, 0], [0.6, 0.8], [0, -1]])
    assert sae.orthogonality(torch.arange(3)).item() == pytest.approx((0.36 + 0.36 + 0) / 3)


def test_without_weight_it_is_its_base_bit_for_bit_and_with_it_rows_part(tmp_path):
    stream, weights, found = FakeStream(n_steps=60), [], {}
    for sae in (make(BatchTopK, k=3), ortho(coef=0.0), ortho(coef=5.0)):
        assert train_one(sae, stream).stop_reason is None
        weights.append({n: p.detach() for n, p in sae.named_parameters()})
        if hasattr(sae, "orthogonality"):
            found[sae.cfg.coef] = sae.orthogonality(torch.arange(D_SAE)).item()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert found[5.0] < 0.8 * found[0.0]
    assert_saelens_agrees(sae, stream.x, tmp_path)


def test_duplicates_cost_the_most():
    sae = ortho()
    set_weights(sae, W_dec=sae.W_dec[:1].expand(D_SAE, -1).clone())
    assert sae.orthogonality(torch.arange(D_SAE)).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("config", "message"), [({"coef": -1.0}, "coef=-1.0"), ({"chunk_size": 1}, "chunk_size=1")]
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ortho(**config)
