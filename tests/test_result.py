"""Cells and manifests survive the disk unchanged, and broken files are named in one line."""

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bench.errors import UserError
from bench.result import (
    CELL_FILE,
    MANIFEST_FILE,
    STORE,
    Cell,
    MetricValue,
    SaeInfo,
    UnitValue,
    load_run,
    write_manifest,
)
from tests.cells import cell, sae, save_run

texts = st.text(max_size=20)
floats = st.floats(allow_nan=False, allow_infinity=False)
wholes = st.integers(-(2**53), 2**53)
infos = st.builds(
    SaeInfo,
    label=texts,
    role=st.sampled_from(["trained", "control", "imported"]),
    variant=texts,
    world=texts,
    model=texts,
    hook_name=texts,
    d_in=st.none() | wholes,
    d_sae=st.none() | wholes,
    init_seed=st.none() | wholes,
    l0=st.none() | floats,
    knob_name=st.none() | texts,
    knob_value=st.none() | floats,
)
cells = st.builds(
    Cell,
    cell_key=texts,
    suite=texts,
    sae=infos,
    state=st.sampled_from(["ok", "failed", "skipped", "invalid"]),
    engine=texts,
    data_revision=texts,
    eval_seed=st.none() | wholes,
    metrics=st.lists(
        st.builds(MetricValue, texts, st.none() | floats, texts, st.booleans(), texts), max_size=3
    ).map(tuple),
    units=st.lists(st.builds(UnitValue, texts, texts, texts, floats, wholes), max_size=3).map(
        tuple
    ),
    evidence=st.lists(texts, max_size=2).map(tuple),
    wall_s=st.none() | floats,
    versions=st.dictionaries(texts, texts, max_size=2),
)


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(cells)
def test_a_cell_read_back_is_the_cell_that_was_saved(tmp_path_factory, saved):
    folder = tmp_path_factory.mktemp("cell")
    saved.save(folder)
    assert Cell.load(folder) == saved


def test_a_nan_is_never_saved(tmp_path):
    bad = cell(metrics=(MetricValue("m", math.nan, "higher", True),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        bad.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cell_saved_before_evidence_was_known_can_be_read(tmp_path):
    cell().save(tmp_path)
    raw = json.loads((tmp_path / CELL_FILE).read_text())
    del raw["evidence"], raw["checksum"]
    assert Cell.from_dict(raw) == cell()


def test_another_schema_is_refused(tmp_path):
    replace(cell(), schema=99).save(tmp_path)
    with pytest.raises(ValueError, match="schema 99"):
        Cell.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must be a mapping"),
        ('{"schema": 1}', "is missing"),
        (None, "does not exist"),
    ],
)
def test_a_broken_cell_is_one_line_with_its_file(tmp_path, text, message):
    if text is not None:
        (tmp_path / CELL_FILE).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Cell.load(tmp_path)
    assert str(tmp_path / CELL_FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("state", "fine"), ("metrics", [{"name": 1}]), ("units", 3), ("suite", None), ("extra", 1)],
)
def test_a_field_of_the_wrong_type_is_refused(tmp_path, field, value):
    cell().save(tmp_path)
    path = tmp_path / CELL_FILE
    raw = json.loads(path.read_text()) | {field: value}
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="is damaged"):
        Cell.load(tmp_path)
    del raw["checksum"]  # as in a file that others wrote
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=field):
        Cell.load(tmp_path)


def test_a_run_lists_its_cells_in_the_order_of_the_manifest(tmp_path):
    saved = [cell("unlearning"), cell("core"), cell("core", info=sae("relu_s0"))]
    run = load_run(save_run(tmp_path / "nano", saved))
    assert run.name == "nano"
    assert list(run.cells) == saved
    assert [Cell.load(folder) for folder in run.folders] == saved


def test_two_runs_share_the_cells_of_one_store(tmp_path):
    for name in ("first", "second"):
        save_run(tmp_path / name, [cell()])
    assert load_run(tmp_path / "first").cells == load_run(tmp_path / "second").cells
    assert len(list((tmp_path / STORE).iterdir())) == 1


def test_a_manifest_keeps_its_cells_when_the_results_folder_moves(tmp_path):
    save_run(tmp_path / "old" / "nano", [cell()])
    (tmp_path / "old").rename(tmp_path / "new")
    assert load_run(tmp_path / "new" / "nano").cells == (cell(),)


def test_a_manifest_for_a_cell_elsewhere_is_not_written(tmp_path):
    cell().save(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="outside"):
        write_manifest(tmp_path / "results" / "nano", "nano", [tmp_path / "elsewhere"])


@pytest.mark.parametrize("how", ["..", "absolute", "link"])
def test_a_manifest_cannot_lead_outside_the_results_folder(tmp_path, how):
    cell().save(tmp_path / "secret")
    folder = save_run(tmp_path / "results" / "nano", [cell()])
    (folder.parent / "link").symlink_to(tmp_path / "secret")
    path = {"..": "../secret", "absolute": str(tmp_path / "secret"), "link": "link"}[how]
    entry = {"cell_key": cell().cell_key, "path": path}
    manifest = {"schema": 1, "run": "nano", "cells": [entry]}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="leads outside"):
        load_run(folder)


def test_a_cell_that_is_not_the_one_in_the_manifest_is_refused(tmp_path):
    folder = save_run(tmp_path / "nano", [cell()])
    replace(cell(), cell_key="other").save(tmp_path / STORE / cell().cell_key)
    with pytest.raises(UserError, match="instead of"):
        load_run(folder)


def test_a_folder_without_a_manifest_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        load_run(tmp_path)


def test_every_fact_of_an_sae_has_a_column():
    from report.table import RESULT_COLUMNS

    assert {f.name for f in fields(SaeInfo)} <= set(RESULT_COLUMNS)
