"""Gradient norms of loss terms against the reconstruction's."""

import pytest
import torch

from bench.gradients import gradient_ratios

W = torch.tensor([3.0, 4.0], requires_grad=True)
V = torch.tensor([1.0, 0.0], requires_grad=True)


def test_ratios_worked_by_hand():
    terms = {
        "reconstruction": (W**2).sum() / 2 + 2 * V[0],  # gradients (3, 4) and (2, 0)
        "l1": W.sum() * 5 / 2**0.5,  # norm 5
        "constant": torch.tensor(7.0),
    }
    ratios = gradient_ratios(terms, {"W_enc": W, "W_dec": V})
    assert {n: r.item() for n, r in ratios.items()} == pytest.approx(
        {
            "grad_ratio_l1_W_enc": 1.0,
            "grad_ratio_l1_W_dec": 0.0,
            "grad_ratio_constant_W_enc": 0.0,
            "grad_ratio_constant_W_dec": 0.0,
        }
    )
    torch.stack(list(terms.values())).sum().backward()  # the graph is still there
    assert W.grad is not None


def test_without_a_reconstruction_there_is_nothing_to_hold_against():
    assert gradient_ratios({"error": W.sum()}, {"W_enc": W}) == {}
