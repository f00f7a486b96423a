"""What a run does can be read while it does it, and after it has ended in any way."""

import contextlib
import json
import os
from dataclasses import asdict

import pytest
from click.testing import CliRunner

from bench import journal, status
from bench.checkpoint import Record, save_record
from bench.cli import main
from bench.journal import SaeRow, kept
from bench.ledger import PlannedCell
from bench.lock import Holder, locked
from bench.result import Cell, SaeInfo
from bench.signals import Interrupted

HOLDER = Holder(os.getpid(), "here")


def info(label: str) -> SaeInfo:
    return SaeInfo(label, "trained", "topk", "nano", "nano", "blocks.1.hook_resid_post", 4, 8)


def sae_row(label: str) -> SaeRow:
    return SaeRow(label, "trained", f"key-{label}", f"run/saes/{label}")


def planned(out, label: str, suite: str = "core") -> PlannedCell:
    key = f"{suite}-{label}"
    folders = {"folder": out.parent / ".store" / key, "failure": out / "failed" / key}
    return PlannedCell(key, suite, info(label), out / "saes" / label, **folders)


def train(out, label: str, reason: str | None = None) -> None:
    record = Record(info(label), f"key-{label}", "s", "text", 32, 1, 1.0, stop_reason=reason)
    save_record(out / "saes" / label, record)


def end(cell: PlannedCell, state, reason: str = "", detail: str = "") -> None:
    cell.save(
        Cell(cell.key, cell.suite, cell.sae, state, "fast", "rev", 1, reason=reason, detail=detail)
    )


def quiet(*args) -> None:
    pass


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def states(rows) -> list[str]:
    return [row.state for row in rows]


def test_a_training_is_read_while_it_goes_on(out, monkeypatch):
    monkeypatch.setattr(journal, "WRITE_EVERY_S", 0.0)
    with locked(out) as holder, kept(out, "mine", holder) as book:
        book.expect([sae_row("a"), sae_row("b")], ["core", "absorption"])
        assert states(status.read(out).record.saes) == ["pending", "pending"]
        show = book.noting(quiet)
        show("pilot", 10, 40, "3 SAEs", ["relu at 0.1: L0 7"])
        seen = status.read(out)
        assert (seen.state, seen.is_over) == ("running", False)
        assert seen.record.stage == journal.Stage("pilot", 10, 40, "3 SAEs", ("relu at 0.1: L0 7",))
        show("train", 0, 40)
        train(out, "a")
        show("train", 30, 40, "1 SAE", ["b: loss 3"])
        seen = status.read(out)
        assert states(seen.record.saes) == ["trained", "training"]
        assert seen.as_dict()["counts"]["cells"] == {"pending": 4}
        assert "stage     train 30 of 40 | 1 SAE" in seen.lines()


def test_an_evaluation_is_read_while_it_goes_on(out, monkeypatch):
    monkeypatch.setattr(journal, "WRITE_EVERY_S", 0.0)
    cells = [planned(out, label) for label in "abcde"]
    with locked(out) as holder, kept(out, "mine", holder) as book:
        book.plan(cells)
        end(cells[0], "ok")
        end(cells[1], "failed", "boom", "Traceback ...")
        end(cells[2], "invalid", "never fires")
        book.computing({"core-d"})
        book.noting(quiet)("evaluate", 3, 5)
        seen = status.read(out)
        assert states(seen.record.cells) == ["ok", "failed", "invalid", "running", "pending"]
        end(cells[3], "skipped", "3 questions, 20 needed")  # not written in the ledger yet
        raw = status.read(out).as_dict()
        assert [c["state"] for c in raw["cells"]] == [
            "ok",
            "failed",
            "invalid",
            "skipped",
            "pending",
        ]
        assert [c["reason"] for c in raw["cells"][1:4]] == [
            "boom",
            "never fires",
            "3 questions, 20 needed",
        ]
        assert raw["cells"][1]["detail"] == "Traceback ..."
        told = "\n".join(seen.lines())
        assert "failed    core on b: boom" in told
        assert str(cells[1].failure / "cell.json") in told


def test_an_sae_that_failed_in_training_is_told_with_its_reason(out):
    with locked(out) as holder, kept(out, "mine", holder) as book:
        book.expect([sae_row("a")], ["core"])
        train(out, "a", "loss is nan at step 7 of 50")
    seen = status.read(out)
    assert states(seen.record.saes) == ["failed"]
    assert "failed    SAE a: loss is nan at step 7 of 50" in seen.lines()
    assert "--retry-failed" in seen.lines()[-1]


def test_an_sae_of_another_key_does_not_count(out):
    with locked(out) as holder, kept(out, "mine", holder) as book:
        train(out, "a")
        row = sae_row("a")
        row.key = "of other settings"
        book.expect([row], ["core"])
        assert states(status.read(out).record.saes) == ["pending"]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "finished", ""),
        (Interrupted(15), "interrupted", "Interrupted by SIGTERM"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (OSError(5, "Input/output error"), "stopped", "OSError: [Errno 5] Input/output error"),
    ],
)
def test_how_a_run_ended_is_kept(out, error, state, reason):
    cell = planned(out, "a")
    expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with expected, locked(out) as holder, kept(out, "mine", holder) as book:
        book.plan([cell])
        book.computing({cell.key})
        if error:
            raise error
    seen = status.read(out)
    assert (seen.state, seen.record.reason, seen.is_over) == (state, reason, True)
    assert states(seen.record.cells) == ["pending"]


