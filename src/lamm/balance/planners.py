"""The planners to compare with, and the paper's three steps (Sec. 3.4).

A planner is a function of what an epoch uses and of the shape of its batches. It gives windows of
consecutive steps, each planned when it is asked for: a run starts, and resumes, at any of them.

The mini-batches of `random_order` and `greedy` depend on the seed, the epoch and G; those of the
two `paper` planners also on the number of ranks W, the length of their chunks.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Int32, Integer

from lamm.balance.assign import evenly, least_loaded
from lamm.balance.columns import Column
from lamm.balance.order import stable_order
from lamm.balance.uses import BatchShape, EpochUses, Window
from lamm.balance.windows import EpochWindows
from lamm.keyed import shuffled

Planner: TypeAlias = Callable[[EpochUses, BatchShape], EpochWindows]
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
        by_rank = stable_order(rank)
        order.append(np.take_along_axis(use, by_rank, axis=1).ravel())
        cell = np.arange(len(use))[:, None] * ranks + rank
        counts.append(np.bincount(cell.ravel(), minlength=len(use) * ranks).reshape(-1, ranks))
    flat = np.concatenate(order)
    return Window(entries[flat], passes[flat], np.concatenate(counts))


def _shuffled_windows(
    uses: EpochUses,
    shape: BatchShape,
    assign: Callable[[Integer[np.ndarray, " uses"], Rows], Rows],
) -> EpochWindows:
    """The epoch in random order, cut into mini-batches; the last may be incomplete.

    Args:
        uses: what the epoch uses.
        shape: G and W.
        assign: from the entries of a window and its mini-batches to the ranks.
    """
    size = shape.mini_batch_size
    steps = shape.num_steps(len(uses))
    first_steps = np.append(np.arange(0, steps, _STEPS_AT_ONCE), steps)

    def make(number: int) -> Window:
        first = number * size * _STEPS_AT_ONCE
        last = min(first + size * _STEPS_AT_ONCE, len(uses))
        entries, passes = uses.permuted(first, last)
        full = (last - first) // size * size
        rest = np.arange(full, last - first).reshape(1, -1)
        matrices = [matrix for matrix in (np.arange(full).reshape(-1, size), rest) if matrix.size]
        pairs = [(use, assign(entries, use)) for use in matrices]
        return rank_window(pairs, entries, passes, shape.ranks)

    return EpochWindows(first_steps, make)


def random_order(uses: EpochUses, shape: BatchShape) -> EpochWindows:
    """A permutation per epoch and equal numbers of structures per rank."""
    return _shuffled_windows(
        uses,
        shape,
        lambda _, use: np.broadcast_to(evenly(use.shape[1], shape.ranks), use.shape),
    )


def greedy(uses: EpochUses, shape: BatchShape) -> EpochWindows:
    """The mini-batches of `random_order`, each spread over the ranks as FAIR-Chem does it.

    The largest structure first, each to the least loaded rank; numbers per rank differ
    (https://github.com/FAIR-Chem/fairchem/pull/267).
    """
    cost = uses.index.cost
    return _shuffled_windows(
        uses, shape, lambda entries, use: least_loaded(cost[entries[use]], shape.ranks)
    )


def paper(uses: EpochUses, shape: BatchShape) -> EpochWindows:
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
    return _segments(uses, shape, index.cost if index.num_atoms is None else index.num_atoms)


def paper_shuffled(uses: EpochUses, shape: BatchShape) -> EpochWindows:
    """The mini-batches of `paper` on cost, in random order within each segment.

    For a few structures per rank (B below 4.5), where no assignment evens mini-batches of mixed
    sizes: here the structures of a chunk are alike. The random order leaves no drift in size.
    """
    return _segments(uses, shape, uses.index.cost, shuffle=True)


def _segments(
    uses: EpochUses,
    shape: BatchShape,
    size: Integer[np.ndarray, " structures"] | Column,
    *,
    shuffle: bool = False,
) -> EpochWindows:
    """The three steps by some measure of a structure's size; a segment is a window.

    Args:
        uses: what the epoch uses.
        shape: G, W and S.
        size: what to sort and to balance by, for each structure of the index.
        shuffle: the mini-batches of a segment in random order.
    """
    steps = shape.num_steps(len(uses))
    segments = shape.num_segments(len(uses))
    first_steps = np.array([segment * steps // segments for segment in range(segments + 1)])

    def make(number: int) -> Window:
        first = int(first_steps[number]) * shape.mini_batch_size
        last = min(int(first_steps[number + 1]) * shape.mini_batch_size, len(uses))
        entries, passes = uses.permuted(first, last)
        order = stable_order(-size[entries].astype(np.int64))
        entries, passes = entries[order], passes[order]
        full, rest = exchange_chunks(last - first, shape)
        if shuffle:
            full = full[shuffled(len(full), uses.key("paper steps", number))]
        pairs = [
            (use, least_loaded(size[entries[use]], shape.ranks)) for use in (full, rest) if use.size
        ]
        return rank_window(pairs, entries, passes, shape.ranks)

    return EpochWindows(first_steps, make)


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
