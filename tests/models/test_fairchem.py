"""FAIR-Chem's PaiNN: its recorded numbers, its layouts, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lamm.errors import CheckpointError, ConfigError
from lamm.graph import GraphBatch
from lamm.models import from_fairchem
from originals import PAINN as TINY
from originals import carbon_monoxide, original_weights

STRUCTURES = ("ethanol", "cu_bulk", "cu111_CO")


@pytest.fixture(scope="module")
def oracle(shared):
    file = np.load(shared / "oracle" / "painn_tiny.npz")
    meta = json.loads(str(file["meta"]))
    weights = {key[2:]: torch.from_numpy(file[key]) for key in file if key.startswith("w/")}
    return file, meta, weights


def oracle_batch(file, name, kind=torch.float64):
    keys = ("numbers", "positions", "cell", "pbc", "edge_index", "cell_offsets")
    return GraphBatch.from_arrays(*(file[f"{name}/{key}"] for key in keys), dtype=kind)


def relative(value, expected):
    return np.abs(value.detach().double().numpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(
    ("kind", "bound"), [("f64", 1e-10), ("f32", 1e-5)], ids=["float64", "float32"]
)
def test_given_weights_and_edges_the_numbers_are_the_originals(oracle, name, kind, bound):
    file, meta, weights = oracle
    dtype = torch.float64 if kind == "f64" else torch.float32
    model = from_fairchem(meta["config"], weights).to(dtype)
    prediction = model(oracle_batch(file, name, dtype))
    ours = {
        "energy": prediction.energy[:, 0],
        "forces": prediction.forces[:, 0],
        "node_embedding": prediction.features,
        "node_vec": prediction.vectors,
    }
    for quantity, value in ours.items():
        assert relative(value, file[f"{name}/{kind}/{quantity}"]) < bound, quantity


@pytest.mark.parametrize("name", STRUCTURES)
def test_gradients_are_the_originals(oracle, name):
    file, meta, weights = oracle
    model = from_fairchem(meta["config"], weights).double()
    prediction = model(oracle_batch(file, name))
    forces = prediction.forces[:, 0]
    weighted = (forces * torch.tensor([1.0, 2.0, 3.0])).sum()
    (prediction.energy.sum() + weighted + 0.1 * forces.square().sum()).backward()
    # Ordered by size: the two codes name their parameters differently.
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms = np.sort([parameter.grad.norm().item() for parameter in learnt])
    pairs = zip(meta["grad_norm_keys"], file[f"{name}/grad_norms"], strict=True)
    expected = np.sort([norm for key, norm in pairs if "scale_factor" not in key])
    np.testing.assert_allclose(norms, expected, rtol=1e-10)


def test_edges_that_are_symmetric_already_give_the_same(oracle):
    file, meta, weights = oracle
    model = from_fairchem(meta["config"], weights).double()
    given = oracle_batch(file, "cu111_CO")
    paired = given.with_edges_for(model.graph_config)
    assert paired.num_edges == file["cu111_CO/sym_edge_index"].shape[1] != given.num_edges
    assert torch.equal(model(given).energy, model(paired).energy)


def test_every_layout_of_the_same_weights_is_the_same_model():
    weights = original_weights()
    expected = from_fairchem(TINY, weights)(carbon_monoxide())
    hydra = {
        "name": "hydra",
        "backbone": {"model": "painn_backbone", **TINY},
        "heads": {"energy": {"module": "energy_head"}, "forces": {"module": "force_head"}},
    }
    layouts = (
        (TINY, original_weights(prefix="module.")),
        (TINY, original_weights(prefix="module.module.")),
        (TINY, weights | {"radial_basis.rbf.offset": torch.linspace(0, 1, 6)}),
        ({"model": "painn", "use_pbc": True, "otf_graph": True, **TINY}, weights),
        (hydra, original_weights(hydra=True, prefix="module.")),
    )
    for config, state in layouts:
        result = from_fairchem(config, state)(carbon_monoxide())
        assert torch.equal(result.energy, expected.energy)
        assert torch.equal(result.forces, expected.forces)


def test_fitted_scales_are_used_and_a_scale_of_zero_is_none():
    weights = original_weights()
    weights["upd_out_scalar_scale_0.scale_factor"] = torch.tensor(1.25)
    weights["upd_out_scalar_scale_1.scale_factor"] = torch.tensor(0.0)
    assert from_fairchem(TINY, weights).config.encoder.layer_scales == (1.25, 1.0)
    unscaled = {name: value for name, value in weights.items() if "scale_factor" not in name}
    assert from_fairchem(TINY, unscaled).config.encoder.layer_scales is None


@pytest.mark.parametrize("change", [{"regress_forces": False}, {"direct_forces": False}])
def test_without_a_force_head_forces_are_the_energys_gradient(change):
    weights = original_weights(heads=("energy",))
    model = from_fairchem(TINY | change, weights).double()
    forces = model(carbon_monoxide()).forces[:, 0]
    step, energies = 1e-5, []
    for h in (step, -step):
        batch = carbon_monoxide()
        batch.positions[1, 2] += h
        energies.append(model(batch).energy.item())
    slope = (energies[0] - energies[1]) / (2 * step)
    assert forces[1, 2].item() == pytest.approx(-slope, rel=1e-6)
    assert forces.sum(dim=0).abs().max() < 1e-10


def test_envelope_exponent_and_element_rows_are_taken_over():
    config = TINY | {
        "envelope": {"name": "polynomial", "exponent": 7},
        "rbf": {"name": "gaussian"},
        "max_neighbors": 3,
    }
    encoder = from_fairchem(config, original_weights()).config.encoder
    assert (encoder.envelope_exponent, encoder.num_elements) == (7, 10)
    assert (encoder.max_neighbors, encoder.ties) == (3, "strict")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rbf": {"name": "spherical_bessel"}}, "only the name 'gaussian'"),
        ({"envelope": {"name": "exponential"}}, "only the name 'polynomial'"),
        ({"num_layer": 3}, "unknown key 'num_layer'. Did you mean 'num_layers'"),
        ({"name": "gemnet_oc"}, "FAIR-Chem model 'gemnet_oc' is not known"),
        ({"hidden_channels": -1}, "greater than"),
    ],
)
def test_a_configuration_that_isnt_ours_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_fairchem(TINY | change, original_weights())


def test_weights_that_dont_fit_are_named():
    weights = original_weights()
    less = {name: w for name, w in weights.items() if name != "update_layers.1.vec_proj.weight"}
    with pytest.raises(
        CheckpointError, match=r"missing weight 'update_layers\.1\.vec_proj\.weight"
    ):
        from_fairchem(TINY, less)
    with pytest.raises(CheckpointError, match=r"unknown weight 'lin\.weight'"):
        from_fairchem(TINY, weights | {"lin.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unknown weight 'upd_out_scalar_scale_1"):
        from_fairchem(TINY | {"num_layers": 1}, weights)
    unscaled = {name: value for name, value in weights.items() if "scale_factor" not in name}
    with pytest.raises(CheckpointError, match=r"unknown weight 'message_layers\.1\.rbf_proj"):
        from_fairchem(TINY | {"num_layers": 1}, unscaled)
    with pytest.raises(CheckpointError, match=r"unknown weight 'out_forces\.output_network\.0"):
        from_fairchem(TINY | {"direct_forces": False}, weights)
    with pytest.raises(CheckpointError, match=r"has shape \(10, 8\), expected \(12, 8\)"):
        from_fairchem(TINY | {"num_elements": 12}, weights)
    with pytest.raises(CheckpointError, match="no weights"):
        from_fairchem(TINY, {})
