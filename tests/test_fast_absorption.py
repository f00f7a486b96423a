"""Absorption's fast engine gives sae_bench's values when both are seeded alike.

F1, latents and counts are equal; fractions of a word's activation within 1e-6, in fp32.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.absorption import k_sparse
from bench.absorption.engine import make_engine, seeded
from bench.absorption.latent_acts import LatentActs
from bench.absorption.letters import LETTERS, letters_of
from bench.counters import Work, counting
from bench.fast import workload
from bench.suite import Failed
from suites.absorption import AbsorptionSuite
from tests import nano

LAYER = 2
WORDS_PER_LETTER = 16
CFG = AbsorptionSuite.Config(
    llm_batch_size=64,
    max_k_value=3,
    k_sparse_probe_num_epochs=6,
    k_sparse_probe_batch_size=128,
    eval_k_sparse_probe_batch_size=512,
    min_GT_probe_f1=0.3,
    min_feats_for_eval=2,
)


@pytest.fixture(scope="module")
def few_words():
    """Some of sae_bench's words for each letter."""
    import sae_bench.evals.absorption.vocab as vocab

    original = vocab.get_alpha_tokens

    def words(tokenizer):
        by_letter = {}
        for word in sorted(original(tokenizer)):
            by_letter.setdefault(word.strip()[0].lower(), []).append(word)
        return [w for group in by_letter.values() for w in group[:WORDS_PER_LETTER]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocab, "get_alpha_tokens", words)
        yield


@pytest.fixture(scope="module")
def engines(tmp_path_factory, few_words):
    """Both engines, ready."""
    made = {}
    for name in ("reference", "fast"):
        ctx = nano.context(tmp_path_factory.mktemp(name), engine=name)
        made[name] = make_engine(ctx, CFG)
        made[name].prepare(LAYER)
    return made


@pytest.fixture(scope="module")
def scores(engines):
    """(engine, kind of SAE) -> what came out."""
    return {
        (name, handle.label): engine.scores(handle)
        for name, engine in engines.items()
        for handle in nano.handles()
    }


@pytest.mark.parametrize("kind", nano.KINDS)
def test_the_result_of_every_letter_is_sae_benchs(scores, kind):
    ours, theirs = (scores[name, kind].raw["eval_result_details"] for name in ("fast", "reference"))
    assert [row["first_letter"] for row in ours] == [row["first_letter"] for row in theirs]
    for mine, row in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(row, abs=1e-6)


