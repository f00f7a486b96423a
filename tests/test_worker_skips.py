"""What a suite can say beside numbers: that an SAE is skipped, notes, and files for its cell."""

import json

from bench.executor import SuiteJob
from bench.ledger import PlannedCell
from bench.result import Cell
from bench.suite import Metric, Scored, Skipped, Suite
from bench.worker import evaluate
from tests.cells import sae


class Asking(Suite):
    """Skips the first SAE and scores the second."""

    Config = object
    metrics = (Metric("score", "higher", 0, 1, headline=True),)

    def run(self, ctx, saes):
        yield Skipped("a", "3 questions, 20 needed")
        yield Scored(
            "b", {"score": 0.0}, [], None, {"score": "gate failed"}, files={"grid.json": [1]}
        )


def job(tmp_path):
    cells = tuple(
        PlannedCell(
            key=name,
            suite="asking",
            sae=sae(name),
            sae_dir=tmp_path / "saes" / name,
            folder=tmp_path / name,
            failure=tmp_path / "failed" / name,
        )
        for name in ("a", "b")
    )
    return SuiteJob("asking", {}, "nano", cells, tmp_path / "work", tmp_path, 0, "revision")


def test_a_skipped_sae_a_note_and_a_file_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.worker._handle", lambda job, cell, suite: cell.sae)
    evaluate(job(tmp_path), Asking(), None)  # type: ignore[arg-type]
    skipped, scored = Cell.load(tmp_path / "a"), Cell.load(tmp_path / "b")
    assert (skipped.state, skipped.reason) == ("skipped", "3 questions, 20 needed")
    assert scored.state == "ok"
    assert (scored.metrics[0].value, scored.metrics[0].reason) == (0.0, "gate failed")
    assert json.loads((tmp_path / "b/grid.json").read_text()) == [1]
