"""What every encoder promises, in float64 to 1e-10 on every awkward structure.

Only rotations of an encoder that works on a grid over the sphere hold to less (`GRID_ERROR`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoders import EQUIFORMERS, GRID_ERROR, MODELS, predict, small_model
from torch.testing import assert_close

from awkward import AWKWARD, moved, random_rotation, reordered, turned
from lamm.graph import GraphBatch
from lamm.models import Potential
from lamm.models.so2 import SO2Convolution

EXACT = {"rtol": 0, "atol": 1e-10}
every_structure = pytest.mark.parametrize("structure", AWKWARD, ids=lambda s: s.name)


@pytest.fixture(scope="module", params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> Potential:
    return small_model(MODELS[name])


@every_structure
def test_predictions_are_finite(model, structure):
    for value in predict(model, structure):
        assert value is None or value.isfinite().all()


@every_structure
def test_a_moved_structure_is_the_same(model, structure):
    expected, result = predict(model, structure), predict(model, moved(structure, [3.1, -2.7, 0.9]))
    assert_close(result.energy, expected.energy, **EXACT)
    assert_close(result.forces, expected.forces, **EXACT)


def assert_turned(model, structure, matrix, tolerance):
    """All predictions of a structure, and those of the same structure turned by a matrix."""
    rotation = torch.from_numpy(matrix)
    expected, result = predict(model, structure), predict(model, turned(structure, matrix))
    vectors = torch.einsum("xy,nyc->nxc", rotation, expected.vectors)
    for one, other in (
        (result.energy, expected.energy),
        (result.features, expected.features),
        (result.forces, expected.forces @ rotation.T),
        (result.vectors, vectors),
    ):
        assert_close(one, other, rtol=0, atol=tolerance)


@every_structure
def test_predictions_turn_with_the_structure(model, name, structure):
    assert_turned(model, structure, random_rotation(5), GRID_ERROR.get(name, 1e-10))


@every_structure
def test_predictions_turn_over_with_the_reflected_structure(model, name, structure):
    if name in EQUIFORMERS:
        pytest.skip("the imaginary weights of an SO(2) convolution tell left from right")
    assert_turned(model, structure, -random_rotation(5), 1e-10)


@pytest.mark.parametrize("name", EQUIFORMERS)
def test_it_is_the_imaginary_weights_that_tell_left_from_right(name):
    """With them a reflection changes forces; without them it is a symmetry like any other."""
    model, chiral = small_model(MODELS[name]), AWKWARD[3]
    matrix = -random_rotation(5)
    expected, result = (predict(model, one) for one in (chiral, turned(chiral, matrix)))
    difference = result.forces - expected.forces @ torch.from_numpy(matrix).T
    assert difference.abs().max() > 1e-5
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SO2Convolution):
                for layer in module.nonzero:
                    layer.weight.chunk(2)[1].zero_()
    assert_turned(model, chiral, matrix, GRID_ERROR.get(name, 1e-10))


@every_structure
def test_stress_turns_with_the_structure(model, name, structure):
    rotation = random_rotation(6)
    expected = predict(model, structure).stress
    if expected is None:
        pytest.skip("direct forces have no stress")
    result = predict(model, turned(structure, rotation)).stress
    matrix, tolerance = torch.from_numpy(rotation), GRID_ERROR.get(name, 1e-10)
    assert_close(tensor(result), matrix @ tensor(expected) @ matrix.T, rtol=0, atol=tolerance)


def tensor(voigt):
    """(B, D, 6) to (B, D, 3, 3)."""
    return voigt[..., (0, 5, 4, 5, 1, 3, 4, 3, 2)].unflatten(-1, (3, 3))


@every_structure
def test_the_order_of_atoms_means_nothing(model, structure, rng):
    order = rng.permutation(structure.num_atoms)
    expected, result = predict(model, structure), predict(model, reordered(structure, order))
    assert_close(result.energy, expected.energy, **EXACT)
    assert_close(result.forces, expected.forces[order], **EXACT)


@every_structure
def test_another_periodic_image_changes_nothing(model, structure, rng):
    images = rng.integers(-3, 4, (structure.num_atoms, 3)) * structure.pbc
    expected = predict(model, structure)
    result = predict(model, moved(structure, images @ structure.cell))
    assert_close(result.energy, expected.energy, **EXACT)
    assert_close(result.forces, expected.forces, **EXACT)


@every_structure
def test_another_cell_of_the_same_lattice_changes_nothing(model, structure):
    if not structure.pbc[:2].all():
        pytest.skip("not periodic")
    sheared = structure.cell.copy()
    sheared[1] += sheared[0]
    expected, result = predict(model, structure), predict(model, replace(structure, cell=sheared))
    assert_close(result.energy, expected.energy, **EXACT)
    assert_close(result.forces, expected.forces, **EXACT)


@every_structure
def test_a_doubled_cell_has_twice_the_energy(model, structure):
    if not structure.pbc[0]:
        pytest.skip("not periodic")
    cell = structure.cell.copy()
    cell[0] *= 2
    double = replace(
        structure,
        atomic_numbers=np.tile(structure.atomic_numbers, 2),
        positions=np.concatenate((structure.positions, structure.positions + structure.cell[0])),
        cell=cell,
    )
    expected, result = predict(model, structure), predict(model, double)
    assert_close(result.energy, 2 * expected.energy, **EXACT)
    assert_close(result.forces, expected.forces.repeat(2, 1, 1), **EXACT)


def test_a_batch_is_its_structures_one_by_one(model):
    together = predict(model, AWKWARD)
    single = [predict(model, structure) for structure in AWKWARD]
    assert_close(together.energy, torch.cat([one.energy for one in single]), **EXACT)
    assert_close(together.forces, torch.cat([one.forces for one in single]), **EXACT)
    assert_close(together.features, torch.cat([one.features for one in single]), **EXACT)
    if together.stress is not None:
        assert_close(together.stress, torch.cat([one.stress for one in single]), **EXACT)


def test_far_apart_parts_add_up(model):
    parts = [one for one in AWKWARD if not one.pbc.any()]
    joined = replace(
        parts[0],
        atomic_numbers=np.concatenate([one.atomic_numbers for one in parts]),
        positions=np.concatenate(
            [one.positions + np.array([50 * k, 0, 0]) for k, one in enumerate(parts)]
        ),
    )
    whole, separate = predict(model, joined), predict(model, parts)
    assert_close(whole.energy[0], separate.energy.sum(dim=0), **EXACT)
    assert_close(whole.forces, separate.forces, **EXACT)


@every_structure
def test_float32_is_near_float64(model, name, structure):
    # In a crystal of high symmetry all l > 0 up to 2 vanish, and a norm turns rounding into noise
    # of up to 1e-5^(-1/2) times its size; measured 4e-4.
    tolerance = 1e-3 if name in GRID_ERROR else 2e-4
    expected = predict(model, structure)
    single = Potential.from_description(model.describe()).eval()
    single.load_state_dict(model.state_dict())
    result = predict(single, structure, torch.float32)
    assert result.energy.dtype == torch.float64
    assert result.forces.dtype == torch.float32
    assert_close(result.energy, expected.energy, rtol=0, atol=tolerance)
    assert_close(result.forces.double(), expected.forces, rtol=0, atol=tolerance)


@every_structure
def test_a_copy_from_the_state_dict_is_the_original(model, structure):
    copy = Potential.from_description(model.describe()).double().eval()
    copy.load_state_dict(model.state_dict())
    expected, result = predict(model, structure), predict(copy, structure)
    assert torch.equal(result.energy, expected.energy)
    assert torch.equal(result.forces, expected.forces)


@pytest.mark.parametrize("structures", [AWKWARD, AWKWARD[:1], []], ids=["all", "lone", "none"])
def test_every_parameter_gets_a_finite_gradient(model, structures):
    batch = GraphBatch.from_structures(structures, model.graph_config, dtype=torch.float64)
    torch.manual_seed(0)  # what dropout leaves out
    model.train()
    try:
        model.zero_grad()
        prediction = model(batch, subset_index=batch.subset_index, normalised=True)
        (prediction.energy.sum() + prediction.forces.square().sum()).backward()
    finally:
        model.eval()
    heads = [head for head in (model.energy_head, model.force_head) if head is not None]
    idle = {id(one) for head in heads for one in head.idle_parameters()}
    learnt = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    for where, parameter in learnt:
        assert parameter.grad is not None, where
        assert parameter.grad.isfinite().all(), where
        if id(parameter) in idle:
            assert (parameter.grad == 0).all(), where
        elif len(structures) > 1:
            assert parameter.grad.abs().sum() > 0, where


@every_structure
def test_one_output_is_the_column_of_all_outputs(model, structure):
    batch = GraphBatch.from_structures([structure, structure], model.graph_config)
    batch = batch.to(dtype=torch.float64)
    column = torch.tensor([1, 0])
    every, one = model(batch), model(batch, subset_index=column)
    n = structure.num_atoms
    assert_close(one.energy[:, 0], every.energy[(0, 1), (1, 0)], **EXACT)
    assert_close(one.forces[:n, 0], every.forces[:n, 1], **EXACT)
    assert_close(one.forces[n:, 0], every.forces[n:, 0], **EXACT)
    if one.stress is not None:
        assert_close(one.stress[:, 0], every.stress[(0, 1), (1, 0)], **EXACT)
