"""The backward passes by hand against finite differences and against autograd on the formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from training import D_SAE, activations, at, make, set_weights

from bench import kernels, ops
from bench.variant import Batch
from variants.relu import ReLU
from variants.topk import TopK
from variants.vanilla import Vanilla

NAMES = ("x", "W_enc", "b_enc", "W_dec", "b_dec", "origin", "price")


def tensors(n, d_in, d_sae, seed=0, dtype=torch.float64):
    """Inputs of an autoencoder by name, all of them with gradients."""
    g = ops.generator(seed, "kernels")
    shapes = [(n, d_in), (d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,), (d_in,), (d_sae,)]
    values = [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]
    return {name: value.requires_grad_() for name, value in zip(NAMES, values, strict=True)}


def relu_by_autograd(x, W_enc, b_enc, W_dec, b_dec, origin, price):
    f = torch.relu((x - origin) @ W_enc + b_enc)
    return f @ W_dec + b_dec, (f @ price).mean(), (f != 0).sum(0)


def topk_by_autograd(x, W_enc, b_enc, W_dec, b_dec, origin, k, rectify):
    pre = (x - origin) @ W_enc + b_enc
    top = pre.topk(k, dim=-1)
    values = top.values.relu() if rectify else top.values
    f = torch.zeros_like(pre).scatter(-1, top.indices, values)
    return f @ W_dec + b_dec, (f != 0).sum(0)


def loss(x_hat, l1=None):
    """A loss in which every output has a gradient of its own."""
    weights = torch.linspace(-1, 2, x_hat.numel(), dtype=x_hat.dtype).view_as(x_hat)
    return (x_hat * weights).sum() + x_hat.pow(2).mean() + (0 if l1 is None else 3 * l1)


def gradients(of, inputs):
    found = torch.autograd.grad(of, list(inputs.values()), allow_unused=True)
    return dict(zip(inputs, found, strict=True))


def assert_equal(found, expected):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda m, n=name: f"{n}: {m}")


sizes = {"n": st.integers(1, 40), "d_in": st.integers(1, 9), "d_sae": st.integers(1, 70)}


@settings(max_examples=30, deadline=None)
@given(**sizes, block=st.integers(1, 50), seed=st.integers(0, 99))
def test_relu_equals_autograd(n, d_in, d_sae, block, seed):
    inputs = tensors(n, d_in, d_sae, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", block)
        fit = kernels.relu_autoencoder(**inputs)
        found = gradients(loss(fit.x_hat, fit.l1), inputs)
    x_hat, l1, fired = relu_by_autograd(**inputs)
    torch.testing.assert_close(fit.x_hat, x_hat)
    torch.testing.assert_close(fit.l1, l1)
    assert torch.equal(fit.fired, fired)
    assert_equal(found, gradients(loss(x_hat, l1), inputs))


@settings(max_examples=40, deadline=None)
@given(
    **sizes, share=st.floats(0, 1), block=st.integers(1, 50), seed=st.integers(0, 99), rectify=...
)
def test_topk_equals_autograd(n, d_in, d_sae, share, block, seed, rectify: bool):
    inputs = tensors(n, d_in, d_sae, seed)
    del inputs["price"]
    k = max(1, round(share * d_sae))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", block)
        fit = kernels.topk_autoencoder(**inputs, k=k, rectify=rectify)
        found = gradients(loss(fit.x_hat), inputs)
    x_hat, fired = topk_by_autograd(**inputs, k=k, rectify=rectify)
    torch.testing.assert_close(fit.x_hat, x_hat)
    assert torch.equal(fit.fired, fired)
    assert_equal(found, gradients(loss(x_hat), inputs))


def test_relu_gradients_equal_finite_differences():
    inputs = tensors(6, 4, 9)
    assert gradcheck(
        lambda *values: kernels._ReLU.apply(*values)[:2], tuple(inputs.values()), atol=1e-6
    )


@pytest.mark.parametrize("rectify", [True, False])
def test_topk_gradients_equal_finite_differences(rectify):
    inputs = tensors(6, 4, 12)
    del inputs["price"]
    assert gradcheck(
        lambda *values: kernels._TopK.apply(*values, 2, rectify)[0], tuple(inputs.values())
    )


def test_without_origin_and_price_they_are_zero_and_one():
    inputs = tensors(5, 3, 20)
    nothing = {"origin": torch.zeros_like(inputs["b_dec"])}
    price = {"price": torch.ones_like(inputs["b_enc"])}
    plain = {name: inputs[name] for name in NAMES[:5]}
    fit, explicit = kernels.relu_autoencoder(**plain), relu_by_autograd(**plain, **nothing, **price)
    torch.testing.assert_close((fit.x_hat, fit.l1), explicit[:2])
    fit = kernels.topk_autoencoder(**plain, k=2)
    torch.testing.assert_close(
        fit.x_hat, topk_by_autograd(**plain, **nothing, k=2, rectify=True)[0]
    )


def test_half_used_outputs_get_the_right_gradient():
    inputs = tensors(5, 3, 20)

    def both(loss_of):
        fused, literal = kernels.relu_autoencoder(**inputs), relu_by_autograd(**inputs)
        found, expected = (gradients(loss_of(*fits[:2]), inputs) for fits in (fused, literal))
        # what autograd does not reach is None, here it is zero
        return found, {n: 0 * inputs[n] if g is None else g for n, g in expected.items()}

    assert_equal(*both(lambda x_hat, l1: loss(x_hat)))
    assert_equal(*both(lambda x_hat, l1: l1))


@pytest.mark.parametrize("name", ["relu", "topk"])
def test_a_second_derivative_is_refused(name):
    inputs = {n: v for n, v in tensors(5, 3, 20).items() if n in NAMES[:5]}
    relu, topk = kernels.relu_autoencoder, kernels.topk_autoencoder
    x_hat = relu(**inputs).x_hat if name == "relu" else topk(**inputs, k=2).x_hat
    (first,) = torch.autograd.grad(x_hat.pow(2).sum(), inputs["W_enc"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


class Multiplications(TorchDispatchMode):
    """Counts the multiplications in matrix products."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_product = func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        if is_product and 1 not in args[-2].shape:  # a sum over rows is one with a row of ones
            self.n += args[-2].numel() * args[-1].shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "n_products"), [("literal", 6), ("relu", 5), ("topk", 1)], ids=lambda v: v
)
def test_the_matrix_products_of_a_step(name, n_products):
    """They are what a step costs."""
    weights = tensors(32, 6, 200, dtype=torch.float32)
    x = weights.pop("x").detach()
    literal = {n: v for n, v in weights.items() if n != "price"}
    with Multiplications() as counted:
        if name == "topk":
            fit = kernels.topk_autoencoder(x, **literal, k=4)
        else:
            fit = (relu_by_autograd if name == "literal" else kernels.relu_autoencoder)(
                x, **weights
            )
        loss(fit[0]).backward()
    assert counted.n == n_products * 32 * 6 * 200


