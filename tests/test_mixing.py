"""Which token is trained on when: each once, within bounded memory, the same every time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.mixing import deal, rounds

SIZES = {
    "n_steps": st.integers(1, 40),
    "batch_size": st.integers(1, 12),
    "buffer_tokens": st.integers(1, 600),
}


def plan(n_steps, batch_size, buffer_tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(rounds(n_steps, batch_size, buffer_tokens, generator))


@settings(deadline=None)
@given(**SIZES)
def test_a_pass_has_each_token_once(n_steps, batch_size, buffer_tokens):
    tokens = torch.cat([r.tokens for r in plan(n_steps, batch_size, buffer_tokens)])
    assert tokens.sort().values.tolist() == list(range(n_steps * batch_size))


@settings(deadline=None)
@given(**SIZES)
def test_rounds_follow_one_another_and_have_whole_steps(n_steps, batch_size, buffer_tokens):
    step = 0
    for r in plan(n_steps, batch_size, buffer_tokens):
        assert r.first_step == step and r.n_steps > 0
        assert len(r.tokens) == r.n_steps * batch_size
        step += r.n_steps
    assert step == n_steps


@settings(deadline=None)
@given(**SIZES)
def test_a_round_needs_no_more_tokens_than_memory_holds(n_steps, batch_size, buffer_tokens):
    for r in plan(n_steps, batch_size, buffer_tokens):
        assert r.oldest <= r.tokens.min() and r.tokens.max() < r.newest
        assert r.newest - r.oldest <= max(buffer_tokens, 4 * batch_size)


@settings(deadline=None)
@given(**SIZES)
def test_as_many_tokens_as_a_round_trains_on_have_been_read(n_steps, batch_size, buffer_tokens):
    """So that the contexts of these steps, counted in reading order, are in memory too."""
    for r in plan(n_steps, batch_size, buffer_tokens):
        first = r.first_step * batch_size
        assert r.oldest <= first and first + len(r.tokens) <= r.newest


def test_what_fits_is_mixed_as_a_whole():
    (only,) = plan(10, 4, 40, seed=3)
    expected = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    assert torch.equal(only.tokens, expected)


def test_a_round_mixes_two_blocks():
    first, second, *_ = plan(100, 4, 80)
    assert (first.n_steps, second.n_steps) == (5, 10)
    from_the_first_block = (second.tokens < 40).float().mean()
    assert from_the_first_block == 0.5
    assert (second.tokens[:20] < 40).any() and (second.tokens[:20] >= 40).any()


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=60), data=st.data())
def test_units_are_dealt_whole_in_order_and_evenly(sizes, data):
    total = sum(sizes)
    n_hands = data.draw(st.integers(1, max(1, total // 3)))
    hands = deal(sizes, n_hands)
    assert [i for hand in hands for i in hand] == list(range(len(sizes)))
    got = [sum(sizes[i] for i in hand) for hand in hands]
    if total >= 3 * n_hands:  # as many as the longest unit each
        assert min(got) >= 1
    assert max(got) <= total / n_hands + 3


@pytest.mark.parametrize("n_hands", [1, 3, 7])
def test_single_units_are_dealt_to_within_one(n_hands):
    got = [len(hand) for hand in deal([1] * 20, n_hands)]
    assert max(got) - min(got) <= 1
