"""Eq. (5), by hand and by what it promises."""

import math

import numpy as np
import pytest
import torch

from lamm.graph.batch import GraphBatch
from lamm.graph.neighbors import GraphConfig
from lamm.loss import LabelCounts, LossConfig, Normalised, normalise, universal_loss
from lamm.structure import Structure

GRAPH = GraphConfig(cutoff=3.0)


def three_structures() -> GraphBatch:
    """Energy and forces; energy only; forces only, one of its two atoms fixed."""
    structures = [
        Structure(np.array([1, 1], np.uint8), np.eye(3)[:2], energy=2.0, forces=np.zeros((2, 3))),
        Structure(np.array([8], np.uint8), np.zeros((1, 3)), energy=-1.0),
        Structure(
            np.array([6, 6], np.uint8),
            np.eye(3)[:2],
            forces=np.ones((2, 3)),
            fixed=np.array([True, False]),
        ),
    ]
    return GraphBatch.from_structures(
        structures, GRAPH, dtype=torch.float64, subset_index=torch.tensor([0, 1, 1])
    )


def labels(batch: GraphBatch) -> Normalised:
    return Normalised(batch.energy, batch.forces)


PREDICTED = Normalised(
    torch.tensor([2.5, 1.0, 7.0], dtype=torch.float64),
    torch.tensor(
        [[3.0, 4.0, 0.0], [0.0, 0.0, 1.0], [9.0, 9.0, 9.0], [5.0, 5.0, 5.0], [1.0, 1.0, 3.0]],
        dtype=torch.float64,
    ),
)


def test_three_structures_by_hand():
    batch = three_structures()
    loss = universal_loss(
        PREDICTED, labels(batch), batch, LabelCounts(2, 2), LossConfig(energy=2.0, forces=3.0)
    )
    energy = (0.5 + 2.0) / 2
    forces = ((5.0 + 1.0) / 2 + 2.0) / 2  # the fixed atom of the third structure is no label
    assert loss.energy.item() == pytest.approx(energy, abs=1e-14)
    assert loss.forces.item() == pytest.approx(forces, abs=1e-14)
    assert loss.total.item() == pytest.approx(2 * energy + 3 * forces, abs=1e-14)


def test_energies_per_atom_by_hand():
    batch = three_structures()
    config = LossConfig(energy=2.0, forces=0.0, energy_per="atom")
    loss = universal_loss(PREDICTED, labels(batch), batch, LabelCounts(2, 2), config)
    assert loss.total.item() == pytest.approx(2 * (0.5 / 2 + 2.0 / 1) / 2, abs=1e-14)


@pytest.mark.parametrize("value", [1e9, math.nan, math.inf])
def test_masked_labels_of_any_value_change_nothing(value: float):
    batch = three_structures()
    expected = universal_loss(PREDICTED, labels(batch), batch, LabelCounts(2, 2), LossConfig())
    batch.energy[2] = value
    batch.forces[2] = value  # the atom without a force label
    batch.forces[3] = value  # the fixed atom
    predicted = Normalised(*(each.clone().requires_grad_() for each in PREDICTED))
    loss = universal_loss(predicted, labels(batch), batch, LabelCounts(2, 2), LossConfig())
    assert loss.total.item() == expected.total.item()
    loss.total.backward()
    assert predicted.energy.grad is not None
    assert predicted.forces.grad is not None
    assert predicted.energy.grad[2] == 0
    assert (predicted.forces.grad[2:4] == 0).all()
    assert predicted.forces.grad.isfinite().all()


def test_a_structure_without_forces_leaves_the_force_loss_alone():
    batch = three_structures()
    only = torch.tensor([1])
    single = GraphBatch.from_structures(
        [Structure(np.array([8], np.uint8), np.zeros((1, 3)), energy=-1.0)],
        GRAPH,
        dtype=torch.float64,
        subset_index=only,
    )
    predicted = Normalised(PREDICTED.energy[1:2], PREDICTED.forces[2:3].clone().requires_grad_())
    loss = universal_loss(predicted, labels(single), single, LabelCounts(2, 2), LossConfig())
    assert loss.forces.item() == 0
    loss.total.backward()  # still connected, so that a rank without forces can run backward
    assert (predicted.forces.grad == 0).all()
    assert batch.num_structures == 3