@pytest.mark.parametrize("name", AbsorptionSuite.engines)
def test_smaller_batches_change_no_score(scores, few_words, tmp_path, name):
    """What is declared in `batch_sizes` may be halved when memory is short."""
    smaller = {field: getattr(CFG, field) // 2 for field in AbsorptionSuite.batch_sizes}
    engine = make_engine(nano.context(tmp_path, engine=name), replace(CFG, **smaller))
    engine.prepare(LAYER)
    found = engine.scores(nano.handles()[0]).raw["eval_result_details"]
    expected = scores[name, nano.KINDS[0]].raw["eval_result_details"]
    assert smaller and len(found) == len(expected)
    for mine, row in zip(found, expected, strict=True):
        assert mine == pytest.approx(row, abs=1e-6)


@pytest.mark.parametrize("kind", nano.KINDS)
def test_the_file_is_sae_benchs(scores, kind):
    ours, theirs = (scores[name, kind].raw for name in ("fast", "reference"))
    changing = dict.fromkeys(
        ("eval_id", "datetime_epoch_millis", "eval_result_details", "eval_result_metrics")
    )
    assert ours | changing == theirs | changing
    means = [raw["eval_result_metrics"]["mean"] for raw in (ours, theirs)]
    assert means[0] == pytest.approx(means[1], abs=1e-6)


def test_the_comparison_sees_absorption_and_splitting(scores):
    for kind in ("relu", "topk", "jumprelu"):
        rows = scores["reference", kind].raw["eval_result_details"]
        assert len({row["num_split_features"] for row in rows}) > 1
        assert len({row["mean_absorption_fraction"] for row in rows}) > 2
        assert sum(row["num_full_absorption"] for row in rows) > 0


@pytest.mark.parametrize("kind", nano.KINDS)
def test_f1_and_split_latents_are_sae_benchs(engines, scores, kind):
    import pandas as pd

    folder = engines["reference"].ctx.artifacts / "absorption/k_sparse" / f"{kind}_custom_sae"
    (file,) = folder.glob("*_metrics.parquet")
    theirs = pd.read_parquet(file)
    assert list(theirs["letter"]) == list(LETTERS)
    fast, (handle,) = engines["fast"], nano.handles(kind)
    letters = fast._shared[LAYER].letters
    with seeded(fast.ctx), torch.no_grad():
        acts = LatentActs(handle.sae, letters.x_train, 128)
        probes = k_sparse.k_probes(
            acts, letters.y_train, k_sparse.l1_probe(acts, letters.y_train, CFG), CFG.max_k_value
        )
        f1 = k_sparse.f1_of_probes(
            LatentActs(handle.sae, letters.x_test, 512), letters.y_test, probes
        )
    assert fast._shared[LAYER].f1.tolist() == list(theirs["f1_probe"])
    for k in range(1, CFG.max_k_value + 1):
        assert f1[:, k - 1].tolist() == list(theirs[f"f1_sparse_sae_{k}"])
        ours = [some[k - 1].latents.tolist() for some in probes]
        assert ours == [feats.tolist() for feats in theirs[f"sparse_sae_k_{k}_feats"]]


def test_both_engines_measure_l0_on_the_same_words(engines):
    ours, theirs = (engines[name].words(LAYER) for name in ("fast", "reference"))
    assert torch.equal(ours, theirs)
    assert len(ours) > 50


def test_the_work_is_what_the_formulas_say(engines, scores):
    letters = engines["fast"]._shared[LAYER].letters
    n_train, n_test, n_again = map(len, (letters.x_train, letters.x_test, letters.x_again))
    ours, theirs = (scores[name, "topk"].work for name in ("fast", "reference"))
    words = workload.Words(
        n_train,
        n_test,
        n_again,
        theirs["unembed_tokens"] // n_again,
        CFG.max_k_value,
        CFG.k_sparse_probe_num_epochs,
        CFG.k_sparse_probe_batch_size,
        is_encoded_once=False,
    )
    depth = workload.Depth(engines["fast"].ctx.model("base").cfg.n_layers, LAYER + 1)
    reference, fast = (workload.absorption(depth, words, name) for name in ("reference", "fast"))
    assert theirs == reference.own.recorded()
    assert {name: ours[name] for name in theirs} == fast.own.recorded()
    # a pass over the words ends at the hook and is shared; sae_bench's goes to the logits
    assert ours["shared_lm_block_tokens"] == (fast.setup + fast.shared).lm_block_tokens
    assert ours["shared_unembed_tokens"] == 0
    assert theirs["sae_encoded_tokens"] > CFG.k_sparse_probe_num_epochs * n_train


def test_letters_are_read_back_exactly_and_follow_the_seed(tmp_path, few_words):
    ctx = nano.context(tmp_path, cache_gb=0.1)
    made = letters_of(ctx, CFG, LAYER)
    with counting([ctx.model("base")]) as work:
        again = letters_of(ctx, CFG, LAYER)
    assert work == Work()
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    ctx.seed = 43
    assert letters_of(ctx, CFG, LAYER).x_test[0].tolist() != made.x_test[0].tolist()


def test_too_few_letters_are_an_error_before_any_sae(tmp_path, few_words):
    cfg = AbsorptionSuite.Config(**(vars(CFG) | {"min_GT_probe_f1": 1.0}))
    with pytest.raises(RuntimeError, match=r"only 0 letters.*'nano'.*min_feats_for_eval=2"):
        make_engine(nano.context(tmp_path, engine="fast"), cfg).prepare(LAYER)


def test_a_broken_sae_costs_only_its_own_cell(tmp_path, few_words):
    ctx = nano.context(tmp_path, engine="fast")
    broken = nano.handles("topk")[0]._replace(label="broken")
    broken.sae.encode = None
    failed, scored = AbsorptionSuite(CFG).run(ctx, [broken, *nano.handles("relu")])
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, TypeError)
    assert scored.metrics["n_letters"] == len({u.unit for u in scored.units})
    (relu,), x = nano.handles("relu"), letters_of(ctx, CFG, LAYER).x_test
    with torch.no_grad():
        assert scored.metrics["l0_suite"] == (relu.sae.encode(x) > 0).sum().item() / len(x)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.0, 1.5, -2.0]), min_size=4, max_size=4), min_size=1),
    st.data(),
)
def test_sparse_acts_give_back_any_rows_and_columns(values, data):
    dense = torch.tensor(values)

    class Same:
        device, dtype = "cpu", torch.float32

        def encode(self, x):
            return x

    acts = LatentActs(Same(), dense, 3)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(dense) - 1))), dtype=torch.long)
    columns = torch.tensor(data.draw(st.lists(st.integers(0, 3))), dtype=torch.long)
    assert torch.equal(acts.rows(rows), dense[rows])
    assert torch.equal(acts.columns(columns), dense[:, columns])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_f1_is_scikit_learns(pairs):
    from sklearn.metrics import f1_score

    predicted, actual = map(list, zip(*pairs, strict=True))
    ours = k_sparse.f1(torch.tensor([predicted]), torch.tensor([actual]))
    assert ours.tolist() == [f1_score(actual, predicted, zero_division=0.0)]
