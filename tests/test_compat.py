"""The two library clashes are settled by `prepare()`, and would bite without it."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PREPARE = "from bench.compat import prepare; prepare()\n"
HIDE_TORCHVISION = """
import sys, bench.compat
if not bench.compat.torchvision_loads():
    sys.modules["torchvision"] = None
"""  # the other half of prepare()
PROBE_400_ROWS = """
import torch
from sae_bench.evals.sparse_probing.probe_training import train_probe_on_activations
rows = lambda n: {c: torch.randn(n, 4) + i for i, c in enumerate("ab")}
train_probe_on_activations(rows(200), rows(100), select_top_k=2)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "JAXTYPING_DISABLE"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
    )


def torchvision_is_broken() -> bool:
    return "does not exist" in python("import torchvision").stderr


def test_transformer_lens_imports_after_prepare():
    done = python(PREPARE + "import transformer_lens")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torchvision_is_broken(), reason="torchvision loads beside this torch")
def test_transformer_lens_fails_beside_a_broken_torchvision_without_prepare():
    done = python("import transformer_lens")
    assert done.returncode != 0 and "torchvision" in done.stderr


def test_a_torchvision_that_loads_is_left_alone(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("here = True")
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"")
    # stands in for the loader of torch, which would refuse the empty library
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import torch
torch.ops.load_library = lambda path: None
{PREPARE}
import torchvision
assert torchvision.here
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_a_torchvision_whose_library_does_not_load_counts_as_absent(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('was imported')")
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"not a library")
    code = f"""
import importlib.util, sys; sys.path.insert(0, {str(tmp_path)!r})
{PREPARE}
assert importlib.util.find_spec("torchvision") is None
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_saebench_probes_accept_their_own_rows_after_prepare():
    done = python(PREPARE + PROBE_400_ROWS)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    importlib.metadata.version("beartype") < "0.20", reason="an older beartype does not object"
)
def test_saebench_probes_reject_their_own_rows_without_prepare():
    done = python(HIDE_TORCHVISION + PROBE_400_ROWS)
    assert done.returncode != 0 and "BeartypeCallHintParamViolation" in done.stderr
