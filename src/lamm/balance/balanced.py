"""Our planner: mini-batches that agree in composition and total cost, ranks that agree in load.

1. Each subset is an endless stream of random passes (`lamm.data.sampling.SubsetStream`).
2. A window of K mini-batches takes from each stream its share, rounded so that the sums are exact
   and no subset is ever a whole structure away from its share at a window's edge.
3. The window is sorted by (subset, cost) and cut into strata of K neighbours; each mini-batch gets
   one structure of each stratum, hence the same composition. (The dearest few are an exception:
   see `gather_dear`.) The mini-batches of the last window have a little less than G structures
   each, where the epoch isn't a multiple of G: no step is left with a few structures for all ranks.
4. In a stratum the dearest structure goes to the mini-batch that is cheapest so far. Strata are
   visited in random order, the ones of very different costs first; then the mini-batches are
   shuffled, except that in a window that K doesn't divide those with one structure more come first.
5. In a mini-batch the structures go to the least loaded rank, largest first, and pairs of ranks
   then exchange structures.

Only step 5 knows the number of ranks: a run goes on over another number of ranks with the same
mini-batches, as long as their size G is the same.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int, Integer

from lamm.balance.assign import least_loaded, refined
from lamm.balance.order import stable_order
from lamm.balance.planners import Rows, rank_window
from lamm.balance.uses import BatchShape, EpochUses, Window
from lamm.balance.windows import EpochWindows
from lamm.keyed import hash64, shuffled

MIN_STEPS, MIN_STRUCTURES = 64, 2**15
"""A window has at least so many mini-batches and structures: the means of windows agree too."""
DEAR = (3.5, 4.2, 5.0, 6.0, 7.5, 10.0)
"""Structures dearer than so many mean costs come together in few mini-batches: the first of these
with which the mini-batches cost as much as each other, or none.

