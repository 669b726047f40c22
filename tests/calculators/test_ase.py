import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.optimize import FIRE

from lamm.calculators.ase import LaMMCalculator
from lamm.errors import CheckpointError, ConfigError, DataError
from lamm.evaluate.predict import predict, structure_of
from lamm.models.potential import Potential, build
from lamm.train.checkpoint import save_potential

ENCODER = {"name": "painn", "channels": 16, "num_layers": 2, "num_radial": 8, "cutoff": 4.0}


def potential(forces: str, subsets: tuple[str, ...] = ("a",)) -> Potential:
    model = build({"encoder": ENCODER, "forces": forces}, subsets, seed=1)
    known = torch.zeros(119, dtype=torch.bool)
    known[[1, 8, 29]] = True
    model.set_normalisation(0, torch.zeros(119), known, 1.0, 1.0)
    return model


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=3)
    return atoms


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_the_calculator_says_what_the_model_predicts(forces: str) -> None:
    model = potential(forces)
    atoms = copper()
    atoms.calc = LaMMCalculator(model)
    (expected,) = predict(model, [structure_of(copper())])
    assert atoms.get_potential_energy() == expected.energy
    np.testing.assert_array_equal(atoms.get_forces(), expected.forces)


def test_gradient_forces_and_stress_are_finite_differences_of_the_energy() -> None:
    atoms = copper()
    atoms.calc = LaMMCalculator(potential("gradient"), dtype="float64")
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    step = 1e-4

    def energy(moved: Atoms) -> float:
        moved.calc = atoms.calc
        return moved.get_potential_energy()

    for axis in range(3):
        plus, minus = atoms.copy(), atoms.copy()
        plus.positions[1, axis] += step
        minus.positions[1, axis] -= step
        slope = (energy(plus) - energy(minus)) / (2 * step)
        assert forces[1, axis] == pytest.approx(-slope, abs=1e-6)
    strain = np.zeros((3, 3))
    strain[0, 1] = strain[1, 0] = step / 2
    energies = []
    for sign in (1, -1):
        bent = atoms.copy()
        bent.set_cell(atoms.cell.array @ (np.eye(3) + sign * strain), scale_atoms=True)
        energies.append(energy(bent))
    slope = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
    assert stress[0, 1] == pytest.approx(slope, abs=1e-6)


def test_moved_atoms_are_computed_anew() -> None:
    atoms = molecule("H2O")
    atoms.calc = LaMMCalculator(potential("direct"), dtype="float64")
    before = atoms.get_potential_energy()
    atoms.positions[0, 2] += 0.1
    assert abs(atoms.get_potential_energy() - before) > 1e-9
    atoms.append("H")
    assert atoms.get_forces().shape == (4, 3)


def test_no_stress_says_why() -> None:
    atoms = copper()
    atoms.calc = LaMMCalculator(potential("direct"))
    with pytest.raises(PropertyNotImplementedError, match="forces: gradient"):
        atoms.get_stress()
    water = molecule("H2O")
    water.calc = LaMMCalculator(potential("gradient"))
    with pytest.raises(PropertyNotImplementedError):
        water.get_stress()


def test_relaxation_goes_downhill() -> None:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    atoms.calc = LaMMCalculator(potential("gradient"), dtype="float64")
    before = atoms.get_potential_energy()
    FIRE(atoms, logfile=None).run(fmax=0.05, steps=20)
    assert atoms.get_potential_energy() <= before


def test_elements_that_the_head_does_not_know_are_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = LaMMCalculator(potential("direct"))
    with caplog.at_level(logging.WARNING):
        atoms.get_potential_energy()
        atoms.rattle(0.1)
        atoms.get_potential_energy()
    assert len(caplog.records) == 1
    assert "without C" in caplog.text


def test_heads_are_chosen_by_name() -> None:
    model = potential("direct", ("first", "second"))
    with pytest.raises(ConfigError, match="first, second"):
        LaMMCalculator(model)
    with pytest.raises(ConfigError, match="Did you mean 'second'"):
        LaMMCalculator(model, "secnod")
    assert LaMMCalculator(model, "second").head == "second"


def test_the_given_model_stays_as_it_is() -> None:
    model = potential("direct")
    calculator = LaMMCalculator(model, dtype="float64")
    assert next(model.parameters()).dtype == torch.float32
    assert next(calculator.model.parameters()).dtype == torch.float64
    assert LaMMCalculator(model).model is model


def test_what_cannot_be_computed_is_refused() -> None:
    calculator = LaMMCalculator(potential("direct"))
    with pytest.raises(DataError, match="no atoms"):
        calculator.get_potential_energy(Atoms())
    with pytest.raises(DataError, match="not finite"):
        calculator.get_potential_energy(Atoms("H", positions=[[np.nan, 0, 0]]))
    with pytest.raises(ConfigError, match="float32"):
        LaMMCalculator(potential("direct"), dtype="float3")  # type: ignore[arg-type]


def test_a_checkpoint_will_do(tmp_path: Path) -> None:
    model = potential("direct")
    save_potential(model, tmp_path / "model.safetensors")
    loaded = LaMMCalculator(tmp_path / "model.safetensors")
    given = LaMMCalculator(model)
    assert loaded.get_potential_energy(copper()) == given.get_potential_energy(copper())
    with pytest.raises(CheckpointError):
        LaMMCalculator(tmp_path / "nothing")
