"""The pure functions, against slow or library references."""

import pytest
import torch

from bench import ops

G = torch.Generator().manual_seed(0)


def test_generators_of_one_seed_do_not_share_numbers():
    a, again, b = (ops.generator(3, purpose) for purpose in ("order", "order", "weights"))
    draws = torch.randn(4, generator=a)
    assert torch.equal(draws, torch.randn(4, generator=again))
    assert not torch.equal(draws, torch.randn(4, generator=b))
    assert not torch.equal(draws, torch.randn(4, generator=ops.generator(4, "order")))


def test_errors_of_a_token_three_and_four_off():
    x, x_hat = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert ops.squared_error(x, x_hat).item() == 12.5
    assert ops.norm_error(x, x_hat).item() == 2.5


def test_keep_top_k_keeps_the_k_largest_where_positive():
    pre = torch.tensor([[[1.0, 3.0, 2.0, -1.0], [-4.0, -3.0, 5.0, -1.0]]])
    assert ops.keep_top_k(pre, 2).tolist() == [[[0, 3, 2, 0], [0, 0, 5, 0]]]


def test_rows_are_normalised_and_a_zero_row_stays():
    W = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    ops.normalise_rows_(W)
    assert W.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]


def test_only_the_radial_part_of_a_gradient_is_removed():
    W = torch.nn.functional.normalize(torch.randn(5, 3, generator=G), dim=-1)
    along, across = torch.randn(5, 1, generator=G) * W, torch.randn(5, 3, generator=G)
    across -= (across * W).sum(-1, keepdim=True) * W
    grad = along + across
    ops.remove_radial_(grad, W)
    torch.testing.assert_close(grad, across)


def test_folding_norms_changes_no_reconstruction():
    W_enc, b_enc = torch.randn(4, 6, generator=G), torch.randn(6, generator=G)
    W_dec = torch.randn(6, 4, generator=G) * torch.rand(6, 1, generator=G)
    W_dec[2] = 0.0  # a latent that does nothing
    x = torch.randn(50, 4, generator=G)
    f = torch.relu(x @ W_enc + b_enc)
    folded = ops.fold_norms(W_enc, b_enc, W_dec)
    f_folded = torch.relu(x @ folded.W_enc + folded.b_enc)
    torch.testing.assert_close(f_folded @ folded.W_dec, f @ W_dec)
    torch.testing.assert_close(f_folded, f * W_dec.norm(dim=-1))
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(6))


def test_geometric_median_has_the_smallest_summed_distance():
    from scipy.optimize import minimize

    x = torch.randn(40, 3, generator=G).double()
    x[:5] += 50  # which would pull the mean along
    best = minimize(lambda p: (x - torch.from_numpy(p)).norm(dim=-1).sum().item(), x.mean(0))
    torch.testing.assert_close(
        ops.geometric_median(x, 200), torch.from_numpy(best.x), atol=1e-4, rtol=0
    )


def test_unexplained_variance_is_one_for_the_mean_and_zero_for_a_copy():
    x = torch.randn(30, 4, generator=G) + 7
    assert ops.unexplained_variance(x, x).item() == 0
    assert ops.unexplained_variance(x, x.mean(0).expand_as(x)).item() == pytest.approx(1)