Where a rank gets four structures, one of 3.5 is already about its share, and the step waits for it.
Two in one mini-batch cost no more time than one, and spare another mini-batch the wait.
"""
UNEVEN = 1.025
"""Cost of the dearest mini-batch beside the mean, up to which mini-batches count as even."""


def balanced(uses: EpochUses, shape: BatchShape) -> EpochWindows:
    """Stratified mini-batches in random order, with loads that agree among ranks and steps."""
    steps = window_edges(shape.num_steps(len(uses)), window_steps(shape.mini_batch_size))
    first_steps = np.array(steps, dtype=np.int64)
    quotas = Quotas(uses.sizes, np.minimum(first_steps * shape.mini_batch_size, len(uses)))

    def make(number: int) -> Window:
        taken, quota = quotas[number], quotas[number + 1]
        entries, passes = uses.between(taken, quota)
        subset = np.repeat(np.arange(len(quota)), quota - taken)
        cost = uses.index.cost[entries].astype(np.int64)
        order = by_subset_and_cost(cost, quota - taken)
        num_batches = int(first_steps[number + 1] - first_steps[number])
        pairs = []
        for places in deal(cost[order], subset, num_batches, uses.key("window", number)):
            if places.size:
                use = order[places]
                rank = least_loaded(cost[use], shape.ranks)
                pairs.append((use, refined(cost[use], rank, shape.ranks)))
        return rank_window(pairs, entries, passes, shape.ranks)

    return EpochWindows(first_steps, make)


def by_subset_and_cost(
    cost: Int[np.ndarray, " uses"], counts: Int[np.ndarray, " subsets"]
) -> Int[np.ndarray, " uses"]:
    """Order by cost within each subset.

    Args:
        cost: costs, subset after subset.
        counts: how many of each subset there are.
    """
    edges = np.concatenate([[0], np.cumsum(counts)]).tolist()
    parts = [stable_order(cost[first:last]) + first for first, last in pairwise(edges)]
    return np.concatenate(parts)


def window_steps(mini_batch_size: int) -> int:
    """K, the mini-batches in a window: 64, or more where they are small."""
    return max(MIN_STEPS, -(-MIN_STRUCTURES // mini_batch_size))


def window_edges(steps: int, window: int) -> list[int]:
    """First step of each window, and the number of steps at the end.

    A last window of less than a quarter joins the one before: few mini-batches can't be made to
    agree with the others.
    """
    edges = list(range(0, steps, window))
    if len(edges) > 1 and 4 * (steps - edges[-1]) < window:
        edges.pop()
    return [*edges, steps]


class Quotas:
    """`cumulative_quotas` by the number of the edge: arithmetic alone, and each edge once."""

    def __init__(
        self, sizes: Integer[np.ndarray, " subsets"], edges: Integer[np.ndarray, " edges"]
    ) -> None:
        self._following = cumulative_quotas(sizes, edges)
        self._known: list[Int[np.ndarray, " subsets"]] = []

    def __getitem__(self, edge: int) -> Int[np.ndarray, " subsets"]:
        """Uses of each subset up to an edge."""
        while len(self._known) <= edge:
            self._known.append(next(self._following))
        return self._known[edge]


def cumulative_quotas(
    sizes: Integer[np.ndarray, " subsets"], edges: Integer[np.ndarray, " edges"]
) -> Iterator[Int[np.ndarray, " subsets"]]:
    r"""Uses of each subset up to each edge: its share, rounded down or up.

    With :math:`N_i'` uses of subset i among all :math:`U`, the quota at edge P is
    :math:`P N_i' / U` rounded down or up so that the quotas add up to P. What one subset was given
    is never taken back, so a rare subset that was rounded up stays there until its share has come
    along. Of the subsets that may be rounded up, those go first whose next use is due first, which
    never leaves one without its due later (earliest deadline first is optimal for unit jobs).

    Args:
        sizes: N_i', uses of each subset in the epoch.
        edges: ascending numbers of uses from 0 to U.

    Yields:
        The quotas at each edge.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    total = int(sizes.sum())
    quota = np.zeros_like(sizes)
    for edge in edges.tolist():
        share = edge * sizes
        quota = np.maximum(quota, share // total)
        may_grow = np.flatnonzero(quota * total < share)
        due = -(-(quota[may_grow] + 1) * total // sizes[may_grow])
        first_due = may_grow[np.argsort(due, kind="stable")]
        quota[first_due[: edge - int(quota.sum())]] += 1
        yield quota.copy()


def deal(
    cost: Int[np.ndarray, " uses"], subset: Int[np.ndarray, " uses"], num_batches: int, key: int
) -> tuple[Rows, Rows]:
    """Deal a window to its mini-batches, one structure of each stratum to each (steps 3 and 4).

    Args:
        cost: costs in order of (subset, cost).
        subset: subset of each.
        num_batches: K, at most as many as there are structures.
        key: decides the order of the strata and of the mini-batches.

    Returns:
        Places in `cost` of the mini-batches that have one structure more than the others, none
        where K divides the window; and of the others.
    """
    strata, left_over = cut_strata(len(cost), num_batches)
    strata = np.take_along_axis(strata, np.argsort(-cost[strata], axis=1, kind="stable"), axis=1)
    left_over = left_over[np.argsort(-cost[left_over], kind="stable")]
    for dear in (*DEAR, np.inf):
        dealt, larger, total = deal_strata(strata.copy(), left_over, cost, subset, dear, key)
        if total.max() <= UNEVEN * total.mean():
            break
    mini_batch_key = int(hash64(np.array([1]), key)[0])
    others = shuffled(num_batches, mini_batch_key)
    others = others[~np.isin(others, larger)]
    return np.column_stack([dealt[larger], left_over]), dealt[others]


def deal_strata(
    strata: Int[np.ndarray, "strata batches"],
    left_over: Int[np.ndarray, " rest"],
    cost: Int[np.ndarray, " uses"],
    subset: Int[np.ndarray, " uses"],
    dear: float,
    key: int,
) -> tuple[
    Int[np.ndarray, "batches strata"], Int[np.ndarray, " rest"], Int[np.ndarray, " batches"]
]:
    """Give each mini-batch one structure of each stratum, the dearest to the cheapest so far.

    Args:
        strata: places in `cost`, each stratum from dear to cheap; rearranged by `gather_dear`.
        left_over: places of structures for some of the mini-batches, from dear to cheap.
        cost: costs in order of (subset, cost).
        subset: subset of each.
        dear: mean costs from which structures are gathered.
        key: decides the order of the strata.

    Returns:
        Places of each mini-batch, without those left over; which mini-batches get these; and the
        cost of each with them.
    """
    together = gather_dear(strata, cost, subset, dear)
    stratum_cost = cost[strata]
    total = stratum_cost[together].sum(axis=0)
    larger = total.argsort(kind="stable")[: len(left_over)]
    total[larger] += cost[left_over]  # the strata make up for it
    goes_to = np.empty_like(strata)
    goes_to[together] = np.arange(strata.shape[1])
    spread = cost[strata[:, 0]] - cost[strata[:, -1]]
    order = visiting_order(spread, key)
    for stratum in order[~together[order]].tolist():
        cheapest_first = total.argsort(kind="stable")
        goes_to[stratum] = cheapest_first
        total[cheapest_first] += stratum_cost[stratum]
    dealt = np.empty_like(strata)
    np.put_along_axis(dealt, goes_to, strata, axis=1)
    return dealt.T, larger, total


def cut_strata(
    num_uses: int, num_batches: int
) -> tuple[Int[np.ndarray, "strata batches"], Int[np.ndarray, " rest"]]:
    """Cut a sorted window into strata of K neighbours.

    Args:
        num_uses: structures in the window.
        num_batches: K.

    Returns:
        Places of each stratum, (strata, K); and less than K evenly spread ones that are left over.
    """
    size, rest = divmod(num_uses, num_batches)
    left_over = (2 * np.arange(rest) + 1) * num_uses // (2 * max(rest, 1))
    strata = np.delete(np.arange(num_uses), left_over).reshape(size, num_batches)
    return strata, left_over


def gather_dear(
    strata: Int[np.ndarray, "strata batches"],
    cost: Int[np.ndarray, " uses"],
    subset: Int[np.ndarray, " uses"],
    mean_costs: float,
) -> Bool[np.ndarray, " strata"]:
    """Rearrange the dearest structures of each subset, in place, so that like goes with like.

    Of m neighbouring strata, in order of cost, a mini-batch gets m neighbours and not one of each.
    How many it gets, and with that the composition, stays.

    Args:
        strata: places in `cost`, each stratum from dear to cheap.
        cost: costs in order of (subset, cost).
        subset: subset of each.
        mean_costs: from which a structure is dear.

    Returns:
        Which strata are done: column j is for mini-batch j.
    """
    dear = cost[strata] > mean_costs * int(cost.sum()) / len(cost)
    one_kind = subset[strata[:, 0]] == subset[strata[:, -1]]
    done: Bool[np.ndarray, " strata"] = dear.all(axis=1) & one_kind
    for one_subset in np.unique(subset[strata[done, 0]]):
        rows = np.flatnonzero(done & (subset[strata[:, 0]] == one_subset))
        beyond = min(int(rows[-1]) + 1, len(strata) - 1)  # where the next subset begins
        extra = int((dear[beyond] & (subset[strata[beyond]] == one_subset)).sum())
        extra = 0 if done[beyond] else extra
        descending = np.concatenate([strata[beyond, :extra], strata[rows[::-1]].ravel()])
        # The first `extra` mini-batches get one more than the others.
        more = descending[: extra * (len(rows) + 1)].reshape(extra, len(rows) + 1)
        others = descending[more.size :].reshape(-1, len(rows))
        strata[rows] = np.concatenate([more[:, 1:], others]).T
        if extra:
            strata[beyond, :extra] = more[:, 0]
            done[beyond] = True
    return done


def visiting_order(spread: Int[np.ndarray, " strata"], key: int) -> Int[np.ndarray, " strata"]:
    """Strata in keyed random order, those whose costs differ much before those that can mend it.

    Args:
        spread: largest minus smallest cost in each stratum; compared by its power of two.
        key: decides the order.
    """
    order = shuffled(len(spread), key)
    magnitude = np.frexp(spread[order].astype(np.float64))[1]
    widest_first: Int[np.ndarray, " strata"] = order[np.argsort(-magnitude, kind="stable")]
    return widest_first
