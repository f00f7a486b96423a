"""Checkpoints of training: whole or not there, and never the only copy at risk."""

import errno
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench import snapshot
from bench.snapshot import Snapshot, Snapshots


def state(n_steps: int) -> Snapshot:
    """A state that tells its step."""
    tensors = {"weights": torch.full((3, 5), float(n_steps)), "step": torch.tensor(n_steps)}
    return Snapshot(n_steps, tensors, {"worst": n_steps / 3, "note": "ü", "none": None})


def same(a: Snapshot | None, b: Snapshot) -> bool:
    return (
        a is not None
        and (a.n_steps, a.values) == (b.n_steps, b.values)
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[n], b.tensors[n]) for n in b.tensors)
    )


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path):
    kept = Snapshots(tmp_path, "key")
    assert kept.load() is None
    kept.save(state(10))
    assert same(kept.load(), state(10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path, dtype):
    x: Tensor = (torch.randn(4, 6).T * 3).to(dtype)  # not contiguous
    Snapshots(tmp_path, "key").save(Snapshot(1, {"x": x}, {}))
    found = Snapshots(tmp_path, "key").load()
    assert found is not None and found.tensors["x"].dtype == dtype
    assert torch.equal(found.tensors["x"], x)


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_all_their_digits(tmp_path_factory, number):
    folder = tmp_path_factory.mktemp("numbers")
    Snapshots(folder, "key").save(Snapshot(1, {}, {"number": number}))
    found = Snapshots(folder, "key").load()
    assert found is not None and found.values["number"] == number


def test_the_last_two_are_kept_and_nothing_else(tmp_path):
    kept = Snapshots(tmp_path, "key")
    for n in (5, 10, 15):
        kept.save(state(n))
    assert names(tmp_path) == [
        *("000000010.json", "000000010.safetensors", "000000015.json", "000000015.safetensors")
    ]
    kept.clear()
    assert not tmp_path.exists()


def test_one_of_another_training_is_passed_by(tmp_path):
    Snapshots(tmp_path, "other").save(state(10))
    mine = Snapshots(tmp_path, "mine")
    assert mine.load() is None
    mine.save(state(5))
    assert same(mine.load(), state(5))
    assert names(tmp_path) == ["000000005.json", "000000005.safetensors"]


def damage(path, how: str) -> None:
    data = path.read_bytes()
    changed = {
        "cut": data[:-1],
        "empty": b"",
        "flipped": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    }
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "gone"])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_damaged_one_is_told_and_the_one_before_is_used(tmp_path, caplog, how, suffix):
    kept = Snapshots(tmp_path, "key")
    kept.save(state(10))
    kept.save(state(15))
    damage(tmp_path / f"000000015{suffix}", how)
    assert same(kept.load(), state(10))
    if (suffix, how) != (".json", "gone"):  # that is a write which never ended
        assert "000000015" in caplog.text
    kept.save(state(20))  # what is whole stays
    assert names(tmp_path)[::2] == ["000000010.json", "000000020.json"]


def test_a_changed_number_is_noticed_though_the_json_is_valid(tmp_path):
    kept = Snapshots(tmp_path, "key")
    kept.save(state(10))
    path = tmp_path / "000000010.json"
    record = json.loads(path.read_text())
    record["values"]["worst"] = 1e9
    path.write_text(json.dumps(record))
    assert kept.load() is None


class Disk:
    """Fails after so many bytes, in the middle of a write, as a full disk does."""

    def __init__(self, monkeypatch, n_bytes: int):
        self._left, self._fdopen = n_bytes, os.fdopen
        monkeypatch.setattr(os, "fdopen", self._open)

    def _open(self, handle, mode):
        file = self._fdopen(handle, mode)
        disk, write = self, file.write

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, data):
                taken = data[: disk._left]
                disk._left -= len(taken)
                write(taken)
                if len(taken) < len(data):
                    raise OSError(errno.ENOSPC, "No space left on device")

        return Full()


@pytest.mark.parametrize("n_bytes", [0, 100, 240, 300])
def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch, n_bytes):
    kept = Snapshots(tmp_path, "key")
    kept.save(state(5))
    kept.save(state(10))
    with monkeypatch.context() as patch:
        Disk(patch, n_bytes)
        with pytest.raises(OSError, match="No space left"):
            kept.save(state(15))
    assert same(kept.load(), state(10))
    assert names(tmp_path) == ["000000010.json", "000000010.safetensors"]  # no remains
    kept.save(state(15))
    assert same(kept.load(), state(15))


def test_a_crash_between_the_two_files_leaves_the_one_before(tmp_path, monkeypatch):
    kept = Snapshots(tmp_path, "key")
    kept.save(state(10))
    write = snapshot.write_atomic

    def crash(path, data):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "write_atomic", crash)
        with pytest.raises(KeyboardInterrupt):
            kept.save(state(15))
    assert same(kept.load(), state(10))
    (tmp_path / ".000000020.json.x1y2").write_text("half")  # as SIGKILL leaves it
    kept.save(state(20))
    assert names(tmp_path)[::2] == ["000000010.json", "000000020.json"]
