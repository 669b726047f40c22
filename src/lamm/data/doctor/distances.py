"""Distances between atoms: the closest pair of every structure, and the surroundings of some."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from lamm.data.doctor.blocks import Block
from lamm.data.doctor.fingerprints import completed_cells
from lamm.structure import Structure

_PAIRS = 400_000
"""Pairs of atoms that are looked at together: some 30 MB."""
_CELL_LIST = 2.0
"""Å; a cell list with a shorter cutoff has more boxes than atoms."""
_LARGE = 160
"""Atoms of a structure from which a cell list is quicker than all pairs."""
RADII: NDArray[np.float64] = np.asarray(covalent_radii, dtype=np.float64)
"""Å, by atomic number (Cordero et al. 2008, as ASE has them)."""


def closest_distances(block: Block, within: float) -> NDArray[np.float64]:
    """(S,) distance in Å of the two closest atoms of each structure, periodic images included.

    Distances above `within` may come out too large (or infinite), never too small.
    """
    closest = np.full(len(block.sizes), np.inf)
    cell = completed_cells(block.cell, block.pbc)
    periodic = block.periodic
    edges = np.where(block.pbc, np.linalg.norm(block.cell, axis=2), np.inf).min(axis=1)
    inverse = np.linalg.inv(cell)
    # Wrapped differences are the shortest ones up to half of the cell's smallest height.
    heights = np.where(block.pbc, 1.0 / np.linalg.norm(inverse, axis=1), np.inf).min(axis=1)
    slow = (block.sizes > _LARGE) | (periodic & (heights < 2 * within))
    for size in np.unique(block.sizes[~slow]):
        if size == 1:
            continue
        one, other = np.triu_indices(int(size), 1)
        for repeats in (False, True):
            chosen = np.flatnonzero((block.sizes == size) & ~slow & (periodic == repeats))
            step = max(1, _PAIRS // len(one))
            for start in range(0, len(chosen), step):
                rows = chosen[start : start + step]
                atoms = block.starts[rows][:, None] + np.arange(size)
                points = block.positions[atoms]
                apart = points[:, one] - points[:, other]  # (rows, pairs, 3)
                if repeats:
                    shift = apart @ inverse[rows]
                    shift = np.rint(shift) * block.pbc[rows][:, None, :]
                    apart = apart - shift @ cell[rows]
                squares = np.einsum("rpk,rpk->rp", apart, apart)
                closest[rows] = np.sqrt(np.nanmin(squares, axis=1, initial=np.inf))
    for row in np.flatnonzero(slow):
        closest[row] = _closest(block, int(row), within)
    return np.asarray(np.minimum(closest, edges))


def _closest(block: Block, row: int, within: float) -> float:
    atoms = slice(block.starts[row], block.starts[row] + block.sizes[row])
    points, cell = block.positions[atoms], completed_cells(block.cell, block.pbc)[row]
    if not (np.isfinite(points).all() and np.isfinite(cell).all()):
        return np.inf
    found = _neighbours(points, cell, block.pbc[row], max(within, _CELL_LIST))
    return float(found.distances.min(initial=np.inf))


class Neighbours(NamedTuple):
    """Pairs of atoms, each in both directions."""

    centre: NDArray[np.int64]
    other: NDArray[np.int64]
    vectors: NDArray[np.float64]
    """(P, 3) from the centre to the other, Å."""
    distances: NDArray[np.float64]


def neighbours(structure: Structure, cutoff: float) -> Neighbours:
    """Pairs of atoms of a structure within a distance in Å, periodic images included."""
    pbc = np.asarray(structure.pbc, dtype=bool)
    cell = completed_cells(np.asarray(structure.cell, dtype=np.float64)[None], pbc[None])[0]
    return _neighbours(np.asarray(structure.positions, dtype=np.float64), cell, pbc, cutoff)


def _neighbours(
    points: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    cutoff: float,
) -> Neighbours:
    from vesin import NeighborList

    finder = NeighborList(cutoff=cutoff, full_list=True)
    centre, other, vectors, distances = finder.compute(
        points=points, box=cell, periodic=pbc, quantities="ijDd"
    )
    return Neighbours(
        np.asarray(centre, dtype=np.int64), np.asarray(other, dtype=np.int64), vectors, distances
    )


class Surroundings(NamedTuple):
    """The nearest neighbour of each atom of a structure."""

    bond: NDArray[np.float64]
    """(n,) distance over the sum of the covalent radii; atoms without a neighbour left out."""
    pair: NDArray[np.int64]
    """(n,) both elements of the bond as one number."""
    distance: NDArray[np.float64]
    """(n,) Å."""
    push: NDArray[np.float64]
    """(n,) force that drives the two apart, eV/Å (half of the difference along the bond); 0
    without forces."""


def surroundings(structure: Structure, cutoff: float) -> Surroundings:
    """The bonds of each atom to the neighbour that is nearest for their radii."""
    found = neighbours(structure, cutoff)
    numbers = np.asarray(structure.atomic_numbers, dtype=np.int64)
    ratio = found.distances / (RADII[numbers[found.centre]] + RADII[numbers[found.other]])
    order = np.lexsort((ratio, found.centre))
    _, first = np.unique(found.centre[order], return_index=True)
    best = order[first]
    centre, other = found.centre[best], found.other[best]
    push = np.zeros(len(best))
    if structure.forces is not None and len(best):
        forces = np.asarray(structure.forces, dtype=np.float64)
        along = found.vectors[best] / np.maximum(found.distances[best], 1e-9)[:, None]
        push = 0.5 * np.einsum("nk,nk->n", forces[other] - forces[centre], along)
    low, high = (
        np.minimum(numbers[centre], numbers[other]),
        np.maximum(numbers[centre], numbers[other]),
    )
    return Surroundings(ratio[best], low * 256 + high, found.distances[best], push)
