"""sparse probing's fast engine gives sae_bench's accuracies, from each data set read once.

Tolerance: none, for every accuracy of every class and for sae_bench's file (float32, CPU).
"""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.context import sae_bench_on
from bench.counters import counting
from bench.fast import probing, workload
from bench.fast.probe_data import Split, mean_over_tokens
from bench.fast.probes import Table, draw, full_accuracies, most_different, top_k_accuracies
from bench.fast.probing import latents
from bench.suite import Failed
from suites.sparse_probing import SparseProbingSuite
from tests import nano, tiny
from tests.test_fast_core import assert_same

DATASETS = ("fancyzhx/ag_news", "Helsinki-NLP/europarl")
CLASSES = {"fancyzhx/ag_news": 4, "Helsinki-NLP/europarl": 5}
N_TRAIN, N_TEST, T, LAYERS_BELOW = 40, 20, 16, 3
"""Texts per probe, tokens per text, and blocks up to the hook."""
SETTINGS = {
    "dataset_names": DATASETS,
    "probe_train_set_size": N_TRAIN,
    "probe_test_set_size": N_TEST,
    "context_length": T,
    "sae_batch_size": 7,  # does not divide the number of texts
    "lower_vram_usage": True,  # no probes on all latents, which take most of the time
}


@pytest.fixture(autouse=True)
def sizes_are_not_checked(monkeypatch):
    """As in every run: sae_bench's own call fails its own check (see bench.compat)."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def run(ctx, handles, **changes) -> list[Any]:
    config = SparseProbingSuite.Config(**(SETTINGS | changes))
    with contextlib.redirect_stdout(io.StringIO()):  # sae_bench prints every accuracy
        return list(SparseProbingSuite(config).run(ctx, handles))


@pytest.fixture(scope="module")
def on_nano(tmp_path_factory):
    """Results of both engines for four kinds of SAE on the shipped model, by engine and kind."""
    return engines(tmp_path_factory, nano.KINDS)


def engines(tmp_path_factory, kinds, **changes):
    found = {}
    for engine in ("reference", "fast"):
        ctx = nano.context(tmp_path_factory.mktemp(engine), engine=engine)
        results = run(ctx, nano.handles(*kinds), **changes)
        found[engine] = {scored.label: scored for scored in results}
    return found


@pytest.mark.parametrize("kind", nano.KINDS)
def test_every_accuracy_is_sae_benchs(on_nano, kind):
    assert_same(on_nano["reference"][kind], on_nano["fast"][kind])


@pytest.mark.slow
def test_so_is_every_accuracy_after_probes_on_all_latents(tmp_path_factory):
    found = engines(tmp_path_factory, nano.KINDS, lower_vram_usage=False)
    for kind in nano.KINDS:
        assert_same(found["reference"][kind], found["fast"][kind])
        steps = [found[engine][kind].work["probe_steps"] for engine in ("reference", "fast")]
        assert steps[0] == steps[1] > 0


def test_the_kinds_differ(on_nano):
    accuracies = [scored.metrics["sae_top_1_test_accuracy"] for scored in on_nano["fast"].values()]
    assert len(set(accuracies)) > 1
    assert max(accuracies) > 0.55


@pytest.mark.parametrize("kind", nano.KINDS)
def test_l0_is_counted_on_the_first_training_texts_of_each_class(on_nano, tmp_path, kind):
    """By hand: every text alone, so without padding."""
    (handle,), x = nano.handles(kind), first_texts(nano.context(tmp_path))
    with torch.no_grad():
        expected = (handle.sae.encode(x) > 0).sum().item() / len(x)
    for engine in ("reference", "fast"):
        assert on_nano[engine][kind].metrics["l0_suite"] == pytest.approx(expected, rel=1e-4)
    assert kind != "topk" or expected == 6


def first_texts(ctx):
    """[n, d_in] of the first 8 training texts of each class, cut, without special tokens."""
    from sae_bench.sae_bench_utils import dataset_utils
    from sae_bench.sae_bench_utils.dataset_info import chosen_classes_per_dataset

    model, found = ctx.model("base"), []
    special = torch.tensor(model.tokenizer.all_special_ids)
    for name in DATASETS:
        with sae_bench_on(ctx, "base"):
            train, _ = dataset_utils.get_multi_label_train_test_data(name, N_TRAIN, N_TEST, 42)
        for label in chosen_classes_per_dataset[name]:
            for text in train[label][:8]:
                ids = model.to_tokens(text, prepend_bos=True)[:, :T]
                x = model.run_with_cache(ids, names_filter=[nano.HOOK])[1][nano.HOOK]
                found.append(x[~torch.isin(ids, special)])
    return torch.cat(found).detach()


def test_the_work_is_what_the_formulas_say(on_nano):
    # N_TRAIN / 2 texts of each class, because a probe compares two
    texts = workload.ProbingTexts(
        sum(CLASSES.values()), (N_TRAIN + N_TEST) // 2, T, len((1, 2, 5)), N_TRAIN
    )
    for kind in nano.KINDS:
        for engine in ("reference", "fast"):
            work = on_nano[engine][kind].work
            cost = workload.sparse_probing(workload.Depth(5, LAYERS_BELOW), texts, engine)
            own, setup = cost.own.recorded(), cost.setup
            assert {n: work[n] for n in own} == own | {"probe_steps": 0}  # no probe on all latents
            assert work["shared_lm_block_tokens"] == setup.lm_block_tokens
            assert work["shared_unembed_tokens"] == 0
        assert work["shared_probe_fits"] == setup.probe_fits  # of the model's own channels
        assert 0 < work["shared_probe_steps"] <= setup.probe_steps  # they stop early


def test_the_place_in_the_list_changes_nothing(tmp_path):
    ctx = tiny.context(tmp_path)
    ctx.engine = "fast"
    labels = ("a", "b", "c")
    forward = run(ctx, [tiny.handle(x, tiny.make_sae(seed=i)) for i, x in enumerate(labels)])
    backward = run(
        ctx, [tiny.handle(x, tiny.make_sae(seed=i)) for i, x in reversed([*enumerate(labels)])]
    )
    by_label = {scored.label: scored for scored in backward}
    assert [scored.label for scored in forward] == list(labels)
    for scored in forward:
        assert scored.metrics == by_label[scored.label].metrics
        assert scored.units == by_label[scored.label].units


def test_the_models_own_accuracies_depend_on_no_other_data_set(tmp_path):
    ctx = tiny.context(tmp_path)
    ctx.engine = "fast"
    (both,) = run(ctx, [tiny.handle("a")])
    (second,) = run(ctx, [tiny.handle("a")], dataset_names=DATASETS[1:])
    key = f"{DATASETS[1]}_results"
    for name in ("llm_test_accuracy", "llm_top_2_test_accuracy"):
        there, here = (s.saebench["eval_result_unstructured"][key][name] for s in (both, second))
        assert there == here


def test_an_sae_that_fails_does_not_stop_the_others(tmp_path):
    ctx = tiny.context(tmp_path)
    ctx.engine = "fast"
    broken = tiny.make_sae()
    broken.encode = lambda x: 1 / 0
    good, bad, last = run(
        ctx, [tiny.handle("good"), tiny.handle("bad", broken), tiny.handle("last")]
    )
    assert isinstance(bad, Failed) and isinstance(bad.error, ZeroDivisionError)
    assert good.metrics == last.metrics


def test_an_sae_whose_l0_cannot_be_measured_does_not_stop_the_others(tmp_path, monkeypatch):
    def fails_on_b(sae, x):
        return 1.0 if sae is not broken else 1 / 0

    monkeypatch.setattr(probing, "active_per_token", fails_on_b)
    ctx, broken = tiny.context(tmp_path), tiny.make_sae()
    ctx.engine = "fast"
    first, failed = run(ctx, [tiny.handle("a"), tiny.handle("b", broken)])
    assert first.metrics["l0_suite"] == 1.0
    assert isinstance(failed.error, ZeroDivisionError)


def test_a_second_run_takes_the_models_part_from_disk(tmp_path):
    def again(seed):
        ctx = tiny.context(tmp_path)  # a process of its own
        ctx.engine, ctx.cache_gb = "fast", 1.0
        (scored,) = run(ctx, [tiny.handle("a", tiny.make_sae(seed=seed))])
        return scored

    first, second, other = again(0), again(0), again(1)
    assert first.metrics == second.metrics
    assert first.work["shared_lm_block_tokens"] > 0 and first.work["shared_probe_fits"] > 0
    for scored in (second, other):
        assert scored.work["shared_lm_block_tokens"] == scored.work["shared_probe_fits"] == 0
    assert other.metrics["sae_top_1_test_accuracy"] != first.metrics["sae_top_1_test_accuracy"]
    assert other.metrics["llm_top_1_test_accuracy"] == first.metrics["llm_top_1_test_accuracy"]


def test_tokens_are_known_by_their_ids_not_by_a_sum_of_zero():
    x = torch.tensor([[[1.0, -1.0], [3.0, 1.0], [0.0, 0.0]]])  # the first sums to 0, but counts
    mask = torch.tensor([[True, True, False]])
    assert mean_over_tokens(x, mask).tolist() == [[2.0, 0.0]]


def test_a_text_without_counted_tokens_is_zero_not_nan():
    x, mask = torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool)
    assert mean_over_tokens(x, mask).tolist() == [[0.0, 0.0, 0.0]]


def table(n_classes, n, d, seed=0):
    """Features in which class i is larger in column i."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_classes, n, d, generator=generator).relu()
    for i in range(n_classes):
        x[i, :, i % d] += 0.7
    return Table(x.flatten(0, 1), {str(i): n for i in range(n_classes)})


