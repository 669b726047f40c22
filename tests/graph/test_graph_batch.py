"""`GraphBatch`: what from_structures and from_arrays put together."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from awkward import AWKWARD, CUTOFF, MAX_NEIGHBORS
from lamm.errors import DataError
from lamm.graph import GraphBatch, GraphConfig, edge_vectors, neighbor_edges

CONFIG = GraphConfig(cutoff=CUTOFF, max_neighbors=MAX_NEIGHBORS)


def test_a_batch_is_its_structures_in_a_row():
    batch = GraphBatch.from_structures(AWKWARD, CONFIG, dtype=torch.float64)
    start = edge = 0
    for b, one in enumerate(AWKWARD):
        stop = start + one.num_atoms
        index, offsets = neighbor_edges(one.positions, one.cell, one.pbc, CONFIG)
        end = edge + index.shape[1]
        np.testing.assert_array_equal(batch.positions[start:stop], one.positions)
        np.testing.assert_array_equal(batch.atomic_numbers[start:stop], one.atomic_numbers)
        np.testing.assert_array_equal(batch.edge_index[:, edge:end], index + start)
        np.testing.assert_array_equal(batch.cell_offsets[edge:end], offsets)
        assert (batch.structure_index[start:stop] == b).all()
        start, edge = stop, end
    assert (batch.num_edges, len(batch.positions)) == (edge, start)
    assert batch.num_structures == len(AWKWARD)


def test_edge_vectors_run_from_the_target_to_the_sources_image():
    batch = GraphBatch.from_structures(AWKWARD, CONFIG, dtype=torch.float64)
    vectors = edge_vectors(batch).numpy()
    cell = batch.cell[batch.structure_index].numpy()
    positions, offsets = batch.positions.numpy(), batch.cell_offsets.numpy()
    for e in range(0, batch.num_edges, 7):
        j, i = batch.edge_index[:, e].tolist()
        expected = positions[j] + offsets[e] @ cell[i] - positions[i]
        np.testing.assert_allclose(vectors[e], expected, atol=1e-12)
    assert np.linalg.norm(vectors, axis=1).max() <= CUTOFF


def test_absent_labels_are_masks_and_fixed_atoms_are_not_free():
    one = AWKWARD[1]
    both = replace(
        one, energy=-40000.123456789, forces=np.ones((2, 3)), fixed=np.array([True, False])
    )
    held = replace(both, fixed=np.array([True, True]), energy=None, stress=np.arange(6.0))
    batch = GraphBatch.from_structures([one, both, held], CONFIG)
    assert batch.has_energy.tolist() == [False, True, False]
    assert batch.has_forces.tolist() == [False, True, False]
    assert batch.has_stress.tolist() == [False, False, True]
    assert batch.free.tolist() == [True, True, False, True, False, False]
    assert batch.energy.dtype == torch.float64
    assert batch.energy[1].item() == -40000.123456789
    assert batch.stress[2].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.subset_index.tolist() == [0, 0, 0]
    assert batch.ids.tolist() == [-1, -1, -1]


def test_a_batch_of_nothing_has_every_array():
    batch = GraphBatch.from_structures([], CONFIG)
    assert (batch.num_structures, batch.num_edges) == (0, 0)
    assert batch.positions.shape == (0, 3)
    assert batch.cell.shape == (0, 3, 3)
    assert batch.stress.shape == (0, 6)
    assert edge_vectors(batch).shape == (0, 3)


def test_another_precision_leaves_energies_and_indices_alone():
    batch = GraphBatch.from_structures(AWKWARD, CONFIG).to(dtype=torch.float64)
    assert batch.positions.dtype == batch.cell_offsets.dtype == torch.float64
    half = batch.to(dtype=torch.float32)
    assert half.energy.dtype == torch.float64
    assert half.forces.dtype == torch.float32
    assert half.edge_index.dtype == half.atomic_numbers.dtype == torch.int64


def test_given_edges_are_taken_as_they_are_but_sorted_by_target(rng):
    one = AWKWARD[4]
    index, offsets = neighbor_edges(one.positions, one.cell, one.pbc, CONFIG)
    order = rng.permutation(index.shape[1])
    batch = GraphBatch.from_arrays(
        torch.from_numpy(one.atomic_numbers),
        one.positions.tolist(),
        one.cell,
        one.pbc,
        index[:, order].astype(np.int32),
        offsets[order].astype(np.int8),
    )
    assert (batch.edge_index[1].diff() >= 0).all()
    rows = torch.cat((batch.edge_index.T, batch.cell_offsets.long()), dim=1).tolist()
    assert sorted(rows) == sorted(np.concatenate((index.T, offsets), axis=1).tolist())
    assert batch.positions.dtype == torch.float64


def test_edges_are_looked_for_where_none_are_given():
    one = AWKWARD[3]
    expected = GraphBatch.from_structures([one], CONFIG, dtype=torch.float64)
    arrays = (one.atomic_numbers, one.positions, one.cell, one.pbc)
    told = GraphBatch.from_arrays(*arrays, graph_config=CONFIG)
    later = GraphBatch.from_arrays(*arrays).with_edges_for(CONFIG)
    for field in fields(GraphBatch):
        for batch in (told, later):
            value, wanted = getattr(batch, field.name), getattr(expected, field.name)
            assert torch.as_tensor(value == wanted).all(), field.name


def test_edges_that_dont_fit_are_refused():
    one = AWKWARD[1]
    arrays = (one.atomic_numbers, one.positions, one.cell, one.pbc)
    with pytest.raises(DataError, match="expected \\(2, E\\) and \\(E, 3\\)"):
        GraphBatch.from_arrays(*arrays, [[0, 1], [1, 0]], np.zeros((3, 3)))
    with pytest.raises(DataError, match="atoms 0 to 1"):
        GraphBatch.from_arrays(*arrays, [[0, 2], [1, 0]], np.zeros((2, 3)))


def test_given_edges_are_paired_for_a_model_that_wants_pairs():
    one = AWKWARD[4]
    arrays = (one.atomic_numbers, one.positions, one.cell, one.pbc)
    index, offsets = neighbor_edges(one.positions, one.cell, one.pbc, CONFIG)
    given = GraphBatch.from_arrays(*arrays, index, offsets)
    for ties in ("shell", "strict"):
        wanted = CONFIG.model_copy(update={"symmetric": True, "ties": ties})
        batch = given.with_edges_for(wanted)
        assert batch.edge_kind == "paired"
        rows = torch.cat((batch.edge_index.T, batch.cell_offsets.long()), dim=1)
        reverse = torch.cat((rows[:, [1, 0]], -rows[:, 2:]), dim=1)
        assert sorted(rows.tolist()) == sorted(reverse.tolist())
        assert batch.with_edges_for(wanted) is batch
    assert given.with_edges_for(CONFIG) is given


def test_edge_vectors_are_differentiable_in_positions_and_cell():
    batch = GraphBatch.from_structures([AWKWARD[3]], CONFIG, dtype=torch.float64)
    batch.positions.requires_grad_()
    batch.cell.requires_grad_()
    edge_vectors(batch).square().sum().backward()
    assert batch.positions.grad.abs().sum() > 0
    assert batch.cell.grad.abs().sum() > 0
