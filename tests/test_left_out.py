"""A suite that cannot run here is left out on request, and the run says so."""

import pytest

from bench import left_out
from tests import cells
from tests.test_run import CONFIG


@pytest.fixture
def skipped(monkeypatch, tmp_path):
    """The cells of one SAE on a suite that is left out for a reason."""
    monkeypatch.setattr(left_out, "read_record", lambda folder: {"weights": folder.name})
    monkeypatch.setattr(left_out, "read_info", lambda folder: cells.sae(folder.name))
    out = tmp_path / "mine"

    def settle(reason: str):
        (planned,) = left_out.skipped_cells(
            CONFIG, {"unlearning": reason}, [tmp_path / "topk_k4_s0"], out
        )
        return planned

    return settle


def test_its_cells_are_skipped_with_the_reason(skipped):
    cell = skipped("no instruct sibling").load()
    assert (cell.state, cell.reason) == ("skipped", "no instruct sibling")
    assert cell.metrics and all(m.value is None and m.headline for m in cell.metrics)


def test_another_reason_is_another_cell(skipped):
    assert skipped("no corpus").key != skipped("no model").key
    assert skipped("no corpus").key == skipped("no corpus").key
