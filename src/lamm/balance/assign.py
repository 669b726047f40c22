"""The structures of a mini-batch to ranks: greedy, then refined by exchanges (Sec. 3.4, step 3).

Several mini-batches of one size are treated at once, one per row. Costs are integers and ties go to
the lowest rank, so the result is the same on any machine.
"""

from heapq import heapify, heapreplace

import numpy as np
from jaxtyping import Int, Integer

from lamm.balance.order import stable_order

_TURNS = 8
"""Passes over the most uneven ranks; each pairs them in another way."""
_FEWEST_PAIRS = 4
"""Pairs of such a pass where a sixteenth of the ranks is less."""
_HEAP_RANKS, _HEAP_BATCHES = 4096, 8
"""With so many ranks or fewer mini-batches, a heap each finds the least load sooner."""
_BLOCK = 2**18
"""Pairs of structures that are compared at once, so that they stay in the processor's cache."""


def evenly(size: int, ranks: int) -> Int[np.ndarray, " size"]:
    """Rank of each of `size` structures in equal blocks, larger ones by one where it must be."""
    return np.arange(size) * ranks // size


def least_loaded(
    cost: Integer[np.ndarray, "batches size"], ranks: int
) -> Int[np.ndarray, "batches size"]:
    """Largest cost first, each structure to the rank with the least load so far.

    Args:
        cost: cost of each structure, at least 1; a mini-batch per row.
        ranks: W; a mini-batch of W structures or more leaves no rank without one.

    Returns:
        The rank of each structure.
    """
    order = stable_order(-cost.astype(np.int64))
    descending = np.take_along_axis(cost, order, axis=1).astype(np.int64)
    use_heap = ranks >= _HEAP_RANKS or len(cost) < _HEAP_BATCHES
    place = _by_heap if use_heap else _row_by_row
    result = np.empty(cost.shape, dtype=np.int64)
    np.put_along_axis(result, order, place(descending, ranks), axis=1)
    return result


def _row_by_row(
    descending: Int[np.ndarray, "batches size"], ranks: int
) -> Int[np.ndarray, "batches size"]:
    """`least_loaded` of sorted costs, the next structure of all mini-batches at a time."""
    batches, size = descending.shape
    small = int(descending.sum(axis=1).max(initial=0)) < 2**31
    load = np.zeros((batches, ranks), dtype=np.int32 if small else np.int64)
    columns = np.ascontiguousarray(descending.T, dtype=load.dtype)
    result = np.empty((size, batches), dtype=np.int64)
    first = min(ranks, size)
    result[:first] = np.arange(first)[:, None]
    load[:, :first] = descending[:, :first]
    flat, row_start = load.reshape(-1), np.arange(batches) * ranks
    for place in range(first, size):
        least = load.argmin(axis=1, out=result[place])
        flat[row_start + least] += columns[place]
    return result.T


def _by_heap(
    descending: Int[np.ndarray, "batches size"], ranks: int
) -> Int[np.ndarray, "batches size"]:
    """`least_loaded` of sorted costs, one mini-batch after another."""
    # A load and its rank are one number, load * W + rank, for the heap.
    descending = descending * ranks
    first = descending[:, :ranks] + np.arange(descending[:, :ranks].shape[1])
    least = np.empty_like(descending)
    least[:, :ranks] = np.arange(first.shape[1])
    rows = zip(first.tolist(), descending[:, ranks:].tolist(), strict=True)
    for row, (heap, rest) in enumerate(rows):
        heapify(heap)
        least[row, ranks:] = [heapreplace(heap, heap[0] + cost) for cost in rest]
    result: Int[np.ndarray, "batches size"] = least % ranks
    return result


