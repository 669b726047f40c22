"""Edges: every periodic image within a cutoff (vesin), then the nearest few of each atom.

An edge runs from a neighbour j, ``edge_index[0]``, to a centre i, ``edge_index[1]``. Its vector is

    edge_vectors = r_j + cell_offsets @ cell - r_i

with the lattice vectors as rows of ``cell``. The search is in float64, whatever the model computes
in. Two atoms closer than `MIN_DISTANCE` have no edge, since it would have no direction.

Cutting a list of neighbours at the k-th nearest needs a rule for equal distances:

- ``shell`` keeps a shell of equal distances whole, so that the result depends on neither the order
  of the atoms, nor the orientation, nor the cell chosen for a crystal. There can be more than k.
- ``strict`` keeps exactly k; of equal distances the one with the lower source index comes first,
  then the lower cell offset. This is the setting of the paper's models; in perfect crystals it
  breaks the symmetry of the site.

PaiNN wants every edge with its reverse (`GraphConfig.symmetric`). After ``shell``, an edge stays
where either end keeps it. After ``strict``, the edges with j < i stay (between images of one atom:
those with a lexicographically negative offset) and their reverses are added, as in the models that
the paper extends.
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from lamm.schema import Frozen

MIN_DISTANCE = 0.01
"""Å; atoms closer than this are one place, and no edge runs between them."""
SHELL_WIDTH = 0.01
"""Å; distances up to this much beyond the k-th nearest belong to its shell."""
EQUAL_DISTANCE = 1e-5
"""Å; at this resolution ``strict`` calls two distances equal: float32 positions differ by less."""

Edges = tuple[Int[np.ndarray, "2 edges"], Int[np.ndarray, "edges 3"]]


class GraphConfig(Frozen):
    """Which atoms are neighbours."""

    cutoff: PositiveFloat
    """Greatest distance of a neighbour, in Å."""
    max_neighbors: PositiveInt | None = None
    """At most this many nearest neighbours per atom (`ties` decides at the limit); None: all."""
    ties: Literal["shell", "strict"] = "shell"
    """What happens to equal distances at the limit of `max_neighbors`."""
    symmetric: bool = False
    """Whether every edge comes with its reverse."""


class Candidates:
    """All edges within some radius, sorted by target: what the nearest-k rules choose from."""

    __slots__ = ("distance", "offsets", "source", "start", "target")

    def __init__(
        self,
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        radius: float,
    ) -> None:
        from vesin import NeighborList  # brings PyTorch, which counting edges rarely needs

        search = NeighborList(cutoff=radius, full_list=True, sorted=True, n_threads=1)
        pairs, offsets, distance = search.compute(positions, cell, pbc, "PSd", copy=False)
        if (distance > MIN_DISTANCE).all():
            kept: NDArray[np.bool_] | slice = slice(None)
        else:
            kept = distance > MIN_DISTANCE
        # The arrays are views of the search's own memory: `array` copies them.
        self.target = np.array(pairs[kept, 0], dtype=np.int64)
        self.source = np.array(pairs[kept, 1], dtype=np.int64)
        self.offsets = np.array(offsets[kept], dtype=np.int32)
        self.distance = np.array(distance[kept], dtype=np.float64)
        counts = np.bincount(self.target, minlength=len(positions))
        self.start = np.concatenate(([0], np.cumsum(counts)))  # (N + 1,)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many edges end at each atom, (N,)."""
        return np.diff(self.start)


def candidates(
    positions: NDArray[np.floating[Any]],
    cell: NDArray[np.floating[Any]],
    pbc: NDArray[np.bool_],
    config: GraphConfig,
) -> Candidates:
    """All that the neighbour limit can choose from, without looking further than it takes.

    In a dense crystal the nearest 50 are well within 12 Å, and a search to 0.6 of the cutoff meets
    a fifth of the pairs. It is enough where every atom has its shell at the limit inside.
    """
    points = np.ascontiguousarray(positions, dtype=np.float64)
    periodic = np.asarray(pbc, dtype=bool)
    box = _spanning_cell(cell, periodic)
    limit = config.max_neighbors
    radius = config.cutoff
    if limit is not None and (periodic.any() or len(points) > limit + 1):
        radius *= 0.6
    while True:
        edges = Candidates(points, box, periodic, radius)
        if limit is None or radius == config.cutoff:
            return edges
        fewest = int(edges.counts.min(initial=limit))
        if fewest >= limit and _shell_radius(edges, limit).max(initial=0.0) < radius:
            return edges
        radius *= min(1.1 * max(limit / max(fewest, 1), 1.0) ** 0.5, 2.0)
        if radius > 0.85 * config.cutoff:
            radius = config.cutoff


