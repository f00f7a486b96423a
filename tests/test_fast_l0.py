"""L0 on a suite's own inputs: counted by hand, on the tokens that are said to count."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fast import l0
from bench.fast.probe_data import Split
from bench.suite import Scored
from tests import tiny

SCORED = Scored("a", {"other": 1.0}, [], None, {"third": "why not"})


class Same:
    """An SAE whose latents are its inputs."""

    device, dtype = "cpu", torch.float32

    def encode(self, x):
        return x


def test_what_is_not_zero_is_active():
    x = torch.tensor([[0.0, 2.0, -1.0], [0.0, 0.0, 0.5]])
    assert l0.active_per_token(Same(), x) == 1.5


@settings(deadline=None)  # the first example imports sae_lens
@given(st.integers(1, 20), st.integers(1, 7))
def test_batches_change_nothing(n, per_call):
    x = torch.randn(n, tiny.D_MODEL, generator=torch.Generator().manual_seed(n))
    sae = tiny.make_sae()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(l0, "ROWS_PER_CALL", per_call)
        found = l0.active_per_token(sae, x)
    assert found == pytest.approx((sae.encode(x) > 0).sum().item() / n)


def test_rows_take_the_precision_of_the_sae():
    x = torch.randn(5, tiny.D_MODEL)
    sae = tiny.make_sae().to(torch.bfloat16)
    expected = (sae.encode(x.bfloat16()) > 0).sum().item() / 5
    assert l0.active_per_token(sae, x) == expected


def test_without_a_token_there_is_a_reason_and_no_number():
    assert l0.active_per_token(Same(), torch.zeros(0, 3)) is None
    found = l0.with_l0(SCORED, None)
    assert found.metrics == {"other": 1.0, "l0_suite": None}
    assert found.reasons == {"third": "why not", "l0_suite": "no token of the inputs counts"}
    found = l0.with_l0(SCORED, 3.5)
    assert found.metrics["l0_suite"] == 3.5 and found.reasons == SCORED.reasons


def test_the_first_texts_of_each_class_are_taken_without_what_does_not_count():
    sizes = {"a": l0.TEXTS_PER_CLASS + 1, "b": 2}
    n = sum(sizes.values())
    mask = torch.tensor([[False, True, True]]).repeat(n, 1)
    mask[0, 2] = False
    x = torch.arange(n)[:, None, None] * 10.0 + torch.arange(3.0)[None, :, None]  # [n, 3, 1]
    x[1, 1] = 0  # counts, whatever it holds
    found = l0.first_tokens(Split(x, mask, sizes)).flatten().tolist()
    expected = [1, 0, 12]
    expected += [10 * i + t for i in (*range(2, l0.TEXTS_PER_CLASS), n - 2, n - 1) for t in (1, 2)]
    assert found == expected
