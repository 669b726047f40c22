"""EquiformerV2 with given weights and edges: the numbers and gradients of the original."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lamm.graph import GraphBatch, edge_vectors
from lamm.models import ModelConfig, build, from_fairchem

pytestmark = [
    pytest.mark.parametrize("block", [None, 16]),
    pytest.mark.parametrize("name", ["ethanol", "cu_bulk", "cu111_CO"]),
]


@pytest.fixture(scope="module")
def oracle(shared):
    return np.load(shared / "oracle" / "eqv2_tiny_l2m2.npz")


def prepared(oracle, name, block, dtype):
    """The model that the numbers were made with, and its batch."""
    weights = {key[2:]: torch.from_numpy(oracle[key]) for key in oracle if key.startswith("w/")}
    taken = from_fairchem(json.loads(str(oracle["meta"]))["config"], weights)
    encoder = taken.config.encoder.model_copy(update={"edge_block": block})
    model = build(ModelConfig(encoder=encoder), ["one"]).to(dtype).eval()
    model.load_state_dict(taken.state_dict())
    keys = ("numbers", "positions", "cell", "pbc", "edge_index", "cell_offsets")
    arrays = (oracle[f"{name}/{key}"] for key in keys)
    return model, GraphBatch.from_arrays(*arrays, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "bound"), [("f64", 1e-10), ("f32", 1e-5)], ids=["float64", "float32"]
)
def test_the_numbers_are_the_originals(oracle, name, block, kind, bound):
    dtype = torch.float64 if kind == "f64" else torch.float32
    model, batch = prepared(oracle, name, block, dtype)
    with torch.no_grad():
        result = model(batch)
        coefficients = model.encoder(batch, edge_vectors(batch)).coefficients
    ours = {
        "energy": result.energy[:, 0],
        "forces": result.forces[:, 0],
        "node_embedding": coefficients,
    }
    for quantity, value in ours.items():
        expected = oracle[f"{name}/{kind}/{quantity}"]
        error = np.abs(value.double().numpy() - expected).max() / np.abs(expected).max()
        assert error < bound, quantity


def test_the_gradients_are_the_originals(oracle, name, block):
    model, batch = prepared(oracle, name, block, torch.float64)
    prediction = model(batch)
    forces = prediction.forces[:, 0]
    weighted = (forces * torch.tensor([1.0, 2.0, 3.0])).sum()
    (prediction.energy.sum() + weighted + 0.1 * forces.square().sum()).backward()
    # Ordered by size: the two codes name their parameters differently.
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms = np.sort([parameter.grad.norm().item() for parameter in learnt])
    expected = np.sort(oracle[f"{name}/grad_norms"])
    assert (norms > 1e-12).sum() == (expected > 1e-12).sum()
    np.testing.assert_allclose(norms[norms > 1e-12], expected[expected > 1e-12], rtol=1e-8)
