"""How many edges a structure has, for the index of a store: as many as a search would find, sooner.

Molecules of one size are counted together, all pairs of them. In dense matter each atom has as many
neighbours as the limit allows, and a look at the nearest images is proof of it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from lamm.graph.neighbors import MIN_DISTANCE, GraphConfig, candidates

FEW_ATOMS = 128
"""Molecules of up to this many atoms are counted by all their pairs."""
_PAIRS = 1 << 18
"""Pairs that are looked at together."""
_MARGIN = 0.05
"""Å; a distance this close to the cutoff isn't counted by what has to be certain."""
_AT_ONE_PLACE = 3
"""Neighbours asked for beyond the limit: the atom itself, and two more at its place."""


def count_edges(
    positions: Float[np.ndarray, "atoms 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    config: GraphConfig,
) -> int:
    """How many edges one structure has after the neighbour limit, before any pairing.

    This is what the index of a store holds. A shell that is kept whole beyond the limit counts as
    cut at the limit, so that the number doesn't jump where a crystal is perfect.
    """
    periodic, limit = np.asarray(pbc, dtype=bool), config.max_neighbors
    if not periodic.any() and len(positions) <= FEW_ATOMS:
        return int(count_edges_of_molecules(np.asarray(positions)[None], config)[0])
    if limit is not None and _everyone_has(limit, positions, cell, periodic, config.cutoff):
        return limit * len(positions)
    counts = candidates(positions, cell, periodic, config).counts
    return int((counts if limit is None else counts.clip(max=limit)).sum())


def count_edges_of_molecules(
    positions: Float[np.ndarray, "structures atoms 3"], config: GraphConfig
) -> Int[np.ndarray, " structures"]:
    """How many edges each of some structures of one size has that don't repeat."""
    points = np.asarray(positions, dtype=np.float64)
    together = max(_PAIRS // max(points.shape[1], 1) ** 2, 1)
    totals = []
    for first in range(0, len(points), together):
        some = points[first : first + together]
        square = np.zeros((len(some), some.shape[1], some.shape[1]))
        for axis in range(3):
            difference = some[:, :, None, axis] - some[:, None, :, axis]
            square += difference * difference
        near = (square <= config.cutoff**2) & (square > MIN_DISTANCE**2)
        counts = near.sum(axis=2, dtype=np.int64)
        if config.max_neighbors is not None:
            counts = np.minimum(counts, config.max_neighbors)
        totals.append(counts.sum(axis=1))
    return np.concatenate(totals)


def count_edges_of_many(
    positions: Sequence[NDArray[np.floating[Any]]],
    cells: Sequence[NDArray[np.float64]],
    pbc: Bool[np.ndarray, "structures 3"],
    config: GraphConfig,
) -> Int[np.ndarray, " structures"]:
    """How many edges each of some structures of any kind has."""
    counts = np.zeros(len(positions), dtype=np.int64)
    periodic: NDArray[np.bool_] = np.logical_or.reduce(pbc, axis=1)
    molecules: dict[int, list[int]] = {}
    for row, one in enumerate(positions):
        if periodic[row] or len(one) > FEW_ATOMS:
            counts[row] = count_edges(one, cells[row], pbc[row], config)
        else:
            molecules.setdefault(len(one), []).append(row)
    for rows in molecules.values():
        counts[rows] = count_edges_of_molecules(np.stack([positions[row] for row in rows]), config)
    return counts


def _everyone_has(
    limit: int,
    positions: NDArray[np.floating[Any]],
    cell: NDArray[np.floating[Any]],
    periodic: NDArray[np.bool_],
    cutoff: float,
) -> bool:
    """Whether it is certain that each atom has `limit` neighbours, by a look at the nearest images.

    Distances are in float32, which is much more exact than the margin.
    """
    shifts = _image_offsets(*periodic.tolist()) @ np.asarray(cell, dtype=np.float64)  # (images, 3)
    shifts = shifts[np.argsort(np.einsum("ij,ij->i", shifts, shifts), kind="stable")]
    centred = positions - positions.mean(axis=0)
    if not np.abs(centred).max() < 1000.0:
        return False
    here = np.empty((len(centred), 5), dtype=np.float32)  # so that here @ there.T is the square
    here[:, :3], here[:, 4] = -2.0 * centred, 1.0
    here[:, 3] = np.einsum("ij,ij->i", centred, centred)
    tried = 0
    for wanted in (6 * limit, 18 * limit):
        images = min(-(-wanted // len(centred)), len(shifts))
        if images == tried:
            break
        tried = images
        sources = (centred + shifts[:images, None, :]).reshape(-1, 3)
        there = np.empty((len(sources), 5), dtype=np.float32)
        there[:, :3], there[:, 3] = sources, 1.0
        there[:, 4] = np.einsum("ij,ij->i", sources, sources)
        near = (here @ there.T <= (cutoff - _MARGIN) ** 2).view(np.uint8)
        if near.sum(axis=1, dtype=np.uint16).min() >= limit + _AT_ONE_PLACE:
            return True
    return False


@cache
def _image_offsets(*periodic: bool) -> NDArray[np.float64]:
    """Cells up to three away along each direction that repeats, (images, 3)."""
    steps = [np.arange(-3.0, 4.0) if repeats else np.zeros(1) for repeats in periodic]
    return np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
