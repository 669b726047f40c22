"""The SO(2) convolution against complex numbers, rotations about the edge and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from lamm.models.so2 import SO2Convolution, multiply, multiply_backward
from lamm.models.so3 import Layout

EXACT = {"rtol": 0, "atol": 1e-12}
CASES = [(Layout(2, 1), 0), (Layout(4, 2), 5), (Layout(3, 3), 2), (Layout(3, 0), 1)]
cases = pytest.mark.parametrize(("layout", "extra"), CASES, ids=str)
INPUTS, OUTPUTS, EDGES = 3, 4, 6


def convolution(layout, extra):
    torch.manual_seed(0)
    result = SO2Convolution(INPUTS, OUTPUTS, layout, extra).double()
    torch.nn.init.normal_(result.zero.bias)
    return result


def coefficients(layout, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        EDGES, layout.size, INPUTS, generator=generator, dtype=torch.float64, requires_grad=True
    )


def order(x, layout, m):
    """The coefficients of one order m of either sign, (E, degrees, C)."""
    return x[:, layout.orders == m]


def by_complex_numbers(conv, x):
    """Extra scalars (E, extra) and a dictionary of the outputs of each order m."""
    layout = conv.layout
    top = conv.zero(order(x, layout, 0).flatten(1))
    outputs = {0: top[:, conv.extra :].unflatten(1, (-1, OUTPUTS))}
    for m, weight in enumerate(conv.nonzero.parameters(), start=1):
        matrix = torch.complex(*weight.chunk(2))
        number = torch.complex(order(x, layout, m).flatten(1), order(x, layout, -m).flatten(1))
        product = (number @ matrix.T).unflatten(1, (-1, OUTPUTS))
        outputs[m], outputs[-m] = product.real, product.imag
    return top[:, : conv.extra], outputs


def about_the_edge(layout, angle):
    """The Wigner matrix (M', M') of a rotation about the polar axis: it mixes m with -m."""
    matrix = torch.zeros(layout.size, layout.size, dtype=torch.float64)
    for i, (l, m) in enumerate(zip(layout.degrees, layout.orders, strict=True)):
        for j, (k, n) in enumerate(zip(layout.degrees, layout.orders, strict=True)):
            if l == k and m == n:
                matrix[i, j] = math.cos(m * angle)
            elif l == k and m == -n:
                matrix[i, j] = math.sin(m * angle)
    return matrix


@cases
def test_three_real_products_are_one_complex_product(layout, extra):
    conv, x = convolution(layout, extra), coefficients(layout)
    result = multiply(x.flatten(1), conv.weights())
    scalars, outputs = by_complex_numbers(conv, x)
    assert result.shape == (EDGES, extra + layout.size * OUTPUTS)
    assert_close(result[:, :extra], scalars, **EXACT)
    made = result[:, extra:].unflatten(1, (layout.size, OUTPUTS))
    for m, expected in outputs.items():
        assert_close(order(made, layout, m), expected, **EXACT)


@cases
def test_the_convolution_commutes_with_rotations_about_the_edge(layout, extra):
    conv, x = convolution(layout, extra), coefficients(layout)
    turn = about_the_edge(layout, 0.7)
    before = multiply((turn @ x).flatten(1), conv.weights())
    after = multiply(x.flatten(1), conv.weights())
    assert_close(before[:, :extra], after[:, :extra], **EXACT)
    made, expected = (
        one[:, extra:].unflatten(1, (layout.size, OUTPUTS)) for one in (before, after)
    )
    assert_close(made, turn @ expected, **EXACT)


@cases
def test_the_gradient_written_out_is_autograds(layout, extra):
    conv, x = convolution(layout, extra), coefficients(layout).flatten(1)
    weights = [one.detach().clone().requires_grad_() for one in conv.weights()]
    result = multiply(x, weights)
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).double()
    expected = torch.autograd.grad(result, (x, *weights), grad)
    totals = [torch.ones_like(one) for one in weights]
    with torch.no_grad():
        made = multiply_backward(x.detach(), weights, grad, totals)
    assert_close(made, expected[0], **EXACT)
    for total, one in zip(totals, expected[1:], strict=True):
        assert_close(total, 1 + one, **EXACT)


def test_weights_without_a_gradient_are_left_out():
    conv, x = convolution(Layout(3, 2), 1), coefficients(Layout(3, 2)).flatten(1).detach()
    weights = conv.weights()
    grad = multiply(x, weights).detach()
    with torch.no_grad():
        all_none = multiply_backward(x, weights, grad, [None] * len(weights))
        totals = [torch.zeros_like(one) for one in weights]
        assert_close(all_none, multiply_backward(x, weights, grad, totals), **EXACT)


@cases
def test_one_degree_has_the_rows_of_the_whole_product(layout, extra):
    conv, x = convolution(layout, extra), coefficients(layout)
    whole = multiply(x.flatten(1), conv.weights())
    made = whole[:, extra:].unflatten(1, (layout.size, OUTPUTS))
    for degree in range(layout.l_max + 1):
        weights = conv.weights(degree)
        part = multiply(x.flatten(1), weights)
        rows = made[:, layout.degrees == degree]
        assert_close(part[:, :extra], whole[:, :extra], **EXACT)
        assert_close(part[:, extra:].unflatten(1, (-1, OUTPUTS)), rows, **EXACT)
        grad = torch.randn(part.shape, generator=torch.Generator().manual_seed(3)).double()
        (expected,) = torch.autograd.grad(part, x, grad)
        with torch.no_grad():
            flat = x.detach().flatten(1)
            result = multiply_backward(flat, weights, grad, [None] * len(weights))
        assert_close(result.unflatten(1, (layout.size, INPUTS)), expected, **EXACT)


def test_no_edges_give_no_outputs():
    layout = Layout(2, 1)
    conv = convolution(layout, 2)
    x = torch.zeros(0, layout.size * INPUTS, dtype=torch.float64)
    result = multiply(x, conv.weights())
    assert result.shape == (0, 2 + layout.size * OUTPUTS)
    totals = [torch.zeros_like(one) for one in conv.weights()]
    with torch.no_grad():
        assert multiply_backward(x, conv.weights(), result, totals).shape == x.shape
    assert all((one == 0).all() for one in totals)


def test_complex_weights_start_smaller_since_two_products_are_summed():
    torch.manual_seed(0)
    conv = SO2Convolution(64, 64, Layout(2, 2))
    for m, weight in enumerate(conv.nonzero.parameters(), start=1):
        bound = 1 / math.sqrt(2 * conv.layout.count(m) * 64)
        assert 0.99 * bound < weight.abs().max() <= bound


def test_mixed_precision_is_near_float32():
    layout = Layout(2, 2)
    conv, x = convolution(layout, 1).float(), coefficients(layout).float().flatten(1).detach()
    expected = multiply(x, conv.weights())
    totals = [torch.zeros_like(one) for one in conv.weights()]
    exact = [torch.zeros_like(one) for one in conv.weights()]
    with torch.no_grad():
        grad = multiply_backward(x, conv.weights(), expected, exact)
        with torch.autocast("cpu", torch.bfloat16):
            result = multiply(x, conv.weights())
            low = multiply_backward(x, conv.weights(), result, totals)
    assert result.dtype == torch.bfloat16
    for one, other in [(result, expected), (low, grad), *zip(totals, exact, strict=True)]:
        assert (one - other).abs().max() < 0.03 * other.abs().max()
