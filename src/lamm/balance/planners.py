"""The planners to compare with, and the paper's three steps (Sec. 3.4).

A planner is a function of what an epoch uses and of the shape of its batches. It yields windows of
consecutive steps, so that a run can start before the epoch is planned to its end.

The mini-batches of `random_order` and `greedy` depend on the seed, the epoch and G; those of the
two `paper` planners also on the number of ranks W, the length of their chunks.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from jaxtyping import Int, Int32, Integer

from lamm.balance.assign import evenly, least_loaded
from lamm.balance.uses import BatchShape, EpochUses, Window
from lamm.keyed import shuffled

Planner: TypeAlias = Callable[[EpochUses, BatchShape], Iterator[Window]]
Rows: TypeAlias = Integer[np.ndarray, "_ _"]
"""A mini-batch per row."""

_STEPS_AT_ONCE = 64


def rank_window(
    mini_batches: list[tuple[Rows, Rows]],
    entries: Integer[np.ndarray, " uses"],
    passes: Int32[np.ndarray, " uses"],
    ranks: int,
) -> Window:
    """Put the uses of some mini-batches in order of (step, rank).

    Args:
        mini_batches: pairs of matrices with a mini-batch per row: which use, and its rank. The
            first pair has the first steps, and so on.
        entries: entry in the plan index of each use.
        passes: pass of each use.
        ranks: W.
    """
    order, counts = [], []
    for use, rank in mini_batches:
        by_rank = np.argsort(rank, axis=1, kind="stable")
        order.append(np.take_along_axis(use, by_rank, axis=1).ravel())
        cell = np.arange(len(use))[:, None] * ranks + rank
        counts.append(np.bincount(cell.ravel(), minlength=len(use) * ranks).reshape(-1, ranks))
    flat = np.concatenate(order)
    return Window(entries[flat], passes[flat], np.concatenate(counts))


def _shuffled_mini_batches(
    uses: EpochUses, shape: BatchShape
) -> Iterator[tuple[list[Rows], Int[np.ndarray, " uses"], Int32[np.ndarray, " uses"]]]:
    """The epoch in random order, cut into mini-batches; the last may be incomplete."""
    size = shape.mini_batch_size
    for first in range(0, len(uses), size * _STEPS_AT_ONCE):
        last = min(first + size * _STEPS_AT_ONCE, len(uses))
        entries, passes = uses.permuted(first, last)
        full = (last - first) // size * size
        rest = np.arange(full, last - first).reshape(1, -1)
        matrices = [np.arange(full).reshape(-1, size), rest]
        yield [matrix for matrix in matrices if matrix.size], entries, passes


def random_order(uses: EpochUses, shape: BatchShape) -> Iterator[Window]:
    """A permutation per epoch and equal numbers of structures per rank."""
    for matrices, entries, passes in _shuffled_mini_batches(uses, shape):
        pairs = [
            (use, np.broadcast_to(evenly(use.shape[1], shape.ranks), use.shape)) for use in matrices
        ]
        yield rank_window(pairs, entries, passes, shape.ranks)


def greedy(uses: EpochUses, shape: BatchShape) -> Iterator[Window]:
    """The mini-batches of `random_order`, each spread over the ranks as FAIR-Chem does it.

    The largest structure first, each to the least loaded rank; numbers per rank differ
    (https://github.com/FAIR-Chem/fairchem/pull/267).
    """
    for matrices, entries, passes in _shuffled_mini_batches(uses, shape):
        cost = uses.index.cost[entries]
        pairs = [(use, least_loaded(cost[use], shape.ranks)) for use in matrices]
        yield rank_window(pairs, entries, passes, shape.ranks)


def paper(uses: EpochUses, shape: BatchShape) -> Iterator[Window]:
    """The three steps of Sec. 3.4 (Fig. 5).

    1. The permuted epoch is cut into segments, and each is sorted by atoms, descending.
    2. A segment is cut into chunks of W structures. Of its n mini-batches, number j takes the
       chunks j, j + n, j + 2n, ...: the all-to-all exchange. So each mini-batch has structures of
       all sizes, and the atoms of a mini-batch never rise within a segment (Fig. 6c).
    3. Within a mini-batch, the largest structure first, each to the least loaded rank.
    """
    # Paper: "a given number of subsets" of one size. Here: segments that differ by at most one
    # mini-batch, the last with what doesn't fill one, because no structure is to be lost.
    index = uses.index
    size = index.cost if index.num_atoms is None else index.num_atoms
    for entries, passes, full, rest in _segments(uses, shape, size):
        pairs = [
            (use, least_loaded(size[entries[use]], shape.ranks)) for use in (full, rest) if use.size
        ]
        yield rank_window(pairs, entries, passes, shape.ranks)


def paper_shuffled(uses: EpochUses, shape: BatchShape) -> Iterator[Window]:
    """The mini-batches of `paper` on cost, in random order within each segment.

    For a few structures per rank (B below 4.5), where no assignment evens mini-batches of mixed
    sizes: here the structures of a chunk are alike. The random order leaves no drift in size.
    """
    cost = uses.index.cost
    for number, (entries, passes, full, rest) in enumerate(_segments(uses, shape, cost)):
        full = full[shuffled(len(full), uses.key("paper steps", number))]
        pairs = [
            (use, least_loaded(cost[entries[use]], shape.ranks)) for use in (full, rest) if use.size
        ]
        yield rank_window(pairs, entries, passes, shape.ranks)


def _segments(
    uses: EpochUses, shape: BatchShape, size: Integer[np.ndarray, " structures"]
) -> Iterator[tuple[Int[np.ndarray, " uses"], Int32[np.ndarray, " uses"], Rows, Rows]]:
    """Steps 1 and 2: entries and passes of a segment, its full mini-batches, its incomplete one."""
    steps = shape.num_steps(len(uses))
    segments = shape.num_segments(len(uses))
    edges = [segment * steps // segments * shape.mini_batch_size for segment in range(segments + 1)]
    edges[-1] = len(uses)
    for first, last in pairwise(edges):
        entries, passes = uses.permuted(first, last)
        order = np.argsort(-size[entries].astype(np.int64), kind="stable")
        full, rest = exchange_chunks(last - first, shape)
        yield entries[order], passes[order], full, rest


def exchange_chunks(num_uses: int, shape: BatchShape) -> tuple[Rows, Rows]:
    """Step 2: which places of a sorted segment each of its mini-batches takes.

    The segment is laid out in rounds. In a round each mini-batch takes one chunk of W structures
    (a chunk is shorter where W doesn't divide G). An incomplete mini-batch comes last and takes an
    even share of each round. In every round a mini-batch takes nothing larger, and nothing more,
    than the one before it: that is why totals never rise.

    Args:
        num_uses: structures in the segment.
        shape: G and W.

    Returns:
        Places of the full mini-batches (n, G), and of the incomplete one (1, less than G).
    """
    size = shape.mini_batch_size
    num_full, rest = divmod(num_uses, size)
    rounds = -(-size // shape.ranks)
    shares = np.arange(rounds + 1)
    full_edges, rest_edges = shares * size // rounds, shares * rest // rounds
    full_parts, rest_parts = [], []
    for number in range(rounds):
        start = num_full * full_edges[number] + rest_edges[number]
        chunk = full_edges[number + 1] - full_edges[number]
        taken = num_full * chunk
        full_parts.append(start + np.arange(taken).reshape(num_full, chunk))
        stop = num_full * full_edges[number + 1] + rest_edges[number + 1]
        rest_parts.append(np.arange(start + taken, stop))
    return np.concatenate(full_parts, axis=1), np.concatenate(rest_parts).reshape(1, -1)
