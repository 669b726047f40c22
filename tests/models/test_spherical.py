"""Layers on the sphere against their formulas written out, and turned."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import silu
from torch.testing import assert_close

from awkward import random_rotation
from lamm.models.so3 import Layout, grid_matrices, wigner_of
from lamm.models.spherical import SO3Linear, SphericalActivation, SphericalNorm, grid_perceptron

EXACT = {"rtol": 0, "atol": 1e-12}
CPU = torch.device("cpu")
ATOMS, CHANNELS, L_MAX = 6, 5, 3
M = (L_MAX + 1) ** 2
NORMS = ["layer_norm", "layer_norm_sh", "rms_norm_sh"]
ACTIVATIONS = ["gate", "s2", "separable_s2"]
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)
LAYOUTS = [Layout(3, 3, by_degree=True), Layout(3, 3), Layout(3, 1)]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def randn(*size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def wigner(l_max, seed=3):
    """(M, M) of a random rotation, in the order of l, then m."""
    rotation = random_rotation(seed)
    blocks = [torch.from_numpy(wigner_of(rotation, degree)) for degree in range(l_max + 1)]
    return torch.block_diag(*blocks)


def rows(degree):
    return slice(degree**2, (degree + 1) ** 2)


def randomised(module):
    """With all weights drawn, so that no gain is 1 and no bias 0."""
    module = module.double()
    for seed, parameter in enumerate(module.parameters()):
        nn.init.zeros_(parameter)
        parameter.data += 1 + 0.3 * randn(*parameter.shape, seed=seed)
    return module


# --- linear ---


def linear(inputs=CHANNELS, outputs=4):
    return randomised(SO3Linear(inputs, outputs, L_MAX))


def test_a_linear_layer_has_a_matrix_for_each_degree():
    layer, x = linear(), randn(ATOMS, M, CHANNELS)
    result = layer(x)
    for degree in range(L_MAX + 1):
        expected = torch.einsum("nmi,oi->nmo", x[:, rows(degree)], layer.weight[degree])
        if degree == 0:
            expected = expected + layer.bias
        assert_close(result[:, rows(degree)], expected, **EXACT)
        assert_close(layer.degree(x[:, rows(degree)], degree), expected, **EXACT)


def test_a_linear_layer_commutes_with_rotations():
    layer, x, turn = linear(), randn(ATOMS, M, CHANNELS), wigner(L_MAX)
    assert_close(layer(turn @ x), turn @ layer(x), **EXACT)


# --- norms ---


def balanced(x, degrees):
    """Mean over degrees, components and channels, in which each degree weighs the same."""
    of_degree = [x[:, rows(degree)].square().mean(dim=(1, 2)) for degree in degrees]
    return torch.stack(of_degree).mean(dim=0)[:, None, None]


def by_formula(norm, x):
    if norm.name == "layer_norm_sh":
        scalar = norm.scalar(x[:, :1])
        inverse = (balanced(x, range(1, L_MAX + 1)) + 1e-5) ** -0.5
        parts = [x[:, rows(l)] * inverse * norm.weight[l - 1] for l in range(1, L_MAX + 1)]
        return torch.cat((scalar, *parts), dim=1)
    x = torch.cat((x[:, :1] - x[:, :1].mean(dim=2, keepdim=True), x[:, 1:]), dim=1)
    parts = []
    for degree in range(L_MAX + 1):
        counted = [degree] if norm.name == "layer_norm" else range(L_MAX + 1)
        inverse = (balanced(x, counted) + 1e-5) ** -0.5
        parts.append(x[:, rows(degree)] * inverse * norm.weight[degree])
    parts[0] = parts[0] + norm.bias
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_its_formula(name):
    norm, x = randomised(SphericalNorm(name, L_MAX, CHANNELS)), 3 * randn(ATOMS, M, CHANNELS)
    assert_close(norm(x), by_formula(norm, x), **EXACT)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_commutes_with_rotations(name):
    norm = randomised(SphericalNorm(name, L_MAX, CHANNELS))
    x, turn = 3 * randn(ATOMS, M, CHANNELS), wigner(L_MAX)
    assert_close(norm(turn @ x), turn @ norm(x), **EXACT)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_finite_at_zero_with_its_gradient(name):
    """A lone atom has no l > 0, and equal channels have no variance."""
    norm = randomised(SphericalNorm(name, L_MAX, CHANNELS))
    x = torch.zeros(2, M, CHANNELS, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x).square().sum(), x)
    assert norm(x).isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_works_in_float32_under_mixed_precision(name):
    norm, x = randomised(SphericalNorm(name, L_MAX, CHANNELS)).float(), randn(ATOMS, M, CHANNELS)
    low = x.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        result = norm(low)
    assert result.dtype == torch.float32
    assert_close(result, norm(low.float()), rtol=0, atol=1e-6)


# --- activations ---


def gates_for(activation, seed=9):
    return randn(ATOMS, activation.num_gates, seed=seed)


def activated_by_formula(activation, gates, x):
    """The whole grid, by one sum over coefficients and one over points."""
    layout = activation.layout
    if activation.name == "gate":
        result = torch.empty_like(x)
        gates = gates.unflatten(1, (layout.l_max, CHANNELS))
        for row, degree in enumerate(layout.degrees):
            value = x[:, row]
            result[:, row] = value * torch.sigmoid(value if degree == 0 else gates[:, degree - 1])
        return result
    to_grid, from_grid = grid_matrices(layout, activation.resolution, x.dtype, CPU)
    values = torch.einsum("pm,nmc->npc", to_grid, x)
    result = torch.einsum("mp,npc->nmc", from_grid, values / (1 + torch.exp(-values)))
    if activation.name == "separable_s2":
        result[:, 0] = gates / (1 + torch.exp(-gates))
    return result


@every_activation
@layouts
def test_an_activation_is_its_formula(name, layout):
    activation = SphericalActivation(name, layout, CHANNELS, 10)
    gates, x = gates_for(activation), randn(ATOMS, layout.size, CHANNELS)
    assert activation.split_sizes == (gates.shape[1], layout.size * CHANNELS)
    expected = activated_by_formula(activation, gates, x)
    for block in (None, 1, 4, 100):
        assert_close(activation(gates, x, block), expected, **EXACT)


@every_activation
def test_blocks_of_an_activation_have_the_same_gradients(name):
    activation, grads = SphericalActivation(name, LAYOUTS[2], CHANNELS, 10), []
    for block in (None, 4):
        gates = gates_for(activation).requires_grad_()
        x = randn(ATOMS, LAYOUTS[2].size, CHANNELS).requires_grad_()
        result = activation(gates, x, block)
        weights = randn(*result.shape, seed=5)
        grads.append(torch.autograd.grad(result, (gates, x), weights, allow_unused=True))
    assert_close(grads[1][1], grads[0][1], **EXACT)
    assert name == "s2" or torch.equal(grads[1][0], grads[0][0])


def test_a_gate_commutes_with_rotations():
    layout, turn = LAYOUTS[0], wigner(L_MAX)
    activation = SphericalActivation("gate", layout, CHANNELS, None)
    gates, x = gates_for(activation), randn(ATOMS, M, CHANNELS)
    assert_close(activation(gates, turn @ x), turn @ activation(gates, x), **EXACT)


# --- how far a grid is from symmetric ---

GRID_ERRORS = {
    (2, "s2"): {10: 1.9e-2, 14: 1.0e-3, 18: 7.1e-5, 26: 9.2e-7},
    (2, "separable_s2"): {10: 1.9e-2, 14: 1.0e-3, 18: 7.1e-5, 26: 9.2e-7},
    (2, "perceptron"): {10: 6.3e-3, 14: 9.4e-4, 18: 7.8e-5, 26: 1.1e-6},
    (4, "s2"): {10: 3.3e-1, 14: 3.9e-2, 18: 9.2e-3, 26: 2.9e-4},
    (4, "separable_s2"): {10: 3.3e-1, 14: 3.9e-2, 18: 9.2e-3, 26: 2.9e-4},
    (4, "perceptron"): {10: 5.1e-1, 14: 3.9e-2, 18: 1.9e-2, 26: 1.0e-3},
}
"""Measured: the largest error of a turned output by l_max, layer and resolution, of 20 atoms whose
coefficients and gates are normal. The outputs are of the order of 1."""


def layer_on_grid(name, l_max, resolution):
    """A function of coefficients (20, M, C)."""
    layout = Layout(l_max, l_max, by_degree=True)
    if name == "perceptron":
        weights = [randn(CHANNELS, CHANNELS, seed=k) / CHANNELS**0.5 for k in range(3)]
        return lambda x: grid_perceptron(x, *weights, layout, resolution)
    activation = SphericalActivation(name, layout, CHANNELS, resolution)
    gates = randn(20, activation.num_gates, seed=7)
    return lambda x: activation(gates, x)


@pytest.mark.parametrize(("l_max", "name"), GRID_ERRORS, ids=str)
def test_a_layer_on_a_grid_turns_with_its_input_the_better_the_finer(l_max, name):
    x, turn = randn(20, (l_max + 1) ** 2, CHANNELS, seed=1), wigner(l_max)
    errors = []
    for resolution, measured in GRID_ERRORS[l_max, name].items():
        layer = layer_on_grid(name, l_max, resolution)
        errors.append((layer(turn @ x) - turn @ layer(x)).abs().max().item())
        assert errors[-1] < 2 * measured, resolution
        assert errors[-1] > measured / 10, "the bound is no longer what is measured"
    assert errors == sorted(errors, reverse=True)


def test_what_is_smooth_enough_for_the_grid_turns_exactly():
    """Small inputs: SiLU is x / 2 + x² / 4 there, of degree 2 l_max, which 10 steps hold."""
    x, turn = 1e-4 * randn(20, 9, CHANNELS, seed=1), wigner(2)
    layer = layer_on_grid("s2", 2, 10)
    assert_close(layer(turn @ x), turn @ layer(x), rtol=0, atol=1e-14)


# --- the network on the grid ---


@layouts
def test_the_network_on_the_grid_is_its_formula(layout):
    x = randn(ATOMS, layout.size, CHANNELS)
    weights = [randn(CHANNELS, CHANNELS, seed=k) for k in (1, 2, 3)]
    to_grid, from_grid = grid_matrices(layout, 10, torch.float64, CPU)
    first, middle, last = weights
    values = torch.einsum("pm,nmc->npc", to_grid, x) @ first.T
    values = silu(silu(values) @ middle.T) @ last.T
    expected = torch.einsum("mp,npc->nmc", from_grid, values)
    result = grid_perceptron(x, *weights, layout, 10)
    assert_close(result, expected, rtol=1e-12, atol=1e-11)