def neighbor_edges(
    positions: Float[np.ndarray, "atoms 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    config: GraphConfig,
) -> Edges:
    """The edges of one structure, sorted by target.

    Args:
        positions: in Å, inside the cell or not.
        cell: rows are the lattice vectors, in Å; those of directions that don't repeat may be zero.
        pbc: whether each lattice vector repeats.
        config: cutoff, neighbour limit, and the rules of both.

    Returns:
        (2, E) source and target of each edge, and (E, 3) how many times each lattice vector is
        added to the source's position.
    """
    edges = candidates(positions, cell, pbc, config)
    limit = config.max_neighbors
    if limit is None or edges.counts.max(initial=0) <= limit:
        return np.stack((edges.source, edges.target)), edges.offsets
    if config.ties == "strict":
        kept = _nearest_exactly(edges, limit)
    else:
        reach = _shell_radius(edges, limit)
        kept = edges.distance <= reach[edges.target]
        if config.symmetric:
            kept |= edges.distance <= reach[edges.source]
    edge_index = np.stack((edges.source[kept], edges.target[kept]))
    offsets = edges.offsets[kept]
    if config.symmetric and config.ties == "strict":
        return paired_edges(edge_index, offsets, "strict")
    return edge_index, offsets


def paired_edges(
    edge_index: Integer[np.ndarray, "2 edges"],
    cell_offsets: Integer[np.ndarray, "edges 3"],
    ties: Literal["shell", "strict"],
) -> tuple[Int[np.ndarray, "2 paired"], Int[np.ndarray, "paired 3"]]:
    """Give every edge its reverse, by the rule that goes with `ties` (see the module's text).

    Edges that are paired already stay as they are, but for their order.

    Args:
        edge_index: (2, E) source and target, of one structure or of a batch.
        cell_offsets: (E, 3) lattice vectors added to the source's position.
        ties: ``strict`` chooses by index, ``shell`` keeps what either end keeps.

    Returns:
        Edge index and offsets, sorted by target.
    """
    rows = np.concatenate((edge_index.T, cell_offsets), axis=1).astype(np.int64)  # (E, 5)
    if ties == "strict":
        rows = rows[_comes_first(rows)]
    reverse = np.concatenate((rows[:, 1::-1], -rows[:, 2:]), axis=1)
    rows = np.concatenate((rows, reverse))
    if ties == "shell":
        rows = np.unique(rows, axis=0)
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    return np.ascontiguousarray(rows[:, :2].T), rows[:, 2:].astype(np.int32)


def _comes_first(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether an edge is the one of its pair that ``strict`` looks at."""
    source, target, x, y, z = rows.T
    negative = (x < 0) | ((x == 0) & (y < 0)) | ((x == 0) & (y == 0) & (z < 0))
    first: NDArray[np.bool_] = (source < target) | ((source == target) & negative)
    return first


def _shell_radius(edges: Candidates, limit: int) -> NDArray[np.float64]:
    """How far each atom looks: just past the shell of its `limit`-th neighbour, (N,) in Å."""
    return _kth_smallest(edges.distance, edges, limit, np.inf) + SHELL_WIDTH


def _nearest_exactly(edges: Candidates, limit: int) -> NDArray[np.bool_]:
    """Which edges are among the `limit` nearest of their target, ties by source, then by offset."""
    rank = np.rint(edges.distance / EQUAL_DISTANCE)
    last = _kth_smallest(rank, edges, limit, np.inf)[edges.target]  # (E,)
    kept: NDArray[np.bool_] = rank < last
    tied = np.flatnonzero(rank == last)
    inside = np.bincount(edges.target[kept], minlength=len(edges.counts))  # (N,)
    target, offsets = edges.target[tied], edges.offsets[tied]
    order = np.lexsort((offsets[:, 2], offsets[:, 1], offsets[:, 0], edges.source[tied], target))
    target = target[order]
    place = np.arange(len(target)) - np.searchsorted(target, target)  # (tied,) among its target's
    kept[tied[order[place < limit - inside[target]]]] = True
    return kept


def _kth_smallest(
    values: NDArray[np.float64], edges: Candidates, k: int, otherwise: float
) -> NDArray[np.float64]:
    """The k-th smallest value among the edges of each target, (N,); `otherwise` where fewer."""
    counts = edges.counts
    table = np.full((len(counts), max(int(counts.max(initial=0)), k)), otherwise)
    column = np.arange(len(values)) - edges.start[edges.target]
    table[edges.target, column] = values
    table.partition(k - 1, axis=1)
    kth: NDArray[np.float64] = table[:, k - 1]
    return kth


def _spanning_cell(cell: NDArray[np.floating[Any]], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The cell with each vector that doesn't repeat replaced by one that spans space.

    The search wants an invertible cell where anything is periodic; offsets along the replaced
    vectors are zero, so it doesn't matter what they are.
    """
    spanning = np.array(cell, dtype=np.float64)
    periodic = np.asarray(pbc, dtype=bool)
    if periodic.all():
        return spanning
    if not periodic.any():
        return np.eye(3)
    # The last right singular vectors are orthogonal to all that repeats.
    spanning[~periodic] = np.linalg.svd(spanning[periodic])[2][periodic.sum() :]
    return spanning
