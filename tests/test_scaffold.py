"""`new` writes a plugin that works and a test that passes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.check.kit import check
from bench.errors import UserError
from bench.registry import Kind
from bench.scaffold import new

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", registry.BASES)
def test_a_new_plugin_passes_its_own_test_and_so_the_conformance_kit(kind, tmp_path):
    files = new(kind, "fresh_idea", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(files.test)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("kind", registry.BASES)
def test_what_is_written_is_in_our_style(kind, tmp_path):
    pytest.importorskip("ruff", reason="ruff is in the lint environment")
    files = new(kind, "fresh_idea", tmp_path)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, f"--config={ROOT / 'pyproject.toml'}", *files],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", registry.BASES)
def test_in_a_checkout_the_files_lie_where_they_are_found(kind: Kind, plugins, tmp_path):
    (tmp_path / "tests").mkdir()
    files = new(kind, "fresh_idea")
    assert files.plugin == tmp_path / kind / "fresh_idea.py"
    assert files.test == tmp_path / "tests" / f"test_{kind}_fresh_idea.py"
    assert registry.describe(kind, "fresh_idea").summary
    assert '"fresh_idea"' in files.test.read_text()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("topk", "exists already"),
        ("random", "exists already"),  # a control
        ("Top K", "lower-case letters"),
        ("class", "lower-case letters"),
        ("../up", "lower-case letters"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(name, says, tmp_path):
    with pytest.raises(UserError, match=says):
        new("variants", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    new("variants", "fresh_idea", tmp_path).plugin.write_text("mine")
    with pytest.raises(UserError, match="exists already, remove it"):
        new("variants", "fresh_idea", tmp_path)
    assert (tmp_path / "fresh_idea.py").read_text() == "mine"


def test_the_variant_of_the_tutorial_has_at_most_30_lines_and_conforms(tmp_path):
    text = (ROOT / "docs" / "plugins.md").read_text()
    source = text.partition("```python\n")[2].partition("```")[0]
    assert len(source.splitlines()) <= 30
    path = tmp_path / "log_penalty.py"
    path.write_text(source)
    report = check(str(path), quick=True)
    assert {f.status for f in report.findings} <= {"pass", "warn"}, "\n".join(report.lines())
