"""A whole run from a mirror, in processes that cannot open a socket, gives what the source has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from bench.cli import main
from bench.config import load_config
from bench.mirror.commands import fetch_config, status_of_config
from bench.models import NANO_WEIGHTS
from bench.sources import SOURCES_ENV, Sources, hub_id, located, using
from tests import tiny
from tests.fake_hub import FolderSource

ROOT = Path(__file__).parents[1]
GUARD = """
import socket

def forbidden(*args, **kwargs):
    raise AssertionError("a socket was opened")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = forbidden
"""
CONFIG = {
    "name": "gap",
    "model": "acme/nano",
    "instruct": "acme/nano-it",
    "hook_name": "blocks.2.hook_resid_post",
    "train": {
        "d_sae": 64,
        "tokens": 2_000,
        "batch_size": 256,
        "context_size": 32,
        "heldout_tokens": 256,
    },
    "variants": [{"name": "topk", "config": {"k": 4}}],
    "engine": "fast",
    "suites": {
        "core": {
            "context_size": 32,
            "batch_size_prompts": 4,
            "n_eval_reconstruction_batches": 1,
            "n_eval_sparsity_variance_batches": 1,
        },
    },
}
PROBING = {
    "probe_train_set_size": 40,
    "probe_test_set_size": 20,
    "context_length": 32,
    "k_values": [1, 2, 5],
}
UNLEARNING = {
    "retain_thresholds": [0.01],
    "n_features_list": [5],
    "multipliers": [100],
    "relative_multipliers": [2.0],
    "dataset_size": 16,
    "seq_len": 64,
    "llm_batch_size": 16,
}


@pytest.fixture
def hub(tmp_path) -> FolderSource:
    """The nano pair and its data sets under hub ids; what is at another place there, is there."""
    root = tmp_path / "hub"
    for name, folder in (("acme/nano", "base"), ("acme/nano-it", "instruct")):
        (root / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "models" / name).symlink_to(NANO_WEIGHTS / folder)
    (root / "datasets").symlink_to(tiny.data())
    return FolderSource(root)


def write_config(tmp_path: Path, **suites) -> Path:
    path = tmp_path / "gap.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"suites": CONFIG["suites"] | suites}))
    return path


def run(tmp_path: Path, config: Path, mirror: Path) -> subprocess.CompletedProcess[str]:
    """`bench.py run` where neither it nor what it starts can open a socket."""
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),  # no cache of the hub
        "PYTHONPATH": str(guard),
        "OMP_NUM_THREADS": "1",
    }
    out = tmp_path / "results" / "gap"
    command = [sys.executable, ROOT / "bench.py", "run", config, "--mirror", mirror, "--out", out]
    return subprocess.run(
        [str(part) for part in command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def cells(tmp_path: Path) -> dict[str, dict]:
    found = {}
    for path in (tmp_path / "results").rglob("cell.json"):
        raw = json.loads(path.read_text())
        found[raw["suite"]] = raw
    return found


def fetched(tmp_path: Path, config: Path, hub: FolderSource) -> Path:
    mirror = tmp_path / "mirror"
    said: list[str] = []
    assert fetch_config(config, mirror, say=said.append, source=hub) == []
    assert {item.state for item in status_of_config(config, mirror)} == {"ok"}
    return mirror


def test_a_run_from_a_mirror_opens_no_socket(tmp_path, hub):
    config = write_config(tmp_path)
    mirror = fetched(tmp_path, config, hub)
    done = run(tmp_path, config, mirror)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    core = cells(tmp_path)["core"]
    assert core["state"] == "ok"
    assert core["sae"]["model"] == "acme/nano"
    recorded = json.loads((tmp_path / "results/gap/sources.json").read_text())
    assert recorded["mirror"] == str(mirror)


@pytest.mark.slow
def test_every_suite_runs_from_a_mirror_without_a_socket(tmp_path, hub):
    config = write_config(tmp_path, sparse_probing=PROBING, absorption={}, unlearning=UNLEARNING)
    done = run(tmp_path, config, fetched(tmp_path, config, hub))
    found = cells(tmp_path)
    reasons = {suite: raw["reason"] for suite, raw in found.items()}
    assert set(found) == {"core", "sparse_probing", "absorption", "unlearning"}
    for suite in ("core", "sparse_probing"):
        assert found[suite]["state"] == "ok", found[suite]
    assert "socket" not in done.stderr + done.stdout + json.dumps(reasons)


def test_a_mirror_that_lacks_something_is_refused_before_work(tmp_path, hub):
    config = write_config(tmp_path)
    mirror = fetched(tmp_path, config, hub)
    (mirror / "models/acme/nano/model.safetensors").unlink()
    assert [i.state for i in status_of_config(config, mirror)].count("incomplete") == 1
    out = tmp_path / "results"
    arguments = ["run", str(config), "--dry-run", "--mirror", str(mirror), "--out", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2, done.output
    assert str(mirror / "models/acme/nano") in done.output
    assert "Traceback" not in done.output
    assert not out.exists()


def test_hub_ids_mean_folders_of_the_mirror_and_back(tmp_path):
    with using(Sources(mirror=str(tmp_path))):
        folder = located("acme/nano")
        assert folder == str(tmp_path / "models/acme/nano")
        assert hub_id(folder) == "acme/nano"
        assert located(folder) == folder
        assert hub_id("/elsewhere/model") is None
    assert located("acme/nano") == "acme/nano"


def test_the_environment_is_as_before_after_a_run(monkeypatch, tmp_path):
    import os

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    before = dict(os.environ)
    with using(Sources(mirror=str(tmp_path))):
        assert os.environ["HF_DATASETS_OFFLINE"] == os.environ["HF_HUB_OFFLINE"] == "1"
        assert SOURCES_ENV in os.environ
    assert dict(os.environ) == before


def test_a_mirror_that_is_none_is_one_line(tmp_path):
    done = CliRunner().invoke(main, ["run", "--dry-run", "--mirror", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "has no manifest.json; fill it with `data fetch CONFIG" in done.output.splitlines()[-1]


def test_the_config_says_it_too(tmp_path):
    path = write_config(tmp_path)
    path.write_text(path.read_text() + "mirror: some/folder\ntrust_remote_code: true\n")
    config = load_config(path)
    assert (config.mirror, config.trust_remote_code) == ("some/folder", True)
