"""Reference energies agree with a dense least-squares solution; scales never divide by zero."""

from collections.abc import Callable

import numpy as np
import pytest

from lamm.data.references import (
    NUM_ELEMENTS,
    ForceScale,
    ReferenceAccumulator,
    ReferenceEnergies,
    composition_counts,
    fit_normalisation,
)
from lamm.data.store import Store
from lamm.structure import Structure

ALL_ELECTRON = {1: -13.6, 6: -1029.5, 8: -2041.3, 26: -34_600.0, 79: -518_000.0}
"""About what an all-electron calculation gives an atom, in eV."""


def molecules(counts: list[dict[int, int]]) -> np.ndarray:
    table = np.zeros((len(counts), NUM_ELEMENTS))
    for row, elements in enumerate(counts):
        for number, count in elements.items():
            table[row, number] = count
    return table


def fitted(compositions: np.ndarray, energies: np.ndarray, chunk: int) -> ReferenceEnergies:
    accumulator = ReferenceAccumulator()
    for start in range(0, len(energies), chunk):
        accumulator.add(compositions[start : start + chunk], energies[start : start + chunk])
    return accumulator.solve()


def dense(compositions: np.ndarray, energies: np.ndarray) -> tuple[np.ndarray, float]:
    """The same by LAPACK on all rows at once, elements without an atom left out."""
    used = compositions.any(axis=0)
    solution = np.zeros(NUM_ELEMENTS)
    solution[used] = np.linalg.lstsq(compositions[:, used], energies, rcond=1e-11)[0]
    return solution, float(np.sqrt(np.mean((energies - compositions @ solution) ** 2)))


@pytest.mark.parametrize("chunk", [1, 13, 10_000])
def test_all_electron_energies_are_fitted_to_the_micro_ev(
    rng: np.random.Generator, chunk: int
) -> None:
    elements = list(ALL_ELECTRON)
    compositions = np.zeros((5000, NUM_ELEMENTS))
    compositions[:, elements] = rng.integers(0, 40, (5000, len(elements)))
    energies = compositions[:, elements] @ list(ALL_ELECTRON.values()) + rng.normal(0, 0.5, 5000)
    result = fitted(compositions, energies, chunk)
    np.testing.assert_array_equal(result.energies, fitted(compositions, energies, 7).energies)
    expected, rms = dense(compositions, energies)
    assert abs(energies).max() > 2e7
    np.testing.assert_allclose(result.energies, expected, rtol=0, atol=1e-6)
    assert result.rms == pytest.approx(rms, abs=1e-6)
    assert np.flatnonzero(result.known).tolist() == elements
    assert result.energies[7] == 0.0  # never seen


@pytest.mark.parametrize("chunk", [2, 100])
def test_elements_that_only_come_together_get_the_solution_of_least_norm(chunk: int) -> None:
    compositions = molecules([{6: n, 1: 4 * n} for n in (1, 2, 3, 5, 8)])
    energies = compositions[:, 6] * (ALL_ELECTRON[6] + 4 * ALL_ELECTRON[1])
    energies += np.array([0.1, -0.2, 0.3, 0.0, -0.1])
    result = fitted(compositions, energies, chunk)
    expected, rms = dense(compositions, energies)
    np.testing.assert_allclose(result.energies, expected, rtol=0, atol=1e-7)
    assert result.energies[1] == pytest.approx(4 * result.energies[6], abs=1e-7)
    assert result.rms == pytest.approx(rms, abs=1e-7)


def test_a_rare_element_is_not_taken_for_rounding(rng: np.random.Generator) -> None:
    compositions = np.zeros((20_000, NUM_ELEMENTS))
    compositions[:, [1, 8]] = rng.integers(1, 100, (20_000, 2))
    compositions[777, 79] = 1
    energies = compositions[:, [1, 8, 79]] @ [-13.6, -2041.3, -518_000.0]
    assert fitted(compositions, energies, 4096).energies[79] == pytest.approx(-518_000, abs=1e-3)


