"""One run per folder at a time; a lock never outlives its process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.lock import Holder, holder_of, locked

HOLD = """
import sys, time
from pathlib import Path
from bench.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    )
    assert process.stdout and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path, other):
    with (
        pytest.raises(UserError, match=f"process {other.pid} on .* is running there"),
        locked(tmp_path),
    ):
        pass
    holder = holder_of(tmp_path)
    assert holder and holder.pid == other.pid


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path, other):
    other.kill()
    other.wait()
    assert holder_of(tmp_path) is None
    with locked(tmp_path) as holder:
        assert holder.pid == os.getpid()


def test_a_lock_is_free_again_after_the_block(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "run") as holder:
            assert holder_of(tmp_path / "run") == holder
        assert holder_of(tmp_path / "run") is None


def test_a_refused_run_leaves_the_lock_and_its_note_alone(tmp_path):
    with locked(tmp_path) as holder:
        with pytest.raises(UserError), locked(tmp_path):
            pass
        assert holder_of(tmp_path) == holder


def test_other_folders_are_free(tmp_path):
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        assert holder_of(tmp_path / "a") == holder_of(tmp_path / "b")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_note_neither_locks_nor_hides_a_lock(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    assert holder_of(tmp_path) is None
    with locked(tmp_path):
        (tmp_path / ".lock").write_text(content)
        assert holder_of(tmp_path) == Holder(0, "unknown")


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="out=.*cannot be written"),
        locked(tmp_path / "file" / "run"),
    ):
        pass
