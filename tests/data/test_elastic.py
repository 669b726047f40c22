"""The elastic network: labels that are forces of an energy, and know nothing that can't be seen."""

from pathlib import Path

import numpy as np
import pytest

from lamm.data.denoising import DenoisingConfig, denoising_structure
from lamm.data.elastic import STIFFNESS, elastic_labels
from lamm.data.joint import DataConfig, JointDataset
from lamm.errors import ConfigError
from lamm.models.potential import ModelConfig, build
from lamm.structure import Structure
from lamm.train.preflight import check_run
from small import SMALL_MODELS, small_store

WATER = Structure(
    np.array([8, 1, 1], np.uint8),
    np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]),
)
SALT = Structure(  # a cell shorter than the springs: atoms are joined to their own images, too
    np.array([11, 17], np.uint8),
    np.array([[0.0, 0.0, 0.0], [2.8, 0.1, 0.0]]),
    cell=np.array([[0.0, 2.8, 2.8], [2.8, 0.0, 2.8], [2.8, 2.8, 0.0]]),
    pbc=np.array([True] * 3),
)


@pytest.mark.parametrize("structure", [WATER, SALT], ids=["molecule", "crystal"])
def test_forces_are_minus_the_energys_gradient(structure: Structure) -> None:
    rng = np.random.default_rng(0)
    displacement = rng.normal(0, 0.1, structure.positions.shape)
    _, forces = elastic_labels(structure, displacement)
    step = 1e-5
    for index in np.ndindex(displacement.shape):
        energies = []
        for sign in (1, -1):
            moved = displacement.copy()
            moved[index] += sign * step
            energies.append(elastic_labels(structure, moved)[0])
        assert forces[index] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-6)


def test_a_bond_by_hand() -> None:
    pair = Structure(np.array([6, 6], np.uint8), np.array([[0.0, 0, 0], [1.52, 0, 0]]))
    energy, forces = elastic_labels(pair, np.array([[0.0, 0, 0], [0.1, 0, 0]]))
    assert energy == pytest.approx(0.5 * STIFFNESS * 0.1**2)  # 1.52 Å is twice carbon's radius
    assert forces[:, 0] == pytest.approx([3.0, -3.0])


def test_what_moves_or_turns_as_a_whole_has_no_labels() -> None:
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    displacement = WATER.positions @ turn.T + np.array([1.0, -2.0, 0.5]) - WATER.positions
    energy, forces = elastic_labels(WATER, displacement)
    assert energy == pytest.approx(0, abs=1e-20)
    assert np.allclose(forces, 0, atol=1e-12)


def test_forces_and_torques_sum_to_zero() -> None:
    displacement = np.random.default_rng(1).normal(0, 0.2, (3, 3))
    _, forces = elastic_labels(WATER, displacement)
    assert np.abs(forces).max() > 1
    assert np.allclose(forces.sum(axis=0), 0, atol=1e-12)
    torque = np.cross(WATER.positions + displacement, forces).sum(axis=0)
    assert np.allclose(torque, 0, atol=1e-12)


def test_the_noise_is_that_of_displacements() -> None:
    plain = denoising_structure(WATER, 7, DenoisingConfig(std=0.1), 0, 3)
    elastic = denoising_structure(WATER, 7, DenoisingConfig(std=0.1, labels="elastic"), 0, 3)
    assert np.array_equal(plain.positions, elastic.positions)
    assert plain.energy is None
    assert elastic.energy is not None
    assert elastic.forces is not None
    assert not np.allclose(plain.forces, elastic.forces)


def test_a_subset_has_energies_and_forces_with_scales_of_their_own(tmp_path: Path) -> None:
    store = small_store(tmp_path / "plain", labels="")
    config = {"subsets": {"plain": {"store": str(store), "denoising": {"labels": "elastic"}}}}
    joint = JointDataset(DataConfig.model_validate(config), seed=0)
    subset = joint.subsets[0]
    assert not joint.is_denoising.any()
    assert joint.has_energy[np.arange(40)].all()
    normalisation = subset.normalisation()
    forces = np.concatenate([subset.structure(row, 5, 1).forces for row in range(40)])
    length = float(np.linalg.norm(forces, axis=1).mean())
    assert normalisation.force_scale == pytest.approx(np.sqrt(np.pi / 8) * length, rel=0.2)
    assert normalisation.energy_scale > 0
    assert normalisation.has_forces


def test_the_energy_may_stand_beside_the_displacement(tmp_path: Path) -> None:
    both = DenoisingConfig(std=0.2, labels="displacement_and_energy")
    one = denoising_structure(WATER, 3, both, 0, 0)
    plain = denoising_structure(WATER, 3, DenoisingConfig(std=0.2), 0, 0)
    assert np.array_equal(one.forces, plain.forces)
    assert one.energy == elastic_labels(WATER, -one.forces)[0]
    store = str(small_store(tmp_path / "store", labels=""))
    labels = {"std": 0.2, "labels": "displacement_and_energy"}
    config = {"subsets": {"a": {"store": store, "denoising": labels}}, "val_fraction": 0.3}
    joint = JointDataset(DataConfig.model_validate(config), seed=0)
    assert joint.is_denoising.tolist() == [True]
    assert joint.has_energy[joint.ids("train")].all()
    scales = joint.subsets[0].normalisation()
    assert scales.force_scale == 0.2
    assert scales.energy_scale > 0
    assert not scales.reference_energies.any()
    direct, gradient = (
        build(ModelConfig.model_validate(SMALL_MODELS["painn"] | {"forces": forces}), joint.names)
        for forces in ("direct", "gradient")
    )
    check_run(direct, joint)
    with pytest.raises(ConfigError, match="which displacements aren't"):
        check_run(gradient, joint)