def as_classes(features):
    return dict(zip(features.sizes, features.x.split(list(features.sizes.values()))))


@given(
    n_classes=st.integers(2, 6),
    n=st.integers(1, 25),
    positive=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_draws_are_sae_benchs(n_classes, n, positive, seed):
    from sae_bench.evals.sparse_probing.probe_training import prepare_probe_data

    features, name = table(n_classes, n, 3), str(positive % n_classes)
    torch.manual_seed(seed)
    rows, labels = prepare_probe_data(as_classes(features), name)
    generator = torch.Generator().manual_seed(seed)
    found = draw(features.sizes, name, generator)
    assert torch.equal(found.of(features), rows)
    assert torch.equal(found.is_positive, labels == 1)
    assert torch.equal(generator.get_state(), torch.get_rng_state())


@settings(max_examples=10, deadline=None)
@given(n_classes=st.integers(2, 5), k=st.sampled_from([1, 2, 5]), seed=st.integers(0, 99))
def test_probes_on_k_columns_are_sae_benchs(n_classes, k, seed):
    from sae_bench.evals.sparse_probing.probe_training import train_probe_on_activations

    train, test = table(n_classes, 20, 8), table(n_classes, 10, 8, seed=1)
    torch.manual_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        _, expected = train_probe_on_activations(
            as_classes(train), as_classes(test), select_top_k=k
        )
    generator = torch.Generator().manual_seed(seed)
    assert top_k_accuracies(train, test, k, generator) == expected
    assert torch.equal(generator.get_state(), torch.get_rng_state())


def test_probes_on_all_columns_are_sae_benchs():
    from sae_bench.evals.sparse_probing.probe_training import train_probe_on_activations

    train, test = table(3, 150, 8), table(3, 130, 8, seed=1)  # more than one batch each
    torch.manual_seed(5)
    with contextlib.redirect_stdout(io.StringIO()):
        _, expected = train_probe_on_activations(
            as_classes(train),
            as_classes(test),
            select_top_k=None,
            use_sklearn=False,
            batch_size=250,
            epochs=100,
            lr=1e-2,
        )
    generator = torch.Generator().manual_seed(5)
    assert full_accuracies(train, test, generator) == expected
    assert torch.equal(generator.get_state(), torch.get_rng_state())


def test_the_columns_that_differ_most_are_found():
    positives = torch.tensor([[1.0, 5.0, 0.0, 2.0], [1.0, 7.0, 0.0, 2.0]])
    negatives = torch.tensor([[1.0, 0.0, 3.0, 2.0], [1.0, 0.0, 5.0, 1.0]])
    assert most_different(positives, negatives, 2).tolist() == [1, 2]
    assert most_different(positives, negatives, 1).tolist() == [1]
    assert np.isclose(6, (positives.mean(0) - negatives.mean(0)).abs().max().item())


def test_padding_is_not_encoded_and_changes_nothing():
    """Texts of any length, in any order, come back in theirs."""
    draws = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 14, (23,), generator=draws)
    mask = torch.arange(40) < lengths[:, None]
    mask[:, 0] = False  # the BOS
    x = torch.randn(23, 40, tiny.D_MODEL, generator=draws) * mask[:, :, None]
    sae = tiny.make_sae()
    with torch.no_grad():
        expected = mean_over_tokens(sae.encode(x) * mask[:, :, None], mask)
    with counting(saes=[sae]) as work:
        table = latents(sae, Split(x, mask, {"a": 10, "b": 13}), 5)
    assert torch.equal(table.x, expected)
    assert table.sizes == {"a": 10, "b": 13}
    assert work.sae_encoded_tokens < 23 * 14
