"""Groups, cosines and ramps against literal loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from training import at

from bench import ops


@given(st.integers(0, 2**16), st.integers(1, 30), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_groups_hold_every_member_once_and_no_more_than_fit(seed, m, size):
    g = ops.generator(seed, "groups")
    vectors, members = torch.randn(m, 4, generator=g), torch.rand(m, generator=g) < 0.8
    groups = ops.balanced_groups(vectors, members, size, ops.generator(seed, "k-means"))
    assert torch.equal(groups >= 0, members)
    n_members = int(members.sum())
    if n_members:
        assert groups[members].bincount().max() <= size
        assert groups.max() < -(-n_members // size)
    again = ops.balanced_groups(vectors, members, size, ops.generator(seed, "k-means"))
    assert torch.equal(groups, again)


def test_groups_are_those_that_point_the_same_way():
    g = ops.generator(0, "groups")
    axes = torch.eye(4).repeat_interleave(5, 0)
    order = torch.randperm(20, generator=g)
    vectors = (axes + 0.05 * torch.randn(20, 4, generator=g))[order]
    found = {}
    for seed in range(5):  # k-means finds its way from most starts, not from all
        groups = ops.balanced_groups(
            vectors, torch.ones(20).bool(), 5, ops.generator(seed, "k-means")
        )
        similarity = normalize(vectors, dim=-1) @ normalize(vectors, dim=-1).T
        found[seed] = similarity[groups[:, None] == groups[None]].mean().item()
    assert max(found.values()) > 0.95


@given(st.integers(0, 2**16), st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_nearest_rows_equal_a_loop(seed, m):
    g = ops.generator(seed, "rows")
    D = normalize(torch.randn(m, 3, generator=g), dim=-1)
    groups = torch.randint(-1, 3, (m,), generator=g).int()
    rows = torch.randperm(m, generator=g)[: max(m // 2, 1)]
    nearest = ops.nearest_rows(D, rows)
    outside, inside = ops.nearest_by_group(D, rows, groups)
    for n, i in enumerate(rows.tolist()):
        cosines = {j: (D[i] @ D[j]).item() for j in range(m) if j != i}
        same = {j for j in cosines if groups[j] == groups[i] and groups[i] >= 0}
        assert nearest[n] == max(cosines, key=cosines.__getitem__)
        for found, allowed in ((inside[n], same), (outside[n], set(cosines) - same)):
            assert found == max(allowed, key=cosines.__getitem__, default=-1)


def test_samples_differ_between_steps_and_are_whole_where_there_is_no_more():
    first, again, second = (ops.sampled(50, 8, at(50, number=i)) for i in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert len(first.unique()) == 8
    assert ops.sampled(5, 8, at(5)).tolist() == [0, 1, 2, 3, 4]


def test_a_ramp_and_a_running_mean_by_hand():
    assert [ops.ramp(p, 0.2) for p in (0.0, 0.1, 0.3)] == [0, 0.5, 1]
    assert ops.ramp(0.0, 0.0) == 1
    mean, value = torch.tensor(1.0), torch.tensor(5.0)
    assert ops.running(mean, value, 0.01, 0.04, is_first=False).item() == pytest.approx(2)
    assert ops.running(mean, value, 0.01, 0.04, is_first=True).item() == 5


def test_variance_by_hand():
    assert ops.variance(torch.tensor([[1.0, 0.0], [3.0, 4.0]])).item() == pytest.approx(1 + 4)


def test_copies_of_a_basis_attain_the_welch_bound():
    D = torch.eye(3).repeat(8, 1)
    mean = ops.mean_squared_cosine(D, torch.arange(24))
    assert mean.item() == pytest.approx(ops.welch_bound(24, 3))
    assert ops.welch_bound(3, 5) == 0 == ops.welch_bound(1, 5)
