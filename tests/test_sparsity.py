"""Step functions against SAELens's, the threshold for an L0 against a sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import ops


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("name", ["jumprelu", "heaviside"])
def test_steps_and_their_gradients_equal_saelens(name, to_input):
    from sae_lens.saes import jumprelu_sae

    theirs = {"jumprelu": jumprelu_sae.JumpReLU, "heaviside": jumprelu_sae.Step}[name]
    g = ops.generator(0, "steps")
    pre, weight = torch.randn(200, 5, generator=g), torch.randn(200, 5, generator=g)
    threshold = torch.rand(5, generator=g)
    found = []
    for step in (
        lambda p, t: getattr(ops, name)(p, t, 0.7, to_input=to_input),
        lambda p, t: theirs.apply(p, t, 0.7, to_input),
    ):
        p, t = pre.clone().requires_grad_(), threshold.clone().requires_grad_()
        value = step(p, t)
        (value * weight).sum().backward()
        found.append((value, p.grad, t.grad))
    for ours, other in zip(*found, strict=True):
        assert (ours is None) == (other is None)
        if ours is not None:
            torch.testing.assert_close(ours, other)


@given(st.integers(0, 2**16), st.floats(0.2, 6), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_a_threshold_leaves_exactly_the_wanted_number(seed, l0, at_most):
    acts = torch.randn(50, 12, generator=ops.generator(seed, "acts")).relu()
    pieces = acts.split(7)
    threshold = ops.threshold_for_l0(pieces, l0, at_most=at_most)
    rows = acts[:at_most]
    n_positive, wanted = int((rows > 0).sum()), int(l0 * len(rows))
    assert int((rows > threshold).sum()) == min(wanted, n_positive)


def test_the_largest_of_a_batch_are_kept():
    pre = torch.tensor([[3.0, -1.0, 2.0], [0.5, -2.0, 1.0]])
    assert ops.keep_batch_top_k(pre, 1.5).tolist() == [[3, 0, 2], [0, 0, 1]]
    # negative ones are never kept
    assert ops.keep_batch_top_k(pre, 2.5).tolist() == [[3, 0, 2], [0.5, 0, 1]]