def test_shares_of_two_ranks_add_up_to_the_loss_of_one():
    batch = three_structures()
    counts = LabelCounts(2, 2)
    whole = universal_loss(PREDICTED, labels(batch), batch, counts, LossConfig()).total
    parts = 0.0
    for structures, atoms, subset in (([0], slice(0, 2), [0]), ([1, 2], slice(2, 5), [1, 1])):
        full = three_structures()
        part = GraphBatch.from_structures(
            [
                Structure(
                    full.atomic_numbers[full.structure_index == b].numpy().astype(np.uint8),
                    full.positions[full.structure_index == b].numpy(),
                    energy=float(full.energy[b]) if full.has_energy[b] else None,
                    forces=full.forces[full.structure_index == b].numpy()
                    if full.has_forces[b]
                    else None,
                    fixed=~full.free[full.structure_index == b].numpy(),
                )
                for b in structures
            ],
            GRAPH,
            dtype=torch.float64,
            subset_index=torch.tensor(subset),
        )
        predicted = Normalised(PREDICTED.energy[structures], PREDICTED.forces[atoms])
        parts += universal_loss(predicted, labels(part), part, counts, LossConfig()).total.item()
    assert parts == pytest.approx(whole.item(), abs=1e-14)


def chain(*fixed: int) -> GraphBatch:
    """Four atoms at 0, 1, 3 and 3.25 Å on a line, a cutoff of 2.5 Å; then one atom alone."""
    structures = [
        Structure(
            np.full(4, 6, np.uint8),
            np.array([[x, 0, 0] for x in (0.0, 1.0, 3.0, 3.25)]),
            forces=np.zeros((4, 3)),
            fixed=np.isin(np.arange(4), fixed),
        ),
        Structure(np.array([1], np.uint8), np.zeros((1, 3)), forces=np.zeros((1, 3))),
    ]
    return GraphBatch.from_structures(structures, GraphConfig(cutoff=2.5), dtype=torch.float64)


CHAIN = Normalised(
    torch.zeros(2, dtype=torch.float64),
    torch.tensor([[0.0, 0, 0], [3, 4, 0], [3, 4, 2], [0, 4, 2], [7, 7, 7]], dtype=torch.float64),
)


def relative_term(predicted: Normalised, batch: GraphBatch, counts: LabelCounts) -> torch.Tensor:
    config = LossConfig(energy=0.0, forces=0.0, relative=2.0)
    return universal_loss(predicted, labels(batch), batch, counts, config).total / 2


def test_the_relative_term_by_hand():
    # |differences| of the edges 1 Å, 2 Å, 2.25 Å and 0.25 Å long, which counts as 0.5 Å
    found = relative_term(CHAIN, chain(), LabelCounts(0, 4))
    long = 1 / 2.25**2
    weighted = 5 + 2 / 4 + math.sqrt(13) * long + 3 * 4
    assert found.item() == pytest.approx(weighted / (1 + 1 / 4 + long + 4) / 4, abs=1e-14)


def test_edges_of_fixed_atoms_are_not_in_the_relative_term():
    batch = chain(3)
    batch.forces[3] = math.nan
    predicted = CHAIN._replace(forces=CHAIN.forces.clone().requires_grad_())
    found = relative_term(predicted, batch, LabelCounts(0, 1))
    assert found.item() == pytest.approx((5 + 2 / 4) / (1 + 1 / 4), abs=1e-14)
    found.backward()
    assert (predicted.forces.grad[3:] == 0).all()
    assert predicted.forces.grad[:3].abs().sum() > 0


