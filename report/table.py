"""The two long tables: results.csv, one row per SAE x metric, and units.csv, one row per unit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from bench.files import write_atomic
from bench.result import Cell, MetricValue, RunResult
from report.text import plain

TEXT, WHOLE, NUMBER, FLAG = "object", "Int64", "float64", "bool"

RESULT_COLUMNS = {
    "schema": WHOLE,
    "run": TEXT,
    "cell_key": TEXT,
    "role": TEXT,
    "variant": TEXT,
    "label": TEXT,
    "world": TEXT,
    "model": TEXT,
    "hook_name": TEXT,
    "d_in": WHOLE,
    "d_sae": WHOLE,
    "init_seed": WHOLE,
    "data_seed": WHOLE,
    "eval_seed": WHOLE,
    "knob_name": TEXT,
    "knob_value": NUMBER,
    "target_l0": NUMBER,
    "l0": NUMBER,
    "train_tokens": WHOLE,
    "suite": TEXT,
    "metric": TEXT,
    "value": NUMBER,
    "direction": TEXT,
    "headline": FLAG,
    "state": TEXT,
    "reason": TEXT,
    "engine": TEXT,
    "data_revision": TEXT,
    "wall_s": NUMBER,
}
"""Columns of results.csv in order, with their type; whole numbers and numbers may be missing."""

UNIT_COLUMNS = {
    "cell_key": TEXT,
    "metric": TEXT,
    "unit_kind": TEXT,
    "unit": TEXT,
    "value": NUMBER,
    "n": WHOLE,
}


def results_table(runs: Iterable[RunResult]) -> pd.DataFrame:
    """One row per SAE x metric, columns RESULT_COLUMNS.

    A cell that is not ok has one row per headline metric, with no value but its reason.
    """
    rows = [row for run in runs for cell in run.cells for row in _rows(run.name, cell)]
    return _frame(rows, RESULT_COLUMNS)


def units_table(runs: Iterable[RunResult]) -> pd.DataFrame:
    """One row per unit of each cell that is ok, columns UNIT_COLUMNS; a cell in two runs once."""
    cells = {cell.cell_key: cell for run in runs for cell in run.cells if cell.state == "ok"}
    rows = [
        {**vars(unit), "cell_key": cell.cell_key} for cell in cells.values() for unit in cell.units
    ]
    return _frame(rows, UNIT_COLUMNS)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, atomically; floats keep every digit."""
    write_atomic(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """A table written by `write_table`; text stays text, so an SAE called `NA` keeps its name."""
    raw = pd.read_csv(path, dtype=str, keep_default_na=False, lineterminator="\n")
    numbers = [name for name, kind in columns.items() if kind in (WHOLE, NUMBER)]
    raw[numbers] = raw[numbers].replace("", None)
    flags = [name for name, kind in columns.items() if kind == FLAG]
    raw[flags] = raw[flags] == "True"
    return raw.astype(columns).loc[:, list(columns)]


def _rows(run: str, cell: Cell) -> list[dict[str, Any]]:
    common = {
        **vars(cell),
        **vars(cell.sae),
        "run": run,
        "knob_name": cell.sae.knob_name or "",
    }
    return [{**common, **_metric(cell, metric)} for metric in _shown(cell)]


def _shown(cell: Cell) -> list[MetricValue]:
    if cell.state == "ok":
        return list(cell.metrics)
    headline = [metric for metric in cell.metrics if metric.headline]
    # a cell that failed before its metrics were known still has to be seen
    return headline or [MetricValue("", None, "none", True)]


def _metric(cell: Cell, metric: MetricValue) -> dict[str, Any]:
    ok = cell.state == "ok"
    return {
        "metric": metric.name,
        "value": metric.value if ok else None,
        "direction": metric.direction,
        "headline": metric.headline,
        "reason": metric.reason if ok else cell.reason,
    }


def _frame(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=pd.Index(columns)).astype(columns)
    for name in (name for name, kind in columns.items() if kind == TEXT):
        table[name] = table[name].map(plain).astype(object)  # one row is one line
    return table
