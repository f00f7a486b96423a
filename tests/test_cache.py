"""What is read back is what was made for this very key, or it is made anew."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.cache import Cache

BYTES = 4 * 250
"""Of one `large()` tensor."""


def large(value: float = 0.0):
    return {"x": torch.full((250,), float(value))}


def file_of(folder):
    (path,) = folder.glob("*.safetensors")
    return path


class Maker:
    """Counts how often it is asked."""

    def __init__(self, tensors):
        self.tensors, self.n = tensors, 0

    def __call__(self):
        self.n += 1
        return self.tensors


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


TENSORS = {
    "rows": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "half": torch.randn(5).to(torch.bfloat16),
    "mask": torch.tensor([[True, False]]),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 2),
    "view": torch.arange(12.0).reshape(3, 4).T,
}


def test_made_once_and_read_back_bit_for_bit(tmp_path):
    make = Maker(TENSORS)
    first = Cache(tmp_path, 1).tensors({"a": 1}, make)
    again = Cache(tmp_path, 1).tensors({"a": 1}, make)
    assert make.n == 1
    assert same(first, TENSORS)
    assert same(again, TENSORS)


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"b": 1}, {"a": 1, "b": None}, {}])
def test_another_key_is_another_content(tmp_path, other):
    cache = Cache(tmp_path, 1)
    cache.tensors({"a": 1}, lambda: large(1.0))
    assert cache.tensors(other, lambda: large(2.0))["x"][0] == 2


def test_the_order_of_a_key_means_nothing(tmp_path):
    make = Maker(large())
    cache = Cache(tmp_path, 1)
    cache.tensors({"a": 1, "b": {"c": [2], "d": 3}}, make)
    cache.tensors({"b": {"d": 3, "c": [2]}, "a": 1}, make)
    assert make.n == 1


@given(where=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_flipped_byte_is_found_wherever_it_is(tmp_path_factory, where, change):
    folder = tmp_path_factory.mktemp("cache")
    cache, make = Cache(folder, 1), Maker(large(1.5))
    cache.tensors({"a": 1}, make)
    path = file_of(folder)
    raw = bytearray(path.read_bytes())
    raw[int(where * len(raw))] ^= change
    path.write_bytes(raw)
    assert same(cache.tensors({"a": 1}, make), large(1.5))
    again = Maker(large(9.0))
    assert same(cache.tensors({"a": 1}, again), large(1.5))  # what was made anew is whole


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\xff" * 4000])
def test_a_file_that_cannot_be_read_is_made_anew(tmp_path, content):
    cache = Cache(tmp_path, 1)
    cache.tensors({"a": 1}, large)
    file_of(tmp_path).write_bytes(content)
    make = Maker(large(2.0))
    assert cache.tensors({"a": 1}, make)["x"][0] == 2
    assert make.n == 1
    assert cache.tensors({"a": 1}, large)["x"][0] == 2


def test_a_swapped_file_is_not_taken_for_another(tmp_path):
    """A cut file of valid form: tensors without the checksum of these tensors."""
    from safetensors.torch import save_file

    cache = Cache(tmp_path, 1)
    cache.tensors({"a": 1}, large)
    save_file(large(7.0), file_of(tmp_path))
    assert cache.tensors({"a": 1}, lambda: large(2.0))["x"][0] == 2


def test_what_was_used_longest_ago_makes_room(tmp_path):
    left = tmp_path / "0.safetensors.killed"  # by a process that was ended while it wrote
    left.write_bytes(b"x" * BYTES)
    os.utime(left, (1, 1))
    cache = Cache(tmp_path, 3 * BYTES / 1e9)
    files = []
    for i in range(2):
        cache.tensors({"i": i}, lambda i=i: large(i))
        files += [f for f in tmp_path.glob("*.safetensors") if f not in files]
        os.utime(files[-1], (2 + i, 2 + i))
    assert not left.exists() and all(f.exists() for f in files)
    hit = Maker(large())
    cache.tensors({"i": 0}, hit)  # used again, so that it is the newest
    cache.tensors({"i": 2}, lambda: large(2))
    assert hit.n == 0
    assert files[0].exists() and not files[1].exists()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 3 * BYTES


def test_what_is_larger_than_the_budget_is_given_but_not_kept(tmp_path):
    cache = Cache(tmp_path / "new", 0)
    assert not cache.keeps(1)
    assert cache.tensors({"a": 1}, lambda: large(3.0))["x"][0] == 3
    assert not (tmp_path / "new").exists()


def test_a_failed_make_leaves_nothing(tmp_path):
    def fail():
        raise ValueError("no data")

    cache = Cache(tmp_path, 1)
    with pytest.raises(ValueError, match="no data"):
        cache.tensors({"a": 1}, fail)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_costs_only_the_speed(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "below", 1)
    assert cache.tensors({"a": 1}, lambda: large(4.0))["x"][0] == 4


def test_a_key_that_has_no_content_is_refused(tmp_path):
    with pytest.raises(TypeError):
        Cache(tmp_path, 1).tensors({"a": object()}, large)
