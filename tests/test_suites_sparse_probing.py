"""Sparse probing through sae_bench's own functions: every SAE on the same texts."""

from dataclasses import replace

import pytest

from bench.errors import UserError
from suites.sparse_probing import SparseProbingSuite
from tests import tiny

QUICK = SparseProbingSuite.Config(
    dataset_names=("LabHC/bias_in_bios_class_set1", "fancyzhx/ag_news"),
    probe_train_set_size=40,
    probe_test_set_size=20,
    context_length=16,
)


def run(tmp_path, *handles, cfg=QUICK):
    return list(SparseProbingSuite(cfg).run(tiny.context(tmp_path), list(handles)))


def test_the_place_in_the_list_changes_nothing(tmp_path):
    first, dead, again = run(
        tmp_path,
        tiny.handle("a"),
        tiny.handle("dead", tiny.make_sae(b_enc=-100.0)),
        tiny.handle("b"),
    )
    assert first.metrics == again.metrics
    assert first.units == again.units
    assert dead.metrics["sae_top_1_test_accuracy"] == 0.5
    assert dead.metrics["l0_suite"] == 0 < first.metrics["l0_suite"]
    assert dead.invalid == "no latent ever fires (L0 = 0)"
    assert first.invalid is None


def test_units_average_to_the_metric_and_sae_bench_accepts_the_file(tmp_path):
    (scored,) = run(tmp_path, tiny.handle("a"))
    assert set(scored.metrics) == {m.name for m in SparseProbingSuite.metrics}
    assert scored.saebench["eval_config"]["probe_train_set_size"] == 40
    for k in (1, 2, 5):
        units = [u for u in scored.units if u.metric == f"sae_top_{k}_test_accuracy"]
        by_dataset = {}
        for unit in units:
            dataset, _, _ = unit.unit.rpartition("/")
            by_dataset.setdefault(dataset, []).append(unit.value)
        assert {d: len(v) for d, v in by_dataset.items()} == {
            "LabHC/bias_in_bios_class_set1": 5,
            "fancyzhx/ag_news": 4,
        }
        means = [sum(v) / len(v) for v in by_dataset.values()]
        assert scored.metrics[f"sae_top_{k}_test_accuracy"] == pytest.approx(sum(means) / 2)
        assert {u.n for u in units} == {20}


def test_what_was_not_asked_for_is_missing_with_a_reason(tmp_path):
    cfg = SparseProbingSuite.Config(**(vars(QUICK) | {"k_values": (1,), "lower_vram_usage": True}))
    (scored,) = run(tmp_path, tiny.handle("a"), cfg=cfg)
    assert scored.metrics["sae_top_1_test_accuracy"] is not None
    for name in ("sae_top_5_test_accuracy", "saebench060_sae_test_accuracy"):
        assert scored.metrics[name] is None  # sae_bench writes -1 for the second
        assert scored.reasons[name]


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_too_few_texts_are_told_with_what_to_lower(tmp_path, engine):
    cfg = replace(QUICK, probe_train_set_size=10**6)
    says = "probe_train_set_size=1000000, .*'LabHC/bias_in_bios_class_set1' has fewer texts .*lower"
    ctx = replace(tiny.context(tmp_path), engine=engine)
    with pytest.raises(UserError, match=says):
        list(SparseProbingSuite(cfg).run(ctx, [tiny.handle("a")]))
