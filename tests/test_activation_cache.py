"""Activations on disk: never stale, never damaged, never over budget."""

import os

import pytest
import torch

from bench.activation_cache import ActivationCache

TOKENS = torch.arange(12).reshape(2, 6)
TEXT = torch.ones(2, 6, dtype=torch.bool)
MB = 2**20


def rows(seed=0, dtype=torch.float32):
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "activations"


def cache(folder, budget=MB, identity="a"):
    return ActivationCache(folder, budget, identity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_put_comes_back_bit_for_bit_in_another_run(folder, dtype):
    cache(folder).put(TOKENS, TEXT, rows(dtype=dtype))
    found = cache(folder).get(TOKENS, TEXT)
    assert found is not None and found.dtype is dtype
    assert torch.equal(found, rows(dtype=dtype))


def test_another_model_text_or_mask_finds_nothing(folder):
    cache(folder).put(TOKENS, TEXT, rows())
    other_mask = TEXT.clone()
    other_mask[0, 0] = False
    assert cache(folder, identity="b").get(TOKENS, TEXT) is None
    assert cache(folder).get(TOKENS + 1, TEXT) is None
    assert cache(folder).get(TOKENS.reshape(3, 4), TEXT.reshape(3, 4)) is None
    assert cache(folder).get(TOKENS, other_mask) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "nonsense"])
def test_a_damaged_file_is_deleted_and_made_anew(folder, damage, caplog):
    cache(folder).put(TOKENS, TEXT, rows())
    (path,) = folder.iterdir()
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    broken = {"flip": raw, "cut": raw[:-9], "empty": b"", "nonsense": b"x" * 500}[damage]
    path.write_bytes(broken)
    again = cache(folder)
    assert again.get(TOKENS, TEXT) is None and not path.exists()
    assert "is damaged and is made anew" in caplog.text
    again.put(TOKENS, TEXT, rows())
    found = again.get(TOKENS, TEXT)
    assert found is not None and torch.equal(found, rows())


def size_of(folder):
    return sum(p.stat().st_size for p in folder.iterdir())


def test_the_budget_holds_and_a_run_keeps_its_own_files(folder):
    cache(folder).put(TOKENS, TEXT, rows())
    one = size_of(folder)
    here = cache(folder, budget=3 * one + 9, identity="b")
    for i in range(6):
        here.put(TOKENS + i, TEXT, rows(i))
        assert size_of(folder) <= 3 * one + 9
    # the file of the other run made room, then there was none left
    assert [here.get(TOKENS + i, TEXT) is not None for i in range(6)] == [True] * 3 + [False] * 3
    assert cache(folder).get(TOKENS, TEXT) is None


def test_what_was_used_longest_ago_makes_room_first(folder):
    before = cache(folder)
    before.put(TOKENS, TEXT, rows())
    (old,) = folder.iterdir()
    before.put(TOKENS + 1, TEXT, rows())
    os.utime(old, (1, 1))
    new = next(p for p in folder.iterdir() if p != old)
    os.utime(new, (2, 2))
    assert cache(folder).get(TOKENS, TEXT) is not None  # used again
    cache(folder, budget=2 * old.stat().st_size).put(TOKENS + 2, TEXT, rows())
    assert old.exists() and not new.exists()


def test_a_full_disk_costs_only_the_speed(folder, monkeypatch, caplog):
    from bench import activation_cache

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activation_cache, "write_atomic", full)
    here = cache(folder)
    here.put(TOKENS, TEXT, rows())
    here.put(TOKENS + 1, TEXT, rows())
    assert here.get(TOKENS, TEXT) is None
    assert caplog.text.count("No space left on device") == 1


def test_what_is_larger_than_the_budget_deletes_nothing(folder):
    cache(folder).put(TOKENS, TEXT, rows())
    cache(folder, budget=10).put(TOKENS + 1, TEXT, rows())
    assert cache(folder).get(TOKENS, TEXT) is not None
