"""Edges against a search by brute force, and the rules at the neighbour limit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from awkward import (
    AWKWARD,
    CUTOFF,
    MAX_NEIGHBORS,
    moved,
    random_rotation,
    reordered,
    structure,
    turned,
)
from lamm.graph.counting import count_edges, count_edges_of_many
from lamm.graph.neighbors import GraphConfig, neighbor_edges, paired_edges
from lamm.structure import Structure

ALL = GraphConfig(cutoff=CUTOFF)
SHELL = GraphConfig(cutoff=CUTOFF, max_neighbors=MAX_NEIGHBORS)
STRICT = GraphConfig(cutoff=CUTOFF, max_neighbors=MAX_NEIGHBORS, ties="strict")


def edges_of(one: Structure, config: GraphConfig):
    return neighbor_edges(one.positions, one.cell, one.pbc, config)


def vectors_of(one: Structure, config: GraphConfig):
    (source, target), offsets = edges_of(one, config)
    return one.positions[source] + offsets @ one.cell - one.positions[target]


def as_set(edge_index, offsets):
    rows = np.concatenate((edge_index.T, offsets), axis=1)
    return set(map(tuple, rows.tolist()))


def brute_force(one: Structure, cutoff: float):
    """Every image within the cutoff, by loops: (source, target, offset) and distances."""
    spans = [range(-6, 7) if periodic else range(1) for periodic in one.pbc]
    found = {}
    for offset in product(*spans):
        for j, i in product(range(one.num_atoms), repeat=2):
            vector = one.positions[j] + np.array(offset) @ one.cell - one.positions[i]
            distance = float(np.linalg.norm(vector))
            if 0.01 < distance <= cutoff:
                found[(j, i, *offset)] = distance
    return found


def wrapped(one: Structure) -> Structure:
    """Atoms inside the cell, so that brute force needs few images."""
    if not one.pbc.all():
        return one
    fraction = one.positions @ np.linalg.inv(one.cell)
    return moved(one, -np.floor(fraction) @ one.cell)


@pytest.mark.parametrize("one", AWKWARD, ids=lambda s: s.name)
def test_every_image_within_the_cutoff_is_an_edge(one):
    one = wrapped(one)
    assert as_set(*edges_of(one, ALL)) == set(brute_force(one, CUTOFF))


@pytest.mark.parametrize("one", AWKWARD, ids=lambda s: s.name)
def test_edges_are_sorted_by_target(one):
    for config in (ALL, SHELL, STRICT, STRICT.model_copy(update={"symmetric": True})):
        (_, target), _ = edges_of(one, config)
        assert (np.diff(target) >= 0).all()


@pytest.mark.parametrize("one", AWKWARD, ids=lambda s: s.name)
def test_strict_keeps_exactly_the_nearest(one):
    one = wrapped(one)
    every = brute_force(one, CUTOFF)
    kept = as_set(*edges_of(one, STRICT))
    for i in range(one.num_atoms):
        nearest = sorted(d for edge, d in every.items() if edge[1] == i)[:MAX_NEIGHBORS]
        mine = sorted(every[edge] for edge in kept if edge[1] == i)
        np.testing.assert_allclose(mine, nearest, atol=1e-5)


@pytest.mark.parametrize("one", AWKWARD, ids=lambda s: s.name)
def test_shell_keeps_the_nearest_and_all_that_are_as_near(one):
    one = wrapped(one)
    every = brute_force(one, CUTOFF)
    expected = set()
    for i in range(one.num_atoms):
        distances = sorted(d for edge, d in every.items() if edge[1] == i)
        reach = (distances + [np.inf] * MAX_NEIGHBORS)[MAX_NEIGHBORS - 1] + 0.01
        expected |= {edge for edge, d in every.items() if edge[1] == i and d <= reach}
    assert as_set(*edges_of(one, SHELL)) == expected


@pytest.mark.parametrize("one", AWKWARD, ids=lambda s: s.name)
@pytest.mark.parametrize("ties", ["shell", "strict"])
def test_symmetric_edges_come_with_their_reverse(one, ties):
    config = GraphConfig(cutoff=CUTOFF, max_neighbors=MAX_NEIGHBORS, ties=ties, symmetric=True)
    index, offsets = edges_of(one, config)
    assert as_set(index, offsets) == as_set(index[::-1], -offsets)
    assert len(as_set(index, offsets)) == index.shape[1]


@pytest.mark.parametrize("one", AWKWARD, ids=lambda s: s.name)
def test_shell_keeps_what_either_end_keeps(one):
    index, offsets = edges_of(one, SHELL)
    union = as_set(index, offsets) | as_set(index[::-1], -offsets)
    assert as_set(*edges_of(one, SHELL.model_copy(update={"symmetric": True}))) == union
    assert as_set(*paired_edges(index, offsets, "shell")) == union


def test_pairing_twice_is_pairing_once():
    index, offsets = edges_of(AWKWARD[4], STRICT)
    for ties in ("strict", "shell"):
        once = paired_edges(index, offsets, ties)
        assert as_set(*paired_edges(*once, ties)) == as_set(*once)


@pytest.mark.parametrize("one", AWKWARD, ids=lambda s: s.name)
def test_a_kept_shell_depends_on_neither_order_nor_orientation_nor_image(one, rng):
    def lengths(other):
        return np.sort(np.linalg.norm(vectors_of(other, SHELL), axis=1))

    expected = lengths(one)
    images = rng.integers(-2, 3, (one.num_atoms, 3)) * one.pbc
    for other in (
        reordered(one, rng.permutation(one.num_atoms)),
        turned(one, random_rotation(3)),
        moved(one, images @ one.cell),
    ):
        np.testing.assert_allclose(lengths(other), expected, atol=1e-9)


def test_a_perfect_crystal_keeps_its_symmetry_with_shell():
    crystal = AWKWARD[-1]
    vectors = vectors_of(crystal, SHELL)
    assert len(vectors) == 4 * 12
    (_, target), _ = edges_of(crystal, SHELL)
    for i in range(4):
        np.testing.assert_allclose(vectors[target == i].sum(axis=0), 0, atol=1e-12)


def test_strict_ties_go_by_source_and_then_by_offset():
    (source, target), offsets = edges_of(AWKWARD[-1], STRICT)
    index, every = edges_of(AWKWARD[-1], GraphConfig(cutoff=3.0))
    for i in range(4):
        rows = np.concatenate((index[:1].T, every), axis=1)[index[1] == i].tolist()
        mine = np.concatenate((source[:, None], offsets), axis=1)[target == i].tolist()
        assert sorted(mine) == sorted(rows)[:MAX_NEIGHBORS]


def test_a_dense_crystal_is_searched_as_far_as_it_takes(rng):
    """The search starts at a part of the cutoff; the choice must be that of a search to its end."""
    cell = np.diag([7.0, 7.5, 30.0])
    positions = np.concatenate((rng.random((40, 3)) * [7, 7.5, 6], [[1.0, 1.0, 13.0]]))
    one = structure("slab", [29] * 41, positions, cell, (True, True, True))
    for ties in ("shell", "strict"):
        config = GraphConfig(cutoff=11.0, max_neighbors=30, ties=ties)
        (source, target), offsets = edges_of(one, GraphConfig(cutoff=11.0))
        distance = np.linalg.norm(positions[source] + offsets @ cell - positions[target], axis=1)
        slack = 0.01 if ties == "shell" else 1e-5
        expected = sum(
            min((d <= np.sort(d)[29] + slack).sum(), 30 if ties == "strict" else len(d))
            for i in range(41)
            if len(d := distance[target == i])
        )
        assert edges_of(one, config)[0].shape[1] == expected


def test_two_atoms_at_one_place_have_no_edge():
    one = structure("twins", [1, 1], [[0, 0, 0], [0, 0, 0]])
    assert edges_of(one, ALL)[0].shape == (2, 0)


def test_the_count_is_that_of_strict_edges():
    for one in AWKWARD:
        assert (
            count_edges(one.positions, one.cell, one.pbc, SHELL)
            == (edges_of(one, STRICT)[0].shape[1])
        )


def test_float32_positions_are_searched_in_float64():
    one = AWKWARD[-1]
    index, _ = neighbor_edges(one.positions.astype(np.float32), one.cell, one.pbc, SHELL)
    assert index.shape[1] == 48


@pytest.mark.parametrize("crystal", ["cu_fcc_conv", "cu_fcc_prim", "nacl"])
@pytest.mark.parametrize("limit", [20, 50])
def test_strict_chooses_the_distances_that_the_original_chooses(shared, crystal, limit):
    file = np.load(shared / "oracle" / "graph_ties.npz")
    positions, cell = file[f"{crystal}/positions"], file[f"{crystal}/cell"]
    config = GraphConfig(cutoff=12.0, max_neighbors=limit, ties="strict")
    ours = neighbor_edges(positions, cell, np.ones(3, dtype=bool), config)
    theirs = file[f"{crystal}/{limit}/edge_index"], file[f"{crystal}/{limit}/cell_offsets"]

    def lengths(edges):
        (source, target), offsets = edges
        vectors = positions[source] + offsets @ cell - positions[target]
        return np.sort(np.linalg.norm(vectors, axis=1))

    np.testing.assert_allclose(lengths(ours), lengths(theirs), atol=1e-5)


@pytest.mark.parametrize("seed", range(30))
def test_edges_are_counted_alike_with_and_without_a_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 160))
    pbc = rng.random(3) < (0.0, 0.5, 1.0)[seed % 3]
    cell = np.diag(rng.uniform(2.5, 15.0, 3)) + rng.uniform(-2.0, 2.0, (3, 3))
    positions = rng.uniform(-1.0, 2.0, (n, 3)) @ cell
    positions[n // 2] = positions[0]  # two atoms at one place have no edge
    for limit in (None, 5, 50):
        config = GraphConfig(cutoff=float(rng.uniform(3.0, 9.0)), max_neighbors=limit)
        # Of the edges without a limit, each atom counts its first few.
        edges, _ = neighbor_edges(positions, cell, pbc, GraphConfig(cutoff=config.cutoff))
        counts = np.bincount(edges[1], minlength=n)
        expected = int((counts if limit is None else counts.clip(max=limit)).sum())
        assert count_edges(positions, cell, pbc, config) == expected


def test_structures_of_all_kinds_are_counted_together() -> None:
    config = GraphConfig(cutoff=4.0, max_neighbors=12)
    counts = count_edges_of_many(
        [one.positions for one in AWKWARD],
        [one.cell for one in AWKWARD],
        np.array([one.pbc for one in AWKWARD]),
        config,
    )
    assert counts.tolist() == [
        count_edges(one.positions, one.cell, one.pbc, config) for one in AWKWARD
    ]
