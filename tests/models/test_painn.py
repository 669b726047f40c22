"""PaiNN against its formulas written out in loops, and its two ways to sum messages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoders import PAINN, SMOOTH, small_model
from pydantic import ValidationError
from torch.testing import assert_close

from awkward import AWKWARD, CUTOFF
from lamm.graph import GraphBatch, edge_vectors
from lamm.models import ModelConfig, painn
from lamm.models.painn import BLOCK, PaiNN, PaiNNConfig, block_pairs
from lamm.models.potential import _forces_and_stress


def silu(x):
    return x / (1 + np.exp(-x)) / 0.6


def dense(weights, name, x):
    y = weights[f"{name}.weight"] @ x
    return y + weights.get(f"{name}.bias", 0.0)


def two(weights, name, x):
    return dense(weights, f"{name}.2", silu(dense(weights, f"{name}.0", x)))


def by_loops(weights, config, numbers, edges):
    """Energy and forces of one output, atom by atom and edge by edge, in the words of the papers.

    Args:
        weights: numpy arrays by name.
        config: sizes.
        numbers: element of each atom.
        edges: (source, target, vector) of each edge.
    """
    n, c, k = len(numbers), config.channels, config.num_radial
    s = np.stack([weights["encoder.embedding.weight"][z - 1] for z in numbers])
    v = np.zeros((n, 3, c))
    for layer in range(config.num_layers):
        name = f"encoder.messages.{layer}"
        ds, dv = np.zeros((n, c)), np.zeros((n, 3, c))
        for j, i, vector in edges:
            d = np.sqrt(vector @ vector)
            x, p = d / config.cutoff, config.envelope_exponent
            envelope = (
                1
                - (p + 1) * (p + 2) / 2 * x**p
                + p * (p + 2) * x ** (p + 1)
                - p * (p + 1) / 2 * x ** (p + 2)
            ) * (x < 1)
            spacing = 1 / (k - 1)
            basis = np.exp(-0.5 / spacing**2 * (x - np.linspace(0, 1, k)) ** 2) * envelope
            fade = envelope if config.smooth_cutoff else 1.0
            w = weights[f"{name}.filter.weight"] @ basis + fade * weights[f"{name}.filter.bias"]
            normal = (s[j] - s[j].mean()) / np.sqrt(s[j].var() + 1e-5)
            normal = normal * weights[f"{name}.norm.weight"] + weights[f"{name}.norm.bias"]
            a, b, g = np.split(two(weights, f"{name}.net", normal) * w, 3)
            ds[i] += a
            for axis in range(3):
                dv[i, axis] += (v[j, axis] * b / np.sqrt(3) + vector[axis] / d * g) / np.sqrt(c)
        s, v = (s + ds) / np.sqrt(2), v + dv
        name = f"encoder.updates.{layer}"
        for i in range(n):
            mixed = np.stack([dense(weights, f"{name}.mix", v[i, axis]) for axis in range(3)])
            first, second = mixed[:, :c], mixed[:, c:]
            dot = (first * second).sum(axis=0) / np.sqrt(c)
            length = np.sqrt((second**2).sum(axis=0) + 1e-8)
            p, q, r = np.split(two(weights, f"{name}.net", np.concatenate((s[i], length))), 3)
            s[i] += (p + q * dot) / np.sqrt(2)
            v[i] += r * first
        s = s * weights["encoder.scales"][layer]
    energy = sum(two(weights, "energy_head.net", s[i]) for i in range(n))
    forces = []
    for i in range(n):
        x, y = s[i], v[i]
        for block in ("first", "last"):
            name = f"force_head.{block}"
            turned = np.stack([dense(weights, f"{name}.length_mix", y[axis]) for axis in range(3)])
            length = np.sqrt((turned**2).sum(axis=0))
            mixed = np.stack([dense(weights, f"{name}.vector_mix", y[axis]) for axis in range(3)])
            x, gate = np.split(two(weights, f"{name}.net", np.concatenate((x, length))), 2)
            x, y = silu(x), gate * mixed
        forces.append(y.T)
    return energy, np.array(forces)


SCALED = PAINN.model_copy(update={"layer_scales": (1.125, 0.75), "envelope_exponent": 6})


@pytest.mark.parametrize("config", [PAINN, SMOOTH, SCALED], ids=["plain", "smooth", "scaled"])
@pytest.mark.parametrize("structure", AWKWARD[1:6], ids=lambda s: s.name)
def test_the_model_computes_its_formulas(config, structure):
    model = small_model(ModelConfig(encoder=config))
    batch = GraphBatch.from_structures([structure], model.graph_config, dtype=torch.float64)
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    edges = list(zip(*batch.edge_index.tolist(), edge_vectors(batch).numpy(), strict=True))
    energy, forces = by_loops(weights, config, batch.atomic_numbers.tolist(), edges)
    prediction = model(batch, normalised=True)
    assert_close(prediction.energy[0].detach().numpy(), energy, rtol=0, atol=1e-12)
    assert_close(prediction.forces.detach().numpy(), forces, rtol=0, atol=1e-12)


def both_ways(config, batch, vectors):
    """Features and gradients from pairs, and from all edges."""
    encoder = PaiNN(config).double().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=config.channels**-0.5)
    results = []
    for one in (batch, replace(batch, edge_kind="directed")):
        leaf = vectors.detach().clone().requires_grad_(vectors.requires_grad)
        encoder.zero_grad()
        features = encoder(one, leaf)
        (features.scalars.sin().sum() + features.vectors.cos().sum()).backward()
        learnt = (parameter for parameter in encoder.parameters() if parameter.requires_grad)
        gradients = [parameter.grad.clone() for parameter in learnt]
        if leaf.requires_grad:
            # A pair's gradient is on one of its two edges: forces and virial don't see which.
            gradients += _forces_and_stress(batch, vectors.detach(), leaf.grad)
        results.append((*features, *gradients))
    return results


@pytest.mark.parametrize("block", [1, 10**6], ids=["many bands", "one band"])
@pytest.mark.parametrize("geometry", [False, True], ids=["weights", "weights and geometry"])
def test_pairs_give_what_edges_give(block, geometry, monkeypatch):
    monkeypatch.setattr(painn, "BLOCK", block)
    config = SMOOTH.model_copy(update={"channels": 6, "num_radial": 40})
    batch = GraphBatch.from_structures(AWKWARD, config.graph, dtype=torch.float64)
    vectors = edge_vectors(batch).requires_grad_(geometry)
    pairs, edges = both_ways(config, batch, vectors)
    for one, other in zip(pairs, edges, strict=True):
        assert_close(one, other, rtol=0, atol=1e-11 * float(other.detach().abs().max()))


def second_order(config, batch):
    """Gradients of a loss of scalars, vectors and forces, by the weights and by the geometry."""
    encoder = PaiNN(config).double().train()
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=config.channels**-0.5)
    results = []
    for one in (batch, replace(batch, edge_kind="directed")):
        encoder.zero_grad()
        leaf = edge_vectors(batch).detach().requires_grad_()
        features = encoder(one, leaf)
        energy = features.scalars.sin().sum() + features.vectors.cos().sum()
        (gradient,) = torch.autograd.grad(energy, leaf, create_graph=True)
        forces, stress = _forces_and_stress(batch, leaf.detach(), gradient)
        (forces.sin().sum() + stress.sum() + features.scalars.square().sum()).backward()
        learnt = [weight for weight in encoder.parameters() if weight.requires_grad]
        results.append(
            [weight.grad.clone() for weight in learnt]
            + list(_forces_and_stress(batch, leaf.detach(), leaf.grad))
        )
    return results


@pytest.mark.parametrize("block", [1, 10**6], ids=["many bands", "one band"])
def test_forces_from_pairs_are_learnt_as_those_from_edges(block, monkeypatch):
    monkeypatch.setattr(painn, "BLOCK", block)
    config = SMOOTH.model_copy(update={"channels": 6, "num_radial": 40})
    batch = GraphBatch.from_structures(AWKWARD, config.graph, dtype=torch.float64)
    for one, other in zip(*second_order(config, batch), strict=True):
        assert_close(one, other, rtol=0, atol=1e-10 * max(float(other.abs().max()), 1e-6))


def test_geometry_that_nobody_asks_for_any_more_leaves_the_weights_gradients_alone():
    config = SMOOTH.model_copy(update={"channels": 6, "num_radial": 40})
    batch = GraphBatch.from_structures(AWKWARD, config.graph, dtype=torch.float64)
    encoder = PaiNN(config).double().train()
    learnt = [weight for weight in encoder.parameters() if weight.requires_grad]
    results = []
    for wanted in (True, False):
        encoder.zero_grad()
        leaf = edge_vectors(batch).detach().requires_grad_()
        features = encoder(batch, leaf)
        energy = features.scalars.sin().sum() + features.vectors.cos().sum()
        (gradient,) = torch.autograd.grad(energy, leaf, create_graph=True)
        leaf.requires_grad_(wanted)
        (gradient.sin().sum() + energy).backward()
        assert (leaf.grad is not None) == wanted
        results.append([weight.grad.clone() for weight in learnt])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_gradient_by_weights_is_differentiated_once():
    config = SMOOTH.model_copy(update={"channels": 6, "num_radial": 40})
    batch = GraphBatch.from_structures(AWKWARD, config.graph, dtype=torch.float64)
    encoder = PaiNN(config).double()
    weight = encoder.messages[0].filter.weight
    features = encoder(batch, edge_vectors(batch).detach().requires_grad_())
    (gradient,) = torch.autograd.grad(features.scalars.sin().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="by the filters' weights can't be differentiated"):
        gradient.square().sum().backward()


def test_small_blocks_make_bands_that_leave_gaussians_out(monkeypatch):
    monkeypatch.setattr(painn, "BLOCK", 1)
    config = SMOOTH.model_copy(update={"channels": 6, "num_radial": 40})
    batch = GraphBatch.from_structures(AWKWARD, config.graph, dtype=torch.float64)
    bands = PaiNN(config).double()._edges(batch, edge_vectors(batch)).bands
    assert len(bands) > 3
    assert any(band.low > 0 for band in bands)
    assert any(band.high < 40 for band in bands)


def test_a_smooth_cutoff_lets_a_neighbour_leave_unnoticed():
    model = small_model(ModelConfig(encoder=SMOOTH))

    def energy(distance):
        structure = replace(AWKWARD[1], positions=np.array([[0, 0, 0], [0, 0, distance]]))
        batch = GraphBatch.from_structures([structure], model.graph_config, dtype=torch.float64)
        return model(batch, normalised=True).energy[0, 0].item()

    just_inside, outside = energy(CUTOFF - 1e-4), energy(CUTOFF + 1e-4)
    assert abs(just_inside - outside) < 1e-10
    assert abs(energy(CUTOFF - 1.0) - outside) > 1e-4


def test_edges_beyond_the_cutoff_have_no_radial_part():
    """Given edges may be longer than the model's cutoff."""
    model = small_model(ModelConfig(encoder=SMOOTH))
    pair = AWKWARD[1]
    arrays = (pair.atomic_numbers, pair.positions, pair.cell, pair.pbc)
    joined = GraphBatch.from_arrays(*arrays, np.array([[0, 1], [1, 0]]))
    apart = GraphBatch.from_arrays(*arrays, np.zeros((2, 0)))
    assert_close(model(joined).energy, model(apart).energy, rtol=0, atol=1e-12)


def test_scales_are_one_for_each_layer():
    with pytest.raises(ValidationError, match="one for each of the 6 layers"):
        PaiNNConfig(layer_scales=(1.0, 2.0))


def test_weights_start_as_the_original_starts_them():
    encoder = PaiNN(PaiNNConfig(channels=64, num_layers=1, num_radial=16))
    embedding = encoder.embedding.weight
    assert embedding.abs().max() <= 3**0.5
    assert abs(embedding.std().item() - 1) < 0.03
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "net" in name or "filter" in name or "mix" in name:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.95 * bound < parameter.abs().max() <= bound, name


def test_few_pairs_are_cut_into_some_blocks_and_many_into_blocks_that_fit_the_cache():
    most = BLOCK // 96
    assert block_pairs(10**6, 96) == most
    assert block_pairs(5 * (most - 7), 96) == most - 7
    assert block_pairs(10, 96) == most // 3
    assert block_pairs(10**6, 4096) == 32
