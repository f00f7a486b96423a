"""A process that dies fails only what it had not finished; every cell ends in a state."""

import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bench import executor, worker
from bench.executor import SuiteJob, run_suites
from bench.ledger import PlannedCell
from bench.result import CELL_FILE, Cell, SaeInfo
from bench.suite import Metric, SaeHandle, Scored, Unit

LABELS = ("a", "b", "c")


def info(label, hook="blocks.1.hook_resid_post"):
    return SaeInfo(label, "trained", "topk", "nano", "nano", hook, 96, 64, l0=8.0)


def job(tmp_path, labels=LABELS, **changes):
    cells = tuple(
        PlannedCell(
            key=f"key-{label}",
            suite="fake",
            sae=info(label),
            sae_dir=tmp_path / "saes" / label,
            folder=tmp_path / "store" / f"key-{label}",
            failure=tmp_path / "failed" / f"key-{label}",
        )
        for label in labels
    )
    fields = {"work": tmp_path / "work", "cache_dir": tmp_path / "cache", "cells": cells}
    common = {"suite": "fake", "config": {}, "model": "nano", "seed": 3, "data_revision": "rev"}
    return SuiteJob(**(common | fields | changes))


def finish(planned):
    """Python code that writes an ok cell."""
    cell = Cell(planned.key, "fake", planned.sae, "ok", "reference", "rev", 3)
    return f"""
from pathlib import Path
from bench.result import Cell
import json
Cell.from_dict(json.loads({json.dumps(json.dumps(as_dict(cell)))})).save(Path({str(planned.folder)!r}))
"""


def as_dict(cell):
    from dataclasses import asdict

    return asdict(cell)


@pytest.fixture
def process(monkeypatch):
    """Makes the executor's processes run some code of the test's instead of the worker."""

    def run(code):
        monkeypatch.setattr(executor, "_command", lambda file: [sys.executable, "-c", code])

    return run


def quiet(stage, done, total, note=""):
    pass


def test_a_dead_process_fails_only_its_unfinished_cells(tmp_path, process):
    one = job(tmp_path)
    process(
        finish(one.cells[0])
        + "import os, sys\nprint('last words', flush=True)\nos.kill(os.getpid(), 9)"
    )
    cells = run_suites([one], 1, quiet)
    assert [c.state for c in cells] == ["ok", "failed", "failed"]
    assert "ended by SIGKILL" in cells[1].reason
    assert "last words" in cells[1].detail
    assert (cells[1].cell_key, cells[1].sae.label, cells[1].eval_seed) == ("key-b", "b", 3)


def test_an_early_exit_is_a_failure_with_its_status(tmp_path, process):
    process("import sys; sys.exit(7)")
    cells = run_suites([job(tmp_path)], 1, quiet)
    assert {c.state for c in cells} == {"failed"}
    assert "exit status 7" in cells[0].reason


def test_a_time_limit_ends_the_process_and_its_children(tmp_path, process):
    beats = tmp_path / "beats"
    child = f"import time\nwhile True: open({str(beats)!r}, 'a').write('.'); time.sleep(0.02)"
    process(
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)"
    )
    cells = run_suites([job(tmp_path, timeout_s=2.0)], 1, quiet)
    assert "time limit of 2 s" in cells[0].reason
    beaten = beats.stat().st_size
    time.sleep(0.5)
    assert beats.stat().st_size == beaten > 0


