"""results.csv and units.csv: the agreed columns, one row per SAE x metric, nothing lost on disk."""

from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from bench.result import MetricValue, RunResult, UnitValue
from report.table import (
    RESULT_COLUMNS,
    UNIT_COLUMNS,
    read_table,
    results_table,
    units_table,
    write_table,
)
from tests.cells import HEADLINES, cell, failed, sae
from tests.test_result import cells as any_cell

COLUMNS = (
    "schema, run, cell_key, role, variant, label, world, model, hook_name, d_in, d_sae, init_seed, "
    "data_seed, eval_seed, knob_name, knob_value, target_l0, l0, train_tokens, suite, metric, "
    "value, direction, headline, state, reason, engine, data_revision, wall_s"
)


def test_the_columns_are_the_agreed_ones_in_order():
    run = RunResult("nano", (cell(),))
    assert ", ".join(results_table([run])) == COLUMNS
    assert ", ".join(units_table([run])) == "cell_key, metric, unit_kind, unit, value, n"


def test_a_cell_that_is_ok_has_one_row_per_metric():
    metrics = (
        MetricValue("explained_variance", 0.9, "higher", True),
        MetricValue("kl_div_score", None, "higher", False, "sae_bench wrote -1"),
    )
    table = results_table([RunResult("nano", (cell(metrics=metrics),))])
    assert list(table["metric"]) == ["explained_variance", "kl_div_score"]
    assert table["value"][0] == 0.9
    assert pd.isna(table["value"][1])
    assert list(table["reason"]) == ["", "sae_bench wrote -1"]
    assert list(table["headline"]) == [True, False]


@pytest.mark.parametrize("state", ["failed", "skipped", "invalid"])
def test_any_other_cell_has_an_empty_row_per_headline_metric(state):
    metrics = (*cell("absorption", 0.4).metrics, MetricValue("extra", 1.0, "none", False))
    bad = cell("absorption", metrics=metrics, state=state, reason="why")
    table = results_table([RunResult("nano", (bad,))])
    assert list(table["metric"]) == [name for name, _ in HEADLINES["absorption"]]
    assert table["value"].isna().all()
    assert set(table["state"]) == {state}
    assert set(table["reason"]) == {"why"}


def test_a_cell_that_failed_before_its_metrics_were_known_has_a_row():
    table = results_table([RunResult("nano", (failed(metrics=()),))])
    assert len(table) == 1
    assert table["reason"][0] == "RuntimeError: boom"


def test_every_run_has_its_rows_but_a_shared_cell_has_its_units_once():
    runs = [RunResult(name, (cell(),)) for name in ("a", "b")]
    assert list(results_table(runs)["run"]) == ["a", "a", "b", "b"]
    assert len(units_table(runs)) == 1


def test_units_of_a_cell_that_is_not_ok_are_left_out():
    assert units_table([RunResult("nano", (cell(state="invalid"),))]).empty


def test_text_that_looks_like_a_missing_value_stays_text(tmp_path):
    odd = cell(info=sae("NA", variant='a "b", c', knob_value=None), reason="")
    table = results_table([RunResult("null", (odd,))])
    write_table(table, tmp_path / "results.csv")
    back = read_table(tmp_path / "results.csv", RESULT_COLUMNS)
    assert (back["label"][0], back["run"][0]) == ("NA", "null")
    assert_frame_equal(back, table)


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(st.lists(any_cell, max_size=2), st.text(max_size=10))
def test_a_table_read_back_is_the_table_that_was_written(tmp_path_factory, cells, name):
    folder = tmp_path_factory.mktemp("table")
    runs = [RunResult(name, tuple(replace(c, cell_key=str(i)) for i, c in enumerate(cells)))]
    results, units = results_table(runs), units_table(runs)
    write_table(results, folder / "results.csv")
    write_table(units, folder / "units.csv")
    assert_frame_equal(read_table(folder / "results.csv", RESULT_COLUMNS), results)
    assert_frame_equal(read_table(folder / "units.csv", UNIT_COLUMNS), units)
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + len(results)


def test_units_keep_what_they_average():
    unit = UnitValue("m", "letter", "a", 0.25, 50)
    row = units_table([RunResult("nano", (cell(units=(unit,)),))]).iloc[0]
    assert list(row) == ["core-topk_k8_s0", "m", "letter", "a", 0.25, 50]
