"""The command line: exit status, one-line errors, and nothing heavy before it is needed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench import registry
from bench.cli import main
from bench.models import names as model_names
from bench.result import Cell, SaeInfo, State

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "transformer_lens", "sae_lens", "sae_bench", "pandas", "numpy")


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def cell(state: State) -> Cell:
    sae = SaeInfo("topk_k8_s0", "trained", "topk", "nano", "nano", "blocks.2.hook_resid_post", 4, 8)
    return Cell("key", "core", sae, state, "reference", "rev", 42, reason="because")


@pytest.fixture
def pipeline(monkeypatch):
    """Replaces the pipeline by one that ends with the given cells, and the report by nothing."""

    def ends_with(*states: State) -> None:
        monkeypatch.setattr(
            "bench.run.run", lambda *args, **more: [cell(state) for state in states]
        )
        monkeypatch.setattr("bench.cli._report", lambda *args: None)

    return ends_with


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["run", "--help"],
        ["list", "variants"],
        ["list", "suites", "--json"],
        ["list", "models"],
    ],
)
def test_nothing_heavy_is_imported_to_help_or_list(command):
    code = f"""
import sys
import time
from bench.cli import main
try:
    main({command!r})
except SystemExit as done:
    assert not done.code, done.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == "[]"


def test_the_script_runs_from_a_checkout():
    done = subprocess.run(
        [sys.executable, ROOT / "bench.py", "list", "models"],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "nano" in done.stdout, done.stderr


def test_list_json_holds_name_summary_and_settings():
    rows = json.loads(call("list", "suites", "--json").output)
    assert [row["name"] for row in rows] == registry.names("suites")
    assert all(row["summary"] for row in rows)
    assert {"name", "type", "default", "meaning"} == set(rows[0]["config"][0])


def test_list_shows_every_model():
    done = call("list", "models")
    assert [line.split()[0] for line in done.output.splitlines()] == model_names()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "no_such.yaml"], "does not exist"),
        (["run", "--suites", "cor"], "did you mean 'core'"),
        (["run", "--variants", "topkk"], "did you mean 'topk'"),
        (["run", "--plugin", "none.py"], "is not a Python file"),
        (["report", "no_such_run"], "is not a run folder"),
        (["list", "variant"], "variant"),
        (["import", "no_such.json", "--into", "x"], "no_such.json"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(args, message):
    done = call(*args)
    assert done.exit_code == 2
    assert message in done.output.splitlines()[-1]
    assert "Traceback" not in done.output


def test_a_run_without_failure_exits_0(pipeline):
    pipeline("ok", "invalid", "skipped")
    assert call("run").exit_code == 0


def test_a_run_with_a_failed_cell_exits_1(pipeline):
    pipeline("ok", "failed")
    assert call("run").exit_code == 1


@pytest.mark.parametrize("below", ["", "folder"])
@pytest.mark.parametrize(
    "command",
    [
        ("new", "variant", "mine", "--dir"),
        ("import", ROOT / "tests/fixtures/untrained_sae_core_eval_results.json", "--into"),
    ],
    ids=["new", "import"],
)
def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path, command, below):
    place = tmp_path / "file" / below
    (tmp_path / "file").touch()
    done = call(*command, place)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert done.output.startswith(f"error: '{tmp_path}/file")
    assert done.output.count("\n") == 1


@pytest.mark.parametrize("command", [("doctor",), ("check", "topk"), ("run", "--dry-run")])
def test_a_package_that_is_not_installed_is_one_line(tmp_path, command):
    source = "raise ModuleNotFoundError('No module torch', name='torch')"
    (tmp_path / "torch.py").write_text(source)
    found = subprocess.run(
        [sys.executable, "bench.py", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert re.fullmatch(r"error: No module torch; fix: pip install 'torch.*'\n", found.stderr)


def test_a_dry_run_says_what_would_run_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = call("run", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "6 SAEs of 1536 latents" in done.output
    assert "core, sparse_probing, absorption, unlearning" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_preflight_refuses(tmp_path):
    done = call("run", "--dry-run", "--out", Path(__file__) / "below_a_file")
    assert done.exit_code == 2
    assert "is a file" in done.output.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_cleans_up_before_it_ends(tmp_path, number):
    code = f"""
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this
import bench.run
from bench.cli import main
folder = pathlib.Path({str(tmp_path)!r})
def work(*args, **more):
    try:
        (folder / "started").touch()
        time.sleep(60)
    finally:
        (folder / "cleaned").touch()
bench.run.run = work
main(["run"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert (tmp_path / "cleaned").exists()