def test_a_killed_run_is_told_by_its_missing_lock(out):
    cells = [planned(out, "a"), planned(out, "b")]
    book = journal.Journal(out, "mine", HOLDER)  # never ended, and no lock: SIGKILL
    book.plan(cells)
    book.computing({"core-a", "core-b"})
    book.write()
    end(cells[0], "ok")
    seen = status.read(out)
    assert seen.state == "killed" and seen.is_over
    assert states(seen.record.cells) == ["ok", "pending"]
    assert "`run` again" in seen.lines()[-1]


def test_a_finished_run_that_lost_a_cell_says_what_to_do(out):
    cells = [planned(out, "a"), planned(out, "b")]
    with kept(out, "mine", HOLDER) as book:
        book.plan(cells)
        for cell in cells:
            end(cell, "ok")
    assert status.read(out).lines()[-1] == "cells     2: 2 ok"
    (cells[0].folder / "cell.json").write_text("{")
    seen = status.read(out)
    assert seen.state == "finished" and states(seen.record.cells) == ["pending", "ok"]
    assert seen.lines()[-1] == "next      `run` again computes what is pending"


def test_a_run_that_checks_what_it_was_given_is_starting(out):
    with locked(out):
        assert status.read(out).state == "starting"
    with kept(out, "mine", Holder(1, "elsewhere")) as book:
        book.noting(quiet)("train", 1, 2)
    with locked(out) as holder:  # the ledger is still that of the run before
        seen = status.read(out)
        assert seen.state == "starting"
        assert not any(line.startswith("stage") for line in seen.lines())
        assert (seen.record.pid, seen.record.host) == holder


def test_a_disk_that_is_full_does_not_end_a_run(out, monkeypatch, caplog):
    def full(path, content):
        raise OSError(28, "No space left on device")

    with locked(out) as holder, kept(out, "mine", holder) as book:
        book.plan([])
        monkeypatch.setattr(journal, "write_sealed", full)
        book.noting(quiet)("train", 1, 2)
    assert "is not up to date" in caplog.text


def test_it_is_written_at_most_once_a_second(out, monkeypatch):
    written = []
    monkeypatch.setattr(journal, "write_sealed", lambda path, content: written.append(content))
    show = journal.Journal(out, "mine", HOLDER).noting(quiet)
    for i in range(100):
        show("train", i, 100)
    assert len(written) < 50


def test_a_ledger_cannot_lead_to_files_elsewhere(tmp_path):
    out = tmp_path / "results" / "run"
    cell = planned(tmp_path / "elsewhere" / "run", "a")
    end(cell, "ok")
    book = journal.Journal(out, "mine", HOLDER)
    book.plan([planned(out, "a")])
    book._record.cells[0].folder = "../elsewhere/.store/core-a"
    assert (out.parent / "../elsewhere/.store/core-a/cell.json").is_file()
    journal.write_sealed(out / "ledger.json", asdict(book._record))
    assert states(status.read(out).record.cells) == ["pending"]


def call(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def test_the_command_prints_lines_or_json_and_refuses_other_folders(out, tmp_path):
    with locked(out) as holder, kept(out, "mine", holder) as book:
        book.expect([sae_row("a")], ["core"])
    assert call("status", out).output.startswith("run       mine, finished")
    raw = json.loads(call("status", out, "--json").output)
    assert (raw["run"], raw["state"], raw["counts"]["saes"]) == ("mine", "finished", {"pending": 1})
    watched = call("status", out, "--watch", "--json")
    assert watched.exit_code == 0 and len(watched.output.splitlines()) == 1
    refused = call("status", tmp_path)
    assert refused.exit_code == 2 and "is not a run folder" in refused.output


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 9}'])
def test_a_damaged_ledger_is_one_line(out, content):
    out.mkdir()
    (out / "ledger.json").write_text(content)
    done = call("status", out)
    assert done.exit_code == 2 and "ledger.json" in done.output.splitlines()[-1]


def test_a_watch_ends_with_the_run(out):
    with locked(out) as holder, kept(out, "mine", holder) as book:
        book.write()
        seen = status.watch(out, every_s=0.0)
        assert next(seen).state == "running"
    assert [one.state for one in seen] == ["finished"]


def test_a_run_says_what_failed_and_what_to_do():
    cells = [Cell("k", "core", info("a"), "failed", "fast", "rev", 1, reason="boom")]
    assert status.failures(cells) == [
        "failed: core on a: boom",
        "1 cell failed; `run` keeps them so, `run --retry-failed` tries them again",
    ]
    assert status.failures([]) == []