def test_jobs_run_side_by_side_and_come_back_in_order(tmp_path, process):
    # each process waits for the other to have started: one after the other would never end
    (tmp_path / "both").mkdir()
    process(
        "import os, pathlib, time\n"
        f"both = pathlib.Path({str(tmp_path / 'both')!r})\n"
        "(both / str(os.getpid())).touch()\n"
        "end = time.monotonic() + 20\n"
        "while len(list(both.iterdir())) < 2 and time.monotonic() < end: time.sleep(0.05)\n"
        "raise SystemExit(0 if len(list(both.iterdir())) == 2 else 9)"
    )
    jobs = [job(tmp_path / name, labels=(name,)) for name in ("x", "y")]
    reports = []
    cells = run_suites(jobs, 2, lambda stage, done, total, note="": reports.append((done, total)))
    assert [c.sae.label for c in cells] == ["x", "y"]
    assert {c.reason for c in cells} == {"the suite's process ended early with exit status 0"}
    assert reports[-1] == (2, 2)


def test_a_process_has_its_own_folder_and_one_thread(tmp_path, process):
    process(
        "import os; print(os.getcwd(), os.environ['OMP_NUM_THREADS'], os.environ['PYTHONPATH'])"
    )
    one = job(tmp_path, labels=("a",))
    (cell,) = run_suites([one], 1, quiet)
    cwd, threads, path = cell.detail.split()
    assert cwd == str(one.work)
    assert threads == "1"
    assert path.startswith(str(executor.ROOT))


@pytest.mark.parametrize("state", ["ok", "invalid", "failed"])
def test_what_a_suite_took_beside_its_saes_is_told_unless_one_failed(tmp_path, process, state):
    def finishing(planned, state):
        code = finish(planned).replace('\\"wall_s\\": null', '\\"wall_s\\": 0.1')
        return code.replace('\\"state\\": \\"ok\\"', f'\\"state\\": \\"{state}\\"')

    mine, told = job(tmp_path), list[tuple]()
    states = zip(mine.cells, ("ok", state, "ok"))
    process("import time; time.sleep(0.5)\n" + "".join(finishing(*one) for one in states))
    cells = run_suites([mine], 1, quiet, set_up=lambda *call: told.append(call))
    assert [(c.state, c.wall_s) for c in cells] == [("ok", 0.1), (state, 0.1), ("ok", 0.1)]
    if state == "failed":
        assert told == []
    else:
        assert [job for job, _ in told] == [mine] and 0.2 <= told[0][1] < 60


def test_a_suite_that_did_not_get_through_says_nothing_of_its_set_up(tmp_path, process):
    mine, told = job(tmp_path), list[tuple]()
    process(finish(mine.cells[0]))
    run_suites([mine], 1, quiet, set_up=lambda *call: told.append(call))
    assert told == []


def test_scratch_files_go_and_the_log_stays(tmp_path, process):
    one = job(tmp_path, labels=("a",))
    process("import os; os.mkdir('artifacts'); os.mkdir('scratch')")
    run_suites([one], 1, quiet)
    assert sorted(p.name for p in one.work.iterdir()) == ["job.json", "log.txt"]


def test_a_job_survives_its_file(tmp_path):
    one = job(tmp_path, config={"k_values": [1, 2]}, timeout_s=5.0)
    one.save(tmp_path / "job.json")
    assert SuiteJob.load(tmp_path / "job.json") == one


# what the worker does inside the process


class FakeSuite:
    """Scores 0.5, and raises, lies or says nothing where told to."""

    metrics = (
        Metric("score", "higher", 0.0, 1.0, headline=True),
        Metric("extra", "none"),
    )
    hooks = ("hook_resid_post",)

    def __init__(self, **answers):
        self.answers = answers
        self.calls = []

    def run(self, ctx, saes):
        self.calls.append([handle.label for handle in saes])
        for handle in saes:
            answer = self.answers.get(handle.label, 0.5)
            if isinstance(answer, Exception):
                raise answer
            yield Scored(
                label=handle.label,
                metrics={"score": answer, "extra": None},
                units=[Unit("score", "letter", "q", 0.5, 4)],
                saebench={"of": handle.label},
                reasons={"extra": "not today"},
                wall_s=1.5,
            )


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Runs the worker's loop on a suite, with SAEs that need no file."""
    checkpoint = SimpleNamespace(load_sae=lambda folder, device: f"SAE of {folder.name}")
    monkeypatch.setitem(sys.modules, "bench.checkpoint", checkpoint)

    def run(suite, one=None):
        one = one or job(tmp_path)
        worker.evaluate(one, suite, ctx=None)
        return [cell.load() for cell in one.cells]

    return run


