"""The ledger plans before the work and settles after it; a failed cell is tried again."""

import json
from pathlib import Path

import pytest

from bench import ledger
from bench.ledger import PlannedCell
from bench.result import Cell, SaeInfo, State, load_run

SAE = SaeInfo("topk_k8_s0", "trained", "topk", "nano", "nano", "blocks.2.hook_resid_post", 4, 8)


def planned(root: Path, key: str) -> PlannedCell:
    return PlannedCell(key, "core", SAE, root / "sae", root / ".store" / key)


def finish(cell: PlannedCell, state: State) -> None:
    Cell(cell.key, cell.suite, cell.sae, state, "reference", "rev", 42).save(cell.folder)


@pytest.mark.parametrize(
    ("state", "is_settled"), [("ok", True), ("invalid", True), ("skipped", True), ("failed", False)]
)
def test_only_a_failed_cell_is_computed_again(tmp_path, state, is_settled):
    cell = planned(tmp_path, "a")
    assert not cell.is_settled
    finish(cell, state)
    assert cell.is_settled is is_settled


def test_the_ledger_says_what_is_still_to_do(tmp_path):
    done, todo = planned(tmp_path, "a"), planned(tmp_path, "b")
    finish(done, "ok")
    ledger.record(tmp_path / "run", [done, todo])
    rows = json.loads((tmp_path / "run" / "ledger.json").read_text())["cells"]
    assert [(r["cell_key"], r["label"], r["state"]) for r in rows] == [
        ("a", "topk_k8_s0", "ok"),
        ("b", "topk_k8_s0", "pending"),
    ]


def test_a_closed_run_can_be_reported(tmp_path):
    cells = [planned(tmp_path, "a"), planned(tmp_path, "b")]
    finish(cells[0], "ok")
    finish(cells[1], "failed")
    closed = ledger.close(tmp_path / "run", "mine", cells)
    assert [c.state for c in closed] == ["ok", "failed"]
    run = load_run(tmp_path / "run")
    assert (run.name, run.cells) == ("mine", tuple(closed))
