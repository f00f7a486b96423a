"""What is finished is shared by all runs, what failed is one run's, what is damaged is neither."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import ledger
from bench.ledger import PlannedCell
from bench.result import Cell, SaeInfo, State, load_run

SAE = SaeInfo("topk_k8_s0", "trained", "topk", "nano", "nano", "blocks.2.hook_resid_post", 4, 8)


def planned(root: Path, key: str, run: str = "run") -> PlannedCell:
    store, failures = root / ".store", root / run / "failed"
    return PlannedCell(key, "core", SAE, root / "sae", store / key, failures / key)


def end(cell: PlannedCell, state: State) -> Cell:
    ended = Cell(cell.key, cell.suite, cell.sae, state, "reference", "rev", 42, reason="because")
    cell.save(ended)
    return ended


@pytest.mark.parametrize("state", ["ok", "invalid", "skipped", "failed"])
def test_a_cell_is_read_as_it_ended(tmp_path, state):
    cell = planned(tmp_path, "a")
    assert cell.state() is None
    ended = end(cell, state)
    assert cell.load() == ended


@pytest.mark.parametrize(
    ("state", "seen"),
    [("ok", "ok"), ("invalid", "invalid"), ("skipped", "skipped"), ("failed", None)],
)
def test_other_runs_share_what_is_finished_and_no_failure(tmp_path, state, seen):
    end(planned(tmp_path, "a"), state)
    assert planned(tmp_path, "a", "other").state() == seen


@pytest.mark.parametrize("order", [("ok", "failed"), ("failed", "ok")])
def test_a_failure_never_hides_a_success(tmp_path, order):
    cell = planned(tmp_path, "a")
    for state in order:
        end(cell, state)
    assert cell.state() == "ok"


def test_a_failure_is_forgotten_when_asked_and_nothing_else(tmp_path):
    good, bad = planned(tmp_path, "a"), planned(tmp_path, "b")
    end(good, "ok")
    end(bad, "failed")
    ledger.forget_failures([good, bad])
    assert [good.state(), bad.state()] == ["ok", None]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_cell_with_any_byte_changed_is_still_to_do(tmp_path_factory, where, change):
    cell = planned(tmp_path_factory.mktemp("ledger"), "a")
    ended = end(cell, "ok")
    path = cell.folder / "cell.json"
    raw = bytearray(path.read_bytes())
    raw[int(where * len(raw))] ^= change
    path.write_bytes(raw)
    assert cell.load() in (None, ended)  # equal where the change is one of white space


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 99}'])
def test_a_cell_that_cannot_be_read_is_still_to_do(tmp_path, content):
    cell = planned(tmp_path, "a")
    end(cell, "ok")
    (cell.folder / "cell.json").write_bytes(content)
    assert cell.state() is None


def test_a_cell_in_the_place_of_another_does_not_pass_for_it(tmp_path):
    one, other = planned(tmp_path, "a"), planned(tmp_path, "b")
    end(one, "ok")
    one.folder.rename(other.folder)
    assert other.state() is None


def test_a_closed_run_can_be_reported(tmp_path):
    cells = [planned(tmp_path, "a"), planned(tmp_path, "b")]
    end(cells[0], "ok")
    end(cells[1], "failed")
    closed = ledger.close(tmp_path / "run", "mine", cells)
    assert [c.state for c in closed] == ["ok", "failed"]
    run = load_run(tmp_path / "run")
    assert (run.name, run.cells) == ("mine", tuple(closed))
