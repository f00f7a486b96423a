"""core through sae_bench's own functions, with the numbers it gets wrong computed beside it."""

import pytest
import torch

from bench.moments import Moments, counted
from suites.core import CoreSuite
from tests import tiny

QUICK = CoreSuite.Config(
    batch_size_prompts=4,
    n_eval_reconstruction_batches=2,
    n_eval_sparsity_variance_batches=1,
    context_size=48,
)


def run(tmp_path, *handles, cfg=QUICK):
    return list(CoreSuite(cfg).run(tiny.context(tmp_path), list(handles)))


def batches(n=3):
    generator = torch.Generator().manual_seed(0)
    x = 50 + torch.randn(n, 4, 5, 8, generator=generator)  # far from 0: the mean must be removed
    x_hat = x + 0.3 * torch.randn(x.shape, generator=generator)
    mask = torch.rand(x.shape[:-1], generator=generator) > 0.3
    return x, x_hat, mask


def test_explained_variance_equals_sae_lens_and_the_formula():
    from sae_lens.evals import ExplainedVarianceCalculator

    x, x_hat, mask = batches()
    moments, reference = Moments(), ExplainedVarianceCalculator()
    for args in zip(x, x_hat, mask):
        moments.add(*args)
        reference.add_batch(args[1][args[2]], args[0][args[2]])
    inside, outside = x[mask].double(), x_hat[mask].double()
    error = (inside - outside).pow(2).sum()
    expected = 1 - error / (inside - inside.mean(0)).pow(2).sum()
    assert moments.explained_variance == pytest.approx(expected.item(), rel=1e-9)
    assert moments.explained_variance == pytest.approx(reference.compute(), abs=1e-4)
    assert moments.mse == pytest.approx((error / len(inside)).item(), rel=1e-9)


def test_batches_weighted_by_their_spread_make_the_whole():
    x, x_hat, mask = batches()
    moments = Moments()
    for args in zip(x, x_hat, mask):
        moments.add(*args)
    units = moments.units()
    assert [u.n for u in units] == mask.sum((1, 2)).tolist()
    spread = [(b[m].double() - x[mask].double().mean(0)).pow(2).sum() for b, m in zip(x, mask)]
    whole = sum(u.value * s for u, s in zip(units, spread)) / sum(spread)
    assert moments.explained_variance == pytest.approx(whole.item(), rel=1e-9)


def test_special_tokens_do_not_count():
    tokens = torch.tensor([[2, 9, 0], [1, 9, 9]])
    assert counted(tokens, {0, 1, 2, None}).tolist() == [[False, True, False], [False, True, True]]


def test_a_real_run(tmp_path):
    first, again = run(tmp_path, tiny.handle("a"), tiny.handle("b"))
    assert first.metrics == again.metrics  # the place in the list changes nothing
    assert set(first.metrics) == {m.name for m in CoreSuite.metrics}
    assert first.invalid is None
    assert first.saebench["sae_lens_release_id"] == "a"
    # one batch: sae_bench divides by its tokens once more than it should
    (batch,) = [u for u in first.units if u.metric == "explained_variance"]
    assert first.metrics["saebench060_mse"] * batch.n == pytest.approx(first.metrics["mse"])
    assert batch.value == pytest.approx(first.metrics["explained_variance"])
    theirs = first.saebench["eval_result_metrics"]["reconstruction_quality"]
    assert first.metrics["saebench060_explained_variance"] == theirs["explained_variance"]
    scores = [u for u in first.units if u.metric == "ce_loss_score"]
    assert len(scores) == QUICK.n_eval_reconstruction_batches


def test_ours_stays_when_sae_bench_measures_the_wrong_variance(tmp_path):
    scored = run(tmp_path, tiny.handle("perfect", Perfect.like(tiny.make_sae())))[0]
    assert scored.metrics["explained_variance"] == 1
    assert scored.metrics["mse"] == 0
    assert scored.metrics["ce_loss_score"] == pytest.approx(1)


class Perfect:
    """Mixed into an SAE: reconstructs exactly."""

    @staticmethod
    def like(sae):
        sae.encode = lambda x: torch.cat(
            [x, torch.zeros(*x.shape[:-1], tiny.D_SAE - x.shape[-1])], -1
        )
        sae.decode = lambda f: f[..., : tiny.D_MODEL]
        return sae


def test_a_nan_is_missing_with_a_reason_and_a_dead_sae_invalid(tmp_path):
    zero = {"b_enc": -100.0, "b_dec": 0.0}
    trained, control = run(
        tmp_path,
        tiny.handle("trained", tiny.make_sae(**zero), role="trained"),
        tiny.handle("control", tiny.make_sae(**zero), role="control"),
    )
    assert trained.metrics["cossim"] is None
    assert trained.reasons["cossim"] == "sae_bench computed nan"
    assert trained.metrics["l0_suite"] == 0
    assert trained.invalid == "no latent ever fires (L0 = 0)"
    assert control.invalid is None  # a control is degenerate on purpose


def test_what_sae_bench_swallows_is_raised(tmp_path):
    sae = tiny.make_sae()

    def broken(x):
        raise ValueError("no such latent")

    sae.encode = broken
    with pytest.raises(RuntimeError, match="no such latent"):
        run(tmp_path, tiny.handle("broken", sae))
