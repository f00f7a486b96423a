"""Whatever one SAE does to the process of its suite, the others are scored and the reason is told.

Real processes run the real worker on a fake suite, see `tests.faulty`.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import executor
from bench.errors import RunStopped
from bench.executor import SuiteJob, run_suites
from bench.ledger import PlannedCell
from bench.result import SaeInfo
from tests import faulty


def job(folder: Path, *labels: str, run: str = "run", **changes) -> SuiteJob:
    cells = tuple(
        PlannedCell(
            key=f"key-{label}",
            suite="faulty",
            sae=SaeInfo(
                label, "trained", "topk", "nano", "nano", "blocks.1.hook_resid_post", 96, 8
            ),
            sae_dir=folder / "saes" / label,
            folder=folder / ".store" / f"key-{label}",
            failure=folder / run / "failed" / f"key-{label}",
        )
        for label in labels
    )
    known = {"suite": "faulty", "config": {}, "model": "nano", "seed": 3, "data_revision": "rev"}
    paths = {"work": folder / run / "work" / "faulty", "cache_dir": folder / "cache"}
    return SuiteJob(**(known | paths | {"cells": cells, "timeout_s": 60.0} | changes))


@pytest.fixture(autouse=True)
def fake_suite(monkeypatch):
    monkeypatch.setattr(executor, "_command", lambda file: [*faulty.COMMAND, str(file)])


def quiet(*args):
    pass


def seen(one: SuiteJob) -> list[str]:
    return (one.work.parent / faulty.SEEN).read_text().split()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("kill", "was ended by SIGKILL, as happens when memory runs out"),
        ("abort", "was ended by SIGABRT"),
        ("exit", "ended early with exit status 3"),
        ("ioerr", "ended early with exit status 74"),
        ("quit", "ended early with exit status 1"),
        ("raise", "ArithmeticError: boom"),
        ("nan", "score: is nan"),
    ],
)
def test_a_fault_stays_in_its_cell(tmp_path, fault, reason):
    one = job(tmp_path, "a", fault, "b", "c")
    cells = run_suites([one], 1, quiet)
    assert [c.state for c in cells] == ["ok", "failed", "ok", "ok"]
    assert reason in cells[1].reason
    assert seen(one).count("a") == 1  # what is finished is not computed again
    assert seen(one).count("b") == seen(one).count("c") == 1


def test_a_process_that_hangs_is_ended_with_its_children_and_the_others_go_on(tmp_path):
    one = job(tmp_path, "a", "hang", "b", timeout_s=15.0)
    cells = run_suites([one], 1, quiet)
    assert [c.state for c in cells] == ["ok", "failed", "ok"]
    assert cells[1].reason == "time limit of 15 s exceeded"
    child = int((one.work / "child.pid").read_text())
    assert not is_alive(child)


def test_the_time_limit_is_for_a_cell_and_not_for_all(tmp_path):
    labels = [f"slow_{i}" for i in range(12)]
    one = job(tmp_path, *labels, timeout_s=10.0)
    assert {c.state for c in run_suites([one], 1, quiet)} == {"ok"}


def test_several_faults_in_one_suite_cost_only_their_cells(tmp_path):
    one = job(tmp_path, "kill_1", "exit_1", "a", "kill_2", "b", "exit_2")
    cells = run_suites([one], 1, quiet)
    assert [c.state for c in cells] == ["failed", "failed", "ok", "failed", "ok", "failed"]


def test_a_suite_that_always_dies_is_given_up(tmp_path):
    one = job(tmp_path, *(f"kill_{i}" for i in range(8)))
    cells = run_suites([one], 1, quiet)
    assert {c.state for c in cells} == {"failed"}
    assert ["not tried" in c.reason for c in cells] == [False] * 3 + [True] * 5
    assert len(seen(one)) <= 2 * executor.GIVE_UP_AFTER


def test_a_fault_in_one_suite_does_not_touch_another(tmp_path):
    jobs = [job(tmp_path, "kill"), job(tmp_path, "a", "b", run="other")]
    cells = run_suites(jobs, 2, quiet)
    assert [c.state for c in cells] == ["failed", "ok", "ok"]


def test_a_full_disk_stops_the_run_and_takes_nothing_with_it(tmp_path):
    one = job(tmp_path, "a", "full", "b")
    with pytest.raises(RunStopped, match="No space left on device"):
        run_suites([one], 1, quiet)
    assert [cell.state() for cell in one.cells] == ["ok", None, None]
    again = job(tmp_path, "b")
    assert [c.state for c in run_suites([again], 1, quiet)] == ["ok"]


def test_what_a_killed_process_left_half_written_is_not_read_by_the_next(tmp_path, monkeypatch):
    one = job(tmp_path, "a")
    for folder in executor.SCRATCH:
        (one.work / folder).mkdir(parents=True)
        (one.work / folder / "half").touch()
    looks = "import os, sys; sys.exit(7 if os.path.exists('artifacts/half') else 8)"
    monkeypatch.setattr(executor, "_command", lambda file: [sys.executable, "-c", looks])
    (cell,) = run_suites([one], 1, quiet)
    assert "exit status 8" in cell.reason


def test_what_another_run_finished_meanwhile_is_taken_over(tmp_path):
    """Both planned the same cells; the second comes to them when the first is done."""
    first, second = job(tmp_path, "a", "b"), job(tmp_path, "a", "b", run="other")
    done = run_suites([first], 1, quiet)
    assert run_suites([second], 1, quiet) == done
    assert not (second.work.parent / faulty.SEEN).exists()


def test_two_runs_at_once_share_a_store(tmp_path):
    jobs = [job(tmp_path, "a", "slow", "b", run=run) for run in ("run", "other")]
    cells = run_suites(jobs, 2, quiet)
    assert [c.state for c in cells] == ["ok"] * 6
    assert cells[:3] == cells[3:]


RUN = """
import sys
from pathlib import Path
from bench import executor
from tests import faulty, test_isolation
executor._command = lambda file: [*faulty.COMMAND, str(file)]
executor.run_suites([test_isolation.job(Path(sys.argv[1]), "a", "hang", "b")], 1, lambda *a: None)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_dies_takes_its_processes_with_it_and_keeps_what_is_finished(tmp_path, number):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=Path(__file__).parents[1]
    )
    one = job(tmp_path, "a", "hang", "b")
    child = one.work / "child.pid"
    wait_for(lambda: child.exists() and child.read_text())
    run.send_signal(number)
    assert run.wait(30) == -number
    wait_for(lambda: not is_alive(int(child.read_text())))
    assert [cell.state() for cell in one.cells] == ["ok", None, None]


def wait_for(condition, limit_s=120.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
