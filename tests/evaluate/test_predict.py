import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from lamm.errors import ConfigError, DataError
from lamm.evaluate.breakdown import overall_errors
from lamm.evaluate.evaluation import evaluate_structures
from lamm.evaluate.predict import choose_column, in_batches, predict, structure_of, unknown_elements
from lamm.models.potential import Potential, build
from lamm.structure import Structure
from small import small_structure

ENCODER = {
    "name": "painn",
    "channels": 16,
    "num_layers": 2,
    "num_radial": 8,
    "cutoff": 4.0,
    "max_neighbors": 12,
}


def potential(forces: str = "direct", subsets: tuple[str, ...] = ("a", "b")) -> Potential:
    model = build({"encoder": ENCODER, "forces": forces}, subsets, seed=0).double()
    known = torch.zeros(119, dtype=torch.bool)
    known[[1, 6, 8]] = True
    model.set_normalisation(0, torch.arange(119.0), known, 2.0, 0.5)
    return model


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    rng = np.random.default_rng(0)
    return [small_structure(rng, str(k), periodic=k % 2 == 1) for k in range(5)]


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_batches_change_nothing(forces: str, structures: list[Structure]) -> None:
    model = potential(forces)
    together = list(predict(model, structures, "a"))
    alone = list(predict(model, structures, "a", batch_size=1))
    for one, other, structure in zip(together, alone, structures, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-10)
        np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=1e-10)
        assert one.forces.shape == (structure.num_atoms, 3)
        assert (one.stress is not None) == (forces == "gradient" and structure.pbc.all())


def test_the_head_that_is_named_is_the_one_that_answers(structures: list[Structure]) -> None:
    model = potential()
    first, second = (next(predict(model, structures, head)).energy for head in ("a", "b"))
    assert abs(first - second) > 1.0


def test_no_head_will_do_only_where_there_is_one() -> None:
    assert choose_column(potential(subsets=("only",)), None) == 0
    with pytest.raises(ConfigError, match="a, b"):
        choose_column(potential(), None)
    with pytest.raises(ConfigError, match="Did you mean 'only'"):
        choose_column(potential(subsets=("only",)), "onlyy")


def test_training_mode_comes_back(structures: list[Structure]) -> None:
    model = potential().train()
    list(predict(model, structures, "a"))
    assert model.training


def test_a_batch_is_full_at_a_number_of_atoms(structures: list[Structure]) -> None:
    sizes = [[one.num_atoms for one in part] for part in in_batches(structures, 10, 8)]
    assert sum(sizes, []) == [one.num_atoms for one in structures]  # noqa: RUF017
    assert all(len(part) == 1 or sum(part) <= 8 for part in sizes)
    assert list(in_batches([], 3)) == []


def test_unknown_elements_are_named() -> None:
    assert unknown_elements(potential(), 0, [1, 7, 8, 7]) == ["N"]


def test_labels_and_fixed_atoms_come_along_from_ase() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixAtoms([1]))
    stress = np.arange(6.0)
    atoms.calc = SinglePointCalculator(
        atoms, energy=-3.0, forces=np.ones((4, 3)), stress=stress.copy()
    )
    structure = structure_of(atoms)
    assert structure.energy == -3.0
    assert structure.fixed is not None
    assert structure.fixed.tolist() == [False, True, False, False]
    np.testing.assert_array_equal(structure.stress, stress)
    assert structure_of(molecule("H2O")).forces is None


def test_an_atom_without_an_element_and_no_atoms_are_refused() -> None:
    with pytest.raises(DataError, match="without an element"):
        structure_of(Atoms("X"))
    with pytest.raises(DataError, match="no atoms"):
        structure_of(Atoms())


def test_an_evaluation_agrees_with_its_rows(structures: list[Structure]) -> None:
    model = potential("gradient")
    result = evaluate_structures(model, structures, 0, batch_size=2)
    energies = [abs(row["energy_error_mev_per_atom"]) for row in result.rows]
    assert result.errors["energy_mae_mev_per_atom"] == pytest.approx(np.mean(energies))
    weights = [row["num_atoms"] for row in result.rows]
    forces = [row["forces_mae_mev_per_ang"] for row in result.rows]
    assert result.errors["forces_mae_mev_per_ang"] == pytest.approx(
        np.average(forces, weights=weights)
    )
    own = overall_errors(result.comparison)
    assert set(own) < set(result.errors)
    assert {key: result.errors[key] for key in own} == pytest.approx(own, rel=1e-6)
    by_size = {row["atoms_per_structure"]: row["structures"] for row in result.by_size}
    assert sum(by_size.values()) == len(structures)
    assert [panel.title for panel in result.panels] == ["Energy", "Forces"]
    error = result.panels[0].predictions - result.panels[0].labels
    assert 1000 * np.abs(error).mean() == pytest.approx(result.panels[0].mae)
    assert result.worst()[0]["forces_mae_mev_per_ang"] == max(forces)
    assert result.is_finite


def test_structures_without_labels_cannot_be_evaluated() -> None:
    bare = small_structure(np.random.default_rng(0), "bare", labels="")
    with pytest.raises(DataError, match="none of the 1 structures has a label"):
        evaluate_structures(potential(), [bare], 0)


def test_energies_alone_are_evaluated() -> None:
    rng = np.random.default_rng(0)
    structures = [small_structure(rng, str(k), labels="E") for k in range(3)]
    result = evaluate_structures(potential(), structures, 0)
    assert not any(key.startswith("force") for key in result.errors)
    assert [row["forces_mae_mev_per_ang"] for row in result.rows] == [None] * 3
    assert result.by_element == []
    assert result.worst()[0]["energy_error_mev_per_atom"] is not None