@settings(max_examples=100, deadline=None)
@given(n_latents=st.integers(1, 300), k=st.integers(1, 300), seed=st.integers(0, 99))
def test_the_largest_are_found_in_groups_too(n_latents, k, seed):
    k = min(k, n_latents)
    pre = torch.randn(2, 3, n_latents, generator=ops.generator(seed, "pre"))
    expected = pre.topk(k, dim=-1).indices.sort().values
    assert torch.equal(kernels.largest(pre, k).sort().values, expected)


@pytest.mark.parametrize("d_sae", [8, 256])
def test_equal_entries_are_kept_once_each(d_sae):
    f = ops.keep_top_k(torch.ones(3, d_sae), 4)
    assert f.sum(-1).tolist() == [4, 4, 4]


def test_keep_top_k_has_the_gradient_of_what_it_keeps():
    pre = torch.randn(5, 64, generator=ops.generator(0, "pre")).requires_grad_()
    ops.keep_top_k(pre, 3, rectify=False).sum().backward()
    kept = torch.zeros(5, 64).scatter(-1, pre.topk(3).indices, 1.0)
    assert torch.equal(pre.grad, kept)


@pytest.mark.parametrize("variant", [make(ReLU), make(Vanilla), make(TopK, k=2)], ids=repr)
def test_the_fused_reconstruction_of_a_variant_is_that_of_encode_and_decode(variant):
    """Values, gradients and counts, from weights that are nowhere zero."""
    g = ops.generator(0, "weights")
    with torch.no_grad():
        for parameter in variant.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    x, fired = activations(64), []
    step = at(fired=fired.append)
    f = variant.encode(x)
    error = ops.squared_error if not isinstance(variant, Vanilla) else ops.norm_error
    expected = error(x, variant.decode(f))
    found = variant.losses(Batch(x), step)["reconstruction"]
    torch.testing.assert_close(found, expected)
    assert torch.equal(fired[0], torch.count_nonzero(f, dim=0))
    weights = dict(variant.named_parameters())
    assert_equal(gradients(found, weights), gradients(expected, weights))


@pytest.mark.parametrize("n_dead", [1, 3, D_SAE - 2])
def test_the_auxiliary_error_is_the_same_whichever_way_it_goes(n_dead, monkeypatch):
    sae, x = make(TopK, k=2), activations(64)
    set_weights(sae, b_enc=torch.linspace(-0.2, 0.2, D_SAE))
    step = at(dead=list(range(n_dead)))
    terms, grads = [], []
    for dense_from in (0.0, 2.0):  # always dense, always sparse
        monkeypatch.setattr(kernels, "DENSE_FROM", dense_from)
        terms.append(sae.losses(Batch(x), step)["auxk"])
        grads.append(gradients(terms[-1], dict(sae.named_parameters())))
    torch.testing.assert_close(*terms)
    # the dense way does not reach b_enc where none of the dead fires
    dense, sparse = ({n: 0 if g is None else g for n, g in found.items()} for found in grads)
    for name in dense:
        torch.testing.assert_close(
            torch.as_tensor(sparse[name]) - dense[name], 0 * sae.get_parameter(name)
        )