def test_each_cell_holds_what_the_suite_said(tmp_path, evaluate):
    cells = evaluate(FakeSuite())
    assert [c.state for c in cells] == ["ok"] * 3
    first = cells[0]
    assert (first.cell_key, first.engine, first.data_revision) == ("key-a", "reference", "rev")
    assert [(m.name, m.value, m.reason) for m in first.metrics] == [
        ("score", 0.5, ""),
        ("extra", None, "not today"),
    ]
    assert first.metrics[0].headline
    assert [(u.unit, u.value, u.n) for u in first.units] == [("q", 0.5, 4)]
    assert first.wall_s == 1.5
    assert "torch" in first.versions
    assert json.loads((tmp_path / "store/key-a/saebench.json").read_text()) == {"of": "a"}


def test_an_exception_fails_one_cell_and_the_others_go_on(evaluate):
    suite = FakeSuite(b=RuntimeError("boom"))
    cells = evaluate(suite)
    assert [c.state for c in cells] == ["ok", "failed", "ok"]
    assert cells[1].reason == "RuntimeError: boom"
    assert "Traceback" in cells[1].detail
    assert suite.calls == [["a", "b", "c"], ["c"]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1.5, "score: 1.5 is outside [0, 1]"),
        (float("nan"), "score: is nan"),
        ("0.5", "score: is of type str, not a number"),
        (None, "score: the suite gave no value"),
    ],
)
def test_a_headline_without_a_legal_value_is_a_failure(evaluate, value, reason):
    cells = evaluate(FakeSuite(a=value))
    assert [c.state for c in cells] == ["failed", "ok", "ok"]
    assert cells[0].reason == reason
    assert cells[0].metrics[0].value is None


def test_a_suite_that_stops_early_leaves_no_cell_without_a_state(evaluate):
    class Short(FakeSuite):
        def run(self, ctx, saes):
            yield from list(super().run(ctx, saes))[:1]

    cells = evaluate(Short())
    assert [c.state for c in cells] == ["ok", "failed", "failed"]
    assert "gave no result" in cells[2].reason


def test_an_sae_left_out_does_not_get_the_numbers_of_the_next(evaluate):
    class Forgetful(FakeSuite):
        def run(self, ctx, saes):
            yield from [scored for scored in super().run(ctx, saes) if scored.label != "a"]

    cells = evaluate(Forgetful(b=0.25))
    assert [c.state for c in cells] == ["failed", "ok", "ok"]
    assert "gave no result" in cells[0].reason
    assert [c.metrics[0].value for c in cells[1:]] == [0.25, 0.5]


def test_a_result_that_nobody_asked_for_is_nobodys(evaluate):
    class Talkative(FakeSuite):
        def run(self, ctx, saes):
            for scored in super().run(ctx, saes):
                yield scored
                yield scored._replace(metrics={"score": 0.0})  # of one that has its result
                yield scored._replace(label="other", metrics={"score": 0.0})

    cells = evaluate(Talkative())
    assert [(c.state, c.metrics[0].value) for c in cells] == [("ok", 0.5)] * 3


def test_an_answer_that_is_no_result_fails_one_cell(evaluate):
    class Odd(FakeSuite):
        def run(self, ctx, saes):
            for scored in super().run(ctx, saes):
                yield {"score": 0.5} if scored.label == "b" else scored

    cells = evaluate(Odd())
    assert [c.state for c in cells] == ["ok", "failed", "ok"]
    assert "which is no result" in cells[1].reason


