"""Real runs on nano, killed and interrupted at random moments, end as an undisturbed one does."""

import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import status
from bench.errors import UserError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CONFIG = """
name: mine
model: nano
hook_name: blocks.2.hook_resid_post
train: {d_sae: 256, tokens: 100_000, batch_size: 256, lr: 2.0e-3, checkpoint_every: 0.05}
variants:
  - {name: topk, config: {k: 4}}
  - {name: relu, target_l0: 8}
controls:
  - {name: random, target_l0: 4}
suites:
  core: {n_eval_reconstruction_batches: 2, batch_size_prompts: 8, context_size: 64}
  sparse_probing: {probe_train_set_size: 100, probe_test_set_size: 50, context_length: 32}
"""
N_KILLS = 6
STAGES = ("pilot", "train", "evaluate", "train", "evaluate", "evaluate")
"""Where the run is killed, a random moment later."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "mine.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "results" / "mine"
    assert start(config, out).wait() == 0
    return out


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "bench.py"), "run", str(config), "--out", str(out)]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # a shell's background job ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def stage(out: Path) -> str:
    """What the run does now; empty before it has begun and after it has ended."""
    try:
        seen = status.read(out)
    except UserError:
        return ""
    return seen.record.stage.name if seen.state == "running" else ""


def finished(out: Path) -> dict[Path, int]:
    """When each cell and SAE that is finished was written."""
    found = [*out.parent.glob(".store/*/cell.json"), *out.glob("saes/*/config.json")]
    return {path: path.stat().st_mtime_ns for path in found}


def table(path: Path) -> list[dict[str, str]]:
    """A table without what a clock says."""
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]


def same(out: Path, whole: Path) -> bool:
    tables = ("leaderboard.csv", "results.csv", "units.csv")
    return all(table(out / name) == table(whole / name) for name in tables) and (
        {p.parent.name: p.read_bytes() for p in out.glob("saes/*/sae.safetensors")}
        == {p.parent.name: p.read_bytes() for p in whole.glob("saes/*/sae.safetensors")}
    )


def test_a_run_that_is_killed_again_and_again_loses_nothing_and_ends_the_same(
    config, whole, tmp_path
):
    out, chance = tmp_path / "results" / "mine", random.Random(0)
    n_killed, before = 0, {}
    while n_killed < N_KILLS:
        run, wanted = start(config, out), STAGES[n_killed % len(STAGES)]
        while run.poll() is None and stage(out) != wanted:
            time.sleep(0.05)
        if run.poll() is None:
            time.sleep(chance.uniform(0.0, 3.0))
        run.send_signal(signal.SIGKILL)
        code = run.wait()
        assert finished(out).items() >= before.items()  # neither lost nor written again
        before = finished(out)
        if code == 0:  # done before it was killed
            break
        assert code == -signal.SIGKILL
        assert status.read(out).state == "killed"
        n_killed += 1
    assert n_killed > 2
    assert start(config, out).wait() == 0
    assert finished(out).items() >= before.items()
    assert same(out, whole)


@pytest.mark.parametrize(
    ("number", "code", "where"), [(signal.SIGINT, 130, "train"), (signal.SIGTERM, 143, "evaluate")]
)
def test_an_interrupted_run_says_so_and_goes_on(config, whole, tmp_path, number, code, where):
    out = tmp_path / "results" / "mine"
    run = start(config, out)
    while stage(out) != where:
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(number)
    assert run.wait(60) == code
    seen = status.read(out)
    assert (seen.state, number.name in seen.record.reason) == ("interrupted", True)
    assert {cell.state for cell in seen.record.cells} <= {"ok", "pending"}
    assert start(config, out).wait() == 0
    assert same(out, whole)


def test_two_runs_of_one_folder_at_once_the_second_is_refused(config, whole, tmp_path):
    out = tmp_path / "results" / "mine"
    first = start(config, out)
    while stage(out) != "train":
        assert first.poll() is None
        time.sleep(0.05)
    assert start(config, out).wait() == 2
    assert first.wait() == 0
    assert same(out, whole)


def test_two_runs_that_share_a_store_end_the_same(config, whole, tmp_path):
    folders = [tmp_path / "results" / name for name in ("mine", "other")]
    runs = [start(config, out) for out in folders]
    assert [run.wait() for run in runs] == [0, 0]
    assert json.loads((folders[1] / "ledger.json").read_text())["state"] == "finished"
    for out in folders:
        assert table(out / "leaderboard.csv") == table(whole / "leaderboard.csv")
