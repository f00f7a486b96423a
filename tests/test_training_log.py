"""Losses in a CSV file, and in wandb or TensorBoard where the config asks for them."""

import csv
import importlib.util
import sys
from types import SimpleNamespace

import pytest

from bench import training_log
from bench.errors import UserError
from bench.training_log import TrainingLog, check, sinks


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_per_report(tmp_path):
    log = TrainingLog(tmp_path / "losses" / "a.csv")
    log.write({"step": 1, "loss": 0.1 + 0.2})
    log.write({"step": 2, "loss": 1e-9})
    assert [float(r["loss"]) for r in rows(tmp_path / "losses" / "a.csv")] == [0.1 + 0.2, 1e-9]


def test_a_term_that_appears_late_gets_a_column(tmp_path):
    log = TrainingLog(tmp_path / "a.csv")
    log.write({"step": 1, "loss": 3})
    log.write({"step": 2, "auxk": 4, "loss": 5})
    assert rows(tmp_path / "a.csv") == [
        {"step": "1", "loss": "3", "auxk": ""},
        {"step": "2", "loss": "5", "auxk": "4"},
    ]


@pytest.mark.parametrize(("n_steps", "left"), [(0, []), (2, ["1", "2"]), (3, ["1", "2", "3"])])
def test_going_back_forgets_what_came_after_the_checkpoint(tmp_path, n_steps, left):
    path = tmp_path / "a.csv"
    log = TrainingLog(path)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": step})
    path.write_text(path.read_text() + "4,")  # a crash in the middle of a row
    log = TrainingLog(path)
    log.rewind(n_steps)
    log.write({"step": 5, "loss": 5})
    assert [row["step"] for row in rows(path)] == [*left, "5"]


def test_a_full_disk_costs_the_row_and_spoils_no_other(tmp_path, monkeypatch, caplog):
    path = tmp_path / "a.csv"
    log = TrainingLog(path)
    log.write({"step": 1, "loss": 1})

    def half(self, row):
        with path.open("a") as file:
            file.write("2,")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerow", half)
        log.write({"step": 2, "loss": 2})
    log.write({"step": 3, "loss": 3})
    assert [row["step"] for row in rows(path)] == ["1", "3"]
    assert "step 2 is left out" in caplog.text


def test_without_a_file_or_a_sink_nothing_happens():
    log = TrainingLog()
    log.rewind(3)
    log.write({"step": 1, "loss": 2})
    log.close()


def test_a_logger_whose_package_is_missing_is_refused_in_one_line(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "wandb" else find(n, *a)
    )
    check([])
    with pytest.raises(UserError, match="train.log_to: wandb is not installed, run `pip install w"):
        check(["wandb"])


class Recorder:
    """Stands in for a logger's client."""

    def __init__(self):
        self.seen, self.closed = [], False

    def log(self, row, step):
        self.seen.append((step, row))

    def add_scalar(self, name, value, step):
        self.seen.append((step, {name: value}))

    def finish(self):
        self.closed = True

    close = finish


def test_rows_go_to_wandb_one_run_per_sae(tmp_path, monkeypatch):
    client, asked = Recorder(), {}
    fake = SimpleNamespace(init=lambda **settings: asked.update(settings) or client)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = TrainingLog(None, sinks(["wandb"], run="nano", label="topk_s0", key="abc", out=tmp_path))
    log.write({"step": 4, "loss": 2.0})
    log.close()
    assert client.seen == [(4, {"step": 4, "loss": 2.0})] and client.closed
    assert (asked["group"], asked["name"], asked["id"]) == ("nano", "topk_s0", "nano-topk_s0-abc")
    assert (asked["resume"], asked["dir"]) == ("allow", str(tmp_path))


def test_rows_go_to_tensorboard_a_curve_per_term(tmp_path, monkeypatch):
    client, asked = Recorder(), []
    fake = SimpleNamespace(SummaryWriter=lambda folder: asked.append(folder) or client)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    (sink,) = sinks(["tensorboard"], run="nano", label="topk_s0", key="abc", out=tmp_path)
    sink.write(4, {"loss": 2.0, "l0": 8.0})
    sink.close()
    assert client.seen == [(4, {"loss": 2.0}), (4, {"l0": 8.0})] and client.closed
    assert asked == [str(tmp_path / "tensorboard" / "topk_s0")]


def test_a_logger_that_cannot_be_opened_is_told_in_one_line(tmp_path, monkeypatch):
    def refuse(**settings):
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(UserError, match="train.log_to: wandb cannot be used: no API key configur"):
        sinks(["wandb"], run="nano", label="a", key="k", out=tmp_path)


def test_a_logger_that_fails_later_does_not_stop_the_training(tmp_path, caplog):
    class Broken(Recorder):
        def write(self, step, row):
            raise ConnectionError("the server is gone")

    log = TrainingLog(tmp_path / "a.csv", [Broken()])
    log.write({"step": 1, "loss": 2})
    log.write({"step": 2, "loss": 2})
    assert caplog.text.count("the server is gone") == 1
    assert len(rows(tmp_path / "a.csv")) == 2
    assert training_log.PROJECT == "sae-verdict"
