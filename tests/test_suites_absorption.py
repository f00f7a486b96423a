"""Absorption through sae_bench's own functions: seeded, in our folders, never of a dead SAE."""

from pathlib import Path

import numpy as np
import pytest
import torch

import suites.absorption
from bench.context import patched
from suites.absorption import AbsorptionSuite
from tests import tiny

QUICK = AbsorptionSuite.Config(
    llm_batch_size=64,
    max_k_value=2,
    k_sparse_probe_num_epochs=2,
    eval_k_sparse_probe_batch_size=512,
    precalc_k_sparse_probe_sae_acts=True,
    min_GT_probe_f1=-1.0,
    min_feats_for_eval=2,
)
WORDS_PER_LETTER = 12


@pytest.fixture
def few_words(monkeypatch):
    """sae_bench's words, a dozen per letter, in another order at every call."""
    import sae_bench.evals.absorption.vocab as vocab

    original, calls = vocab.get_alpha_tokens, []

    def words(tokenizer):
        by_letter = {}
        for word in sorted(original(tokenizer)):
            by_letter.setdefault(word.strip()[0].lower(), []).append(word)
        chosen = [w for group in by_letter.values() for w in group[:WORDS_PER_LETTER]]
        calls.append(1)
        return chosen[len(calls) :] + chosen[: len(calls)]

    monkeypatch.setattr(vocab, "get_alpha_tokens", words)


def run(ctx, *handles, cfg=QUICK):
    return list(AbsorptionSuite(cfg).run(ctx, list(handles)))


def test_the_place_in_the_list_and_the_order_of_words_change_nothing(tmp_path, few_words):
    first, again = run(tiny.context(tmp_path), tiny.handle("a"), tiny.handle("b"))
    assert first.metrics == again.metrics
    assert first.units == again.units
    assert first.metrics["n_letters"] == len({u.unit for u in first.units})
    for name in ("mean_absorption_fraction", "mean_full_absorption"):
        values = [u.value for u in first.units if u.metric == name]
        assert first.metrics[name] == pytest.approx(sum(values) / len(values))
    assert first.saebench["eval_config"]["random_seed"] == 42


def test_another_seed_draws_other_words(tmp_path, few_words):
    ctx, other = tiny.context(tmp_path / "1"), tiny.context(tmp_path / "2")
    other.seed = 43
    assert run(ctx, tiny.handle("a"))[0].units != run(other, tiny.handle("a"))[0].units


def test_l0_is_counted_at_the_words_that_sae_bench_tests_its_probe_on(tmp_path, few_words):
    ctx, handle = tiny.context(tmp_path), tiny.handle("a")
    (scored,) = run(ctx, handle)
    (file,) = ctx.artifacts.rglob("data.npz")
    x = torch.from_numpy(np.load(file)["X_test"])
    with torch.no_grad():
        expected = (handle.sae.encode(x) > 0).sum().item() / len(x)
    assert scored.metrics["l0_suite"] == expected
    with patched(suites.absorption, "L0_WORDS", 3):
        (few,) = run(ctx, handle)
    with torch.no_grad():
        assert few.metrics["l0_suite"] == (handle.sae.encode(x[:3]) > 0).sum().item() / 3


def test_caches_stay_out_of_the_installed_package(tmp_path, few_words):
    import sae_bench

    ctx = tiny.context(tmp_path)
    run(ctx, tiny.handle("a"))
    assert (ctx.artifacts / "absorption" / "probes").is_dir()
    assert not (Path(sae_bench.__path__[0]) / "artifacts").exists()


def test_too_few_letters_is_an_error_that_counts_them(tmp_path, few_words):
    cfg = AbsorptionSuite.Config(**(vars(QUICK) | {"min_GT_probe_f1": 0.9999}))
    (failed,) = run(tiny.context(tmp_path), tiny.handle("a"), cfg=cfg)
    with pytest.raises(RuntimeError, match=r"only \d+ letters.*'nano'.*min_feats_for_eval=2"):
        raise failed.error


def test_an_sae_that_never_fires_gets_no_score(tmp_path):
    dead = tiny.handle("dead", tiny.make_sae(b_enc=-100.0), role="control")
    (scored,) = run(tiny.context(tmp_path), dead)
    assert scored.invalid == "no latent ever fires (L0 = 0)"
    assert set(scored.metrics.values()) == {None}
    assert set(scored.reasons) == set(scored.metrics) == {m.name for m in AbsorptionSuite.metrics}