def refined(
    cost: Integer[np.ndarray, "batches size"],
    rank: Integer[np.ndarray, "batches size"],
    ranks: int,
) -> Int[np.ndarray, "batches size"]:
    """Even the loads further by exchanging structures between ranks.

    The most loaded rank is paired with the least loaded, the second most with the second least, and
    so on. Each pair makes the one swap or move that brings its loads closest. Then only the slowest
    count: the sixteenth with the most load is paired with the sixteenth with the least, some times
    and in another way each time, as a pair that once found nothing better never will.

    Args:
        cost: cost of each structure, at least 1; a mini-batch per row.
        rank: the rank that each structure has so far.
        ranks: W.

    Returns:
        The rank of each structure; the largest load is never larger than before.
    """
    batches, size = cost.shape
    if ranks < 2 or size < 2:
        return rank
    # A slot of a rank holds a structure or nothing. A swap with an empty slot is a move.
    order = stable_order(rank)  # (batches, size), by rank
    sorted_rank = np.take_along_axis(rank, order, axis=1)
    rows = np.arange(batches)[:, None]
    counts = np.bincount((rows * ranks + rank).ravel(), minlength=batches * ranks)
    counts = counts.reshape(batches, ranks)
    before = np.cumsum(counts, axis=1) - counts
    slot = np.arange(size) - np.take_along_axis(before, sorted_rank, axis=1)
    slots = int(counts.max()) + 1
    structure = np.full((batches, ranks, slots), -1, dtype=np.int64)
    structure[rows, sorted_rank, slot] = order
    sorted_cost = np.take_along_axis(cost, order, axis=1)
    small = int(cost.sum(axis=1).max(initial=0)) < 2**29
    slot_cost = np.zeros((batches, ranks, slots), dtype=np.int32 if small else np.int64)
    slot_cost[rows, sorted_rank, slot] = sorted_cost

    block = max(1, _BLOCK // (ranks // 2 * slots**2))
    uneven = min(max(ranks // 16, _FEWEST_PAIRS), ranks // 2)
    for first in range(0, batches, block):
        part = slice(first, first + block)
        _exchange(slot_cost[part], structure[part], ranks // 2)
        for turn in range(_TURNS):
            _exchange(slot_cost[part], structure[part], uneven, turn + 1)

    result = np.empty((batches, size), dtype=np.int64)
    where = np.nonzero(structure >= 0)
    result[where[0], structure[where]] = where[1]
    return result


def _exchange(
    cost: Integer[np.ndarray, "batches ranks slots"],
    structure: Integer[np.ndarray, "batches ranks slots"],
    pairs: int,
    turn: int = 0,
) -> None:
    """One swap or move in each pair of ranks, made in place.

    Args:
        cost: cost in each slot of each rank.
        structure: what stands there, -1 for nothing.
        pairs: so many of the most and of the least loaded ranks are paired.
        turn: how far the least loaded are turned against the most loaded.
    """
    batches, _, slots = cost.shape
    load = cost.sum(axis=2, dtype=cost.dtype)
    order = np.argsort(load, axis=1, kind="stable")
    low, high = order[:, :pairs], order[:, ::-1][:, :pairs]  # (batches, pairs)
    low = np.roll(low, turn, axis=1)
    rows = np.arange(batches)[:, None]
    gap = load[rows, high] - load[rows, low]
    # Exchanging costs a and b changes the gap to |gap - 2 (a - b)|.
    leave = 2 * cost[rows, high] - gap[:, :, None]
    new_gap = leave[:, :, :, None] - 2 * cost[rows, low][:, :, None, :]
    np.abs(new_gap, out=new_gap)
    new_gap = new_gap.reshape(batches, pairs, slots * slots)
    best = new_gap.argmin(axis=2)
    better = np.take_along_axis(new_gap, best[:, :, None], axis=2)[:, :, 0] < gap
    batch, pair = np.nonzero(better)
    from_high, from_low = np.divmod(best[batch, pair], slots)
    one = batch, high[batch, pair], from_high
    other = batch, low[batch, pair], from_low
    for array in (cost, structure):
        array[one], array[other] = array[other], array[one]