def test_an_error_that_all_atoms_share_is_not_in_the_relative_term():
    batch = chain()
    shared = CHAIN._replace(forces=batch.forces + torch.tensor([1.0, -2.0, 3.0]).double())
    assert relative_term(shared, batch, LabelCounts(0, 2)).item() == 0


def test_atoms_do_not_differ_from_their_own_images():
    cell = np.diag([2.0, 9.0, 9.0])
    structure = Structure(
        np.array([6, 6], np.uint8),
        np.array([[0.0, 0, 0], [0, 1.5, 0]]),
        cell=cell,
        pbc=np.ones(3, bool),
        forces=np.zeros((2, 3)),
    )
    batch = GraphBatch.from_structures([structure], GRAPH, dtype=torch.float64)
    source, target = batch.edge_index
    assert (source == target).any()
    forces = torch.tensor([[0.0, 0, 0], [0, 0, 5.0]], dtype=torch.float64)
    predicted = Normalised(torch.zeros(1, dtype=torch.float64), forces)
    assert relative_term(predicted, batch, LabelCounts(0, 1)).item() == pytest.approx(5.0)


def test_atoms_without_edges_have_a_relative_term_of_zero_with_a_gradient():
    structure = Structure(np.array([1], np.uint8), np.zeros((1, 3)), forces=np.zeros((1, 3)))
    batch = GraphBatch.from_structures([structure], GRAPH, dtype=torch.float64)
    forces = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    predicted = Normalised(torch.zeros(1, dtype=torch.float64), forces)
    found = relative_term(predicted, batch, LabelCounts(0, 1))
    assert found.item() == 0
    found.backward()
    assert (forces.grad == 0).all()


def test_shares_of_the_relative_term_add_up():
    first = chain()
    whole = relative_term(CHAIN, first, LabelCounts(0, 2))
    atom = Structure(np.array([1], np.uint8), np.zeros((1, 3)), forces=np.zeros((1, 3)))
    parts = [
        (
            Normalised(CHAIN.energy[:1], CHAIN.forces[:4]),
            Structure(
                first.atomic_numbers[:4].numpy().astype(np.uint8),
                first.positions[:4].numpy(),
                forces=np.zeros((4, 3)),
            ),
        ),
        (Normalised(CHAIN.energy[1:], CHAIN.forces[4:]), atom),
    ]
    total = sum(
        relative_term(
            predicted,
            GraphBatch.from_structures([one], GraphConfig(cutoff=2.5), dtype=torch.float64),
            LabelCounts(0, 2),
        ).item()
        for predicted, one in parts
    )
    assert total == pytest.approx(whole.item(), abs=1e-14)


def test_normalising_removes_references_and_divides_by_the_subsets_scales():
    batch = three_structures()
    references = torch.zeros(2, 119, dtype=torch.float64)
    references[0, 1], references[1, 8], references[1, 6] = -13.0, -2000.0, -1000.0
    result = normalise(
        batch.energy,
        batch.forces,
        batch,
        references,
        torch.tensor([2.0, 4.0], dtype=torch.float64),
        torch.tensor([1.0, 0.5], dtype=torch.float64),
    )
    assert result.energy[:2].tolist() == [(2.0 + 26.0) / 2, (-1.0 + 2000.0) / 4]
    assert torch.equal(result.forces[3:], batch.forces[3:] / 0.5)


def test_a_large_total_energy_loses_nothing_by_normalising_in_float32():
    atoms = 200
    structure = Structure(
        np.full(atoms, 79, np.uint8), np.random.default_rng(0).normal(size=(atoms, 3)) * 9,
        energy=-1e5 * atoms + 0.125,
    )  # fmt: skip
    batch = GraphBatch.from_structures([structure], GRAPH)
    references = torch.zeros(1, 119, dtype=torch.float64)
    references[0, 79] = -1e5
    one = torch.ones(1, dtype=torch.float64)
    result = normalise(batch.energy, batch.forces, batch, references, one, one)
    assert result.energy.dtype == torch.float32
    assert result.energy.item() == pytest.approx(0.125, abs=1e-8)