def test_a_unit_without_a_number_is_named(evaluate):
    class Part(FakeSuite):
        def run(self, ctx, saes):
            for scored in super().run(ctx, saes):
                yield scored._replace(units=[Unit("score", "letter", "q", float("nan"), 4)])

    assert evaluate(Part())[0].reason == "ValueError: score of letter 'q' is nan"


@pytest.mark.parametrize("name", ["../escaped.json", "/tmp/escaped.json", "..", "", CELL_FILE])
def test_a_suites_files_stay_beside_the_cell(tmp_path, evaluate, name):
    class Writer(FakeSuite):
        def run(self, ctx, saes):
            for scored in super().run(ctx, saes):
                yield scored._replace(files={name: {}})

    assert "is no name for a file of a cell" in evaluate(Writer())[0].reason
    assert not list(tmp_path.rglob("escaped.json"))


def test_a_metric_nobody_declared_is_refused(evaluate):
    class Chatty(FakeSuite):
        def run(self, ctx, saes):
            for scored in super().run(ctx, saes):
                yield scored._replace(metrics=scored.metrics | {"bonus": 1.0})

    assert "does not declare bonus" in evaluate(Chatty())[0].reason


def test_an_invalid_sae_keeps_its_numbers(evaluate):
    class Strict(FakeSuite):
        def run(self, ctx, saes):
            for scored in super().run(ctx, saes):
                yield scored._replace(invalid="never fires")

    cell = evaluate(Strict())[0]
    assert (cell.state, cell.reason, cell.metrics[0].value) == ("invalid", "never fires", 0.5)


def test_a_hook_that_the_suite_cannot_score_is_skipped(tmp_path, evaluate):
    one = job(tmp_path)
    wrong = one.cells[1]
    cells = (one.cells[0], wrong_hook(wrong), one.cells[2])
    suite = FakeSuite()
    result = evaluate(suite, job(tmp_path, cells=cells))
    assert [c.state for c in result] == ["ok", "skipped", "ok"]
    assert "not hook_mlp_out" in result[1].reason
    assert suite.calls == [["a", "c"]]


def wrong_hook(cell):

    return replace(cell, sae=info("b", "blocks.1.hook_mlp_out"))


def test_an_sae_that_cannot_be_loaded_fails_alone(tmp_path, evaluate, monkeypatch):
    def load_sae(folder, device):
        if folder.name == "b":
            raise OSError("file is cut short")
        return folder.name

    monkeypatch.setattr(sys.modules["bench.checkpoint"], "load_sae", load_sae)
    cells = evaluate(FakeSuite())
    assert [c.state for c in cells] == ["ok", "failed", "ok"]
    assert cells[1].reason == "OSError: file is cut short"


def test_a_job_that_cannot_start_fails_every_cell_with_one_line(tmp_path):
    one = job(tmp_path, suite="absorptoin")
    one.save(tmp_path / "job.json")
    worker.main([str(tmp_path / "job.json")])
    cells = [cell.load() for cell in one.cells]
    assert [c.state for c in cells] == ["failed"] * 3
    assert "did you mean 'absorption'?" in cells[0].reason


def test_handles_carry_what_is_known_of_the_sae(evaluate):
    seen = []

    class Curious(FakeSuite):
        def run(self, ctx, saes):
            seen.extend(saes)
            yield from super().run(ctx, saes)

    evaluate(Curious())
    assert isinstance(seen[0], SaeHandle)
    assert seen[0].sae == "SAE of a"
    assert (seen[0].info["role"], seen[0].info["l0"]) == ("trained", 8.0)


def test_cells_are_written_one_by_one(tmp_path, evaluate):
    finished = []

    class Watching(FakeSuite):
        def run(self, ctx, saes):
            for scored in super().run(ctx, saes):
                finished.append(len(list((tmp_path / "store").glob(f"*/{CELL_FILE}"))))
                yield scored

    evaluate(Watching())
    assert finished == [0, 1, 2]
