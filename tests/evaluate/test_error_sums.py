import math

import numpy as np
import pytest
import torch

from lamm.evaluate.metrics import ErrorSums
from lamm.graph.batch import GraphBatch
from lamm.graph.neighbors import GraphConfig
from lamm.structure import Structure

CONFIG = GraphConfig(cutoff=3.0)


def batch_of(structures: list[Structure], subsets: list[int]) -> GraphBatch:
    return GraphBatch.from_structures(
        structures,
        CONFIG,
        dtype=torch.float64,
        subset_index=torch.tensor(subsets, dtype=torch.int64),
    )


def atoms_in_a_row(num_atoms: int, **labels) -> Structure:
    positions = np.zeros((num_atoms, 3))
    positions[:, 0] = np.arange(num_atoms)
    return Structure(np.full(num_atoms, 6, np.uint8), positions, **labels)


@pytest.fixture
def three() -> GraphBatch:
    """Two atoms with both labels, one fixed; three atoms with energy only; one with forces only."""
    return batch_of(
        [
            atoms_in_a_row(
                2,
                energy=-10.0,
                forces=np.array([[1.0, 0.0, 0.0], [9.0, 9.0, 9.0]]),
                fixed=np.array([False, True]),
                stress=np.arange(6.0),
            ),
            atoms_in_a_row(3, energy=-30.0),
            atoms_in_a_row(1, forces=np.array([[0.0, 3.0, 4.0]])),
        ],
        [0, 0, 1],
    )


def test_three_structures_by_hand(three: GraphBatch) -> None:
    sums = ErrorSums(2)
    energy = torch.tensor([-9.0, -30.6, 123.0], dtype=torch.float64)
    stress = torch.arange(6.0).repeat(3, 1) + 0.5
    sums.update(energy, torch.zeros(6, 3), three, stress)
    result = sums.result(["first", "second"])
    # |1|/2 and |0.6|/3 eV/atom
    assert result["first"]["structures"] == 2
    assert result["first"]["energy_mae_mev_per_atom"] == pytest.approx(350.0)
    assert result["first"]["energy_rmse_mev_per_atom"] == pytest.approx(
        1000 * math.sqrt((0.25 + 0.04) / 2)
    )
    # one free atom: components 1, 0, 0
    assert result["first"]["forces_mae_mev_per_ang"] == pytest.approx(1000 / 3)
    assert result["first"]["forces_rmse_mev_per_ang"] == pytest.approx(1000 / math.sqrt(3))
    assert result["first"]["force_norm_mae_mev_per_ang"] == pytest.approx(1000.0)
    assert result["first"]["stress_mae_mev_per_ang3"] == pytest.approx(500.0)
    assert result["first"]["stress_rmse_mev_per_ang3"] == pytest.approx(500.0)
    # components 0, 3, 4; no energy and no stress label
    assert result["second"] == pytest.approx(
        {
            "structures": 1,
            "forces_mae_mev_per_ang": 7000 / 3,
            "forces_rmse_mev_per_ang": 5000 / math.sqrt(3),
            "force_norm_mae_mev_per_ang": 5000.0,
        }
    )


def test_masked_labels_of_any_value_change_nothing(three: GraphBatch) -> None:
    energy, forces = torch.zeros(3, dtype=torch.float64), torch.zeros(6, 3)
    plain, spoilt = ErrorSums(2), ErrorSums(2)
    plain.update(energy, forces, three, torch.zeros(3, 6))
    three.energy[2] = math.nan
    three.forces[1:5] = math.inf
    three.stress[1:] = math.nan
    spoilt.update(energy, forces, three, torch.zeros(3, 6))
    assert torch.equal(plain.tensor, spoilt.tensor)


def test_batches_and_ranks_add_up(three: GraphBatch) -> None:
    energy, forces = torch.randn(3, dtype=torch.float64), torch.randn(6, 3)
    whole, parts = ErrorSums(2), ErrorSums(2)
    whole.update(energy, forces, three)
    whole.update(energy, forces, three)
    for _ in range(2):
        rank = ErrorSums(2)
        rank.update(energy, forces, three)
        parts.tensor += rank.tensor
    torch.testing.assert_close(whole.tensor, parts.tensor, rtol=0, atol=1e-12)


def test_an_empty_batch_counts_nothing() -> None:
    sums = ErrorSums(2, denoising=[True, False])
    sums.update(torch.zeros(0), torch.zeros(0, 3), batch_of([], []), torch.zeros(0, 6))
    assert sums.result(["a", "b"]) == {"a": {"structures": 0}, "b": {"structures": 0}}


def noisy_batch(rng: np.random.Generator, shift: float) -> GraphBatch:
    labels = [rng.normal(size=(n, 3)) * 0.1 for n in (4, 7)]
    labels = [label - label.mean(axis=0) + shift for label in labels]
    return batch_of([atoms_in_a_row(len(label), forces=label) for label in labels], [0, 0])


def test_the_fair_denoising_error_ignores_a_translation(rng: np.random.Generator) -> None:
    batch = noisy_batch(rng, shift=0.0)
    shifted = noisy_batch(np.random.default_rng(20250608), shift=0.3)
    prediction = batch.forces + 0.01 * torch.randn(11, 3, dtype=torch.float64)
    results = []
    for labels, offset in ((batch, 0.0), (batch, 0.2), (shifted, 0.0)):
        sums = ErrorSums(1, denoising=np.array([True]))
        sums.update(torch.zeros(2), prediction + offset, labels)
        results.append(sums.result(["noise"])["noise"])
    fair = [result["denoising_mae_fair_ang"] for result in results]
    own = [result["denoising_mae_own_ang"] for result in results]
    assert fair == pytest.approx([fair[0]] * 3, abs=1e-12)
    assert own[0] < 0.02
    assert own[1] == pytest.approx(0.2, abs=0.02)
    assert own[2] == pytest.approx(0.3, abs=0.02)
    assert "forces_mae_mev_per_ang" not in results[0]


def test_the_denoising_error_is_a_mean_over_components() -> None:
    batch = batch_of([atoms_in_a_row(2, forces=np.array([[0.3, 0, 0], [-0.3, 0, 0]]))], [0])
    sums = ErrorSums(1, denoising=[True])
    sums.update(torch.zeros(1), torch.zeros(2, 3), batch)
    result = sums.result(["noise"])["noise"]
    assert result["denoising_mae_own_ang"] == pytest.approx(0.1)
    assert result["denoising_mae_fair_ang"] == pytest.approx(0.1)


def test_large_energies_keep_their_last_digits() -> None:
    batch = batch_of([atoms_in_a_row(1, energy=-41_234.5671)], [0])
    sums = ErrorSums(1)
    sums.update(torch.tensor([-41_234.5670], dtype=torch.float64), torch.zeros(1, 3), batch)
    result = sums.result(["a"])["a"]
    assert result["energy_mae_mev_per_atom"] == pytest.approx(0.1, rel=1e-5)
