"""What every encoder promises, in float64 to 1e-10 on every awkward structure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoders import MODELS, predict, small_model
from torch.testing import assert_close

from awkward import AWKWARD, moved, random_rotation, reordered, turned
from lamm.graph import GraphBatch
from lamm.models import Potential

EXACT = {"rtol": 0, "atol": 1e-10}
every_structure = pytest.mark.parametrize("structure", AWKWARD, ids=lambda s: s.name)


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> Potential:
    return small_model(MODELS[request.param])


@every_structure
def test_predictions_are_finite(model, structure):
    for value in predict(model, structure):
        assert value is None or value.isfinite().all()


@every_structure
def test_a_moved_structure_is_the_same(model, structure):
    expected, result = predict(model, structure), predict(model, moved(structure, [3.1, -2.7, 0.9]))
    assert_close(result.energy, expected.energy, **EXACT)
    assert_close(result.forces, expected.forces, **EXACT)


@every_structure
@pytest.mark.parametrize("handed", [1, -1], ids=["rotation", "reflection"])
def test_forces_turn_with_the_structure(model, structure, handed):
    rotation = handed * random_rotation(5)
    matrix = torch.from_numpy(rotation)
    expected, result = predict(model, structure), predict(model, turned(structure, rotation))
    assert_close(result.energy, expected.energy, **EXACT)
    assert_close(result.features, expected.features, **EXACT)
    assert_close(result.forces, expected.forces @ matrix.T, **EXACT)
    assert_close(result.vectors, torch.einsum("xy,nyc->nxc", matrix, expected.vectors), **EXACT)


@every_structure
def test_stress_turns_with_the_structure(model, structure):
    rotation = random_rotation(6)
    expected = predict(model, structure).stress
    if expected is None:
        pytest.skip("direct forces have no stress")
    result = predict(model, turned(structure, rotation)).stress
    matrix = torch.from_numpy(rotation)
    assert_close(tensor(result), matrix @ tensor(expected) @ matrix.T, **EXACT)


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
def test_float32_is_near_float64(model, structure):
    expected = predict(model, structure)
    single = Potential.from_description(model.describe()).eval()
    single.load_state_dict(model.state_dict())
    result = predict(single, structure, torch.float32)
    assert result.energy.dtype == torch.float64
    assert result.forces.dtype == torch.float32
    assert_close(result.energy, expected.energy, rtol=0, atol=2e-4)
    assert_close(result.forces.double(), expected.forces, rtol=0, atol=2e-4)


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
    model.train()
    try:
        model.zero_grad()
        prediction = model(batch, subset_index=batch.subset_index, normalised=True)
        (prediction.energy.sum() + prediction.forces.square().sum()).backward()
    finally:
        model.eval()
    learnt = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    for name, parameter in learnt:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if len(structures) > 1:
            assert parameter.grad.abs().sum() > 0, name


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