def test_one_structure_and_none() -> None:
    one = fitted(molecules([{8: 1, 1: 2}]), np.array([-2080.0]), 1)
    assert one.energies[8] + 2 * one.energies[1] == pytest.approx(-2080.0)
    assert one.rms == pytest.approx(0.0, abs=1e-9)
    none = ReferenceAccumulator().solve()
    assert not none.energies.any()
    assert not none.known.any()
    assert none.rms == 0.0


def test_compositions_are_counted_by_atomic_number() -> None:
    water = Structure(np.array([8, 1, 1], dtype=np.uint8), np.zeros((3, 3)))
    gold = Structure(np.array([79], dtype=np.uint8), np.zeros((1, 3)))
    counts = composition_counts([water, gold])
    assert counts.shape == (2, 119)
    assert (counts[0, 1], counts[0, 8], counts[1, 79]) == (2, 1, 1)
    assert counts.sum() == 4
    assert composition_counts([]).shape == (0, 119)


def test_only_free_atoms_count_for_the_force_scale() -> None:
    scale = ForceScale()
    assert scale.solve() == 0.0
    scale.add(np.array([[3.0, 0, 0], [100, 100, 100]]), np.array([True, False]))
    scale.add(np.array([[0.0, 4, 0]], dtype=np.float32))
    assert scale.solve() == pytest.approx(np.sqrt(np.pi / 8) * (3 + 4) / 2)


def test_the_force_scale_is_the_rms_of_normal_forces_and_hardly_moved_by_a_few_extreme_ones() -> (
    None
):
    forces = np.random.default_rng(0).normal(0, 0.3, (20_000, 3))
    scale = ForceScale()
    scale.add(forces)
    assert scale.solve() == pytest.approx(0.3, rel=0.02)
    scale.add(np.full((20, 3), 100.0))
    assert np.sqrt(np.square(forces).sum() + 60 * 100.0**2) / np.sqrt(3 * 20_020) > 3
    assert scale.solve() < 0.5


class TestScalesAreOneWhere:
    """A store is fitted whose labels give nothing to divide by."""

    @staticmethod
    def fit(make_store: Callable[..., Store], structures: list[Structure]) -> tuple[float, float]:
        store = make_store(structures)
        result = fit_normalisation(store, np.arange(len(store)))
        assert np.isfinite(result.reference_energies).all()
        of_card = store.normalisation()
        assert np.isfinite([of_card.energy_scale, of_card.force_scale]).all()
        return result.energy_scale, result.force_scale

    def test_there_is_no_label(self, make_store: Callable[..., Store]) -> None:
        carbon = Structure(np.array([6], dtype=np.uint8), np.zeros((1, 3)))
        assert self.fit(make_store, [carbon]) == (1.0, 1.0)

    def test_forces_are_zero_and_energies_are_explained(
        self, make_store: Callable[..., Store]
    ) -> None:
        atoms = [
            Structure(
                np.array([number] * 3, dtype=np.uint8),
                np.zeros((3, 3)),
                energy=3 * energy + 1e-9,
                forces=np.zeros((3, 3)),
            )
            for number, energy in ALL_ELECTRON.items()
        ]
        assert self.fit(make_store, atoms) == (1.0, 1.0)

    def test_only_fixed_atoms_have_forces(self, make_store: Callable[..., Store]) -> None:
        held = Structure(
            np.array([6, 6], dtype=np.uint8),
            np.zeros((2, 3)),
            forces=np.ones((2, 3)),
            fixed=np.array([True, True]),
        )
        assert self.fit(make_store, [held]) == (1.0, 1.0)

    def test_no_row_is_chosen(self, make_store: Callable[..., Store]) -> None:
        store = make_store([Structure(np.array([6], dtype=np.uint8), np.zeros((1, 3)), energy=1.0)])
        result = fit_normalisation(store, np.arange(0))
        assert (result.energy_scale, result.force_scale) == (1.0, 1.0)
        assert not result.known.any()
