"""Splits that keep together what is nearly the same: copies, and frames of one trajectory.

A held-out frame between two training frames says how well a model interpolates, not how it fares on
something new. So whole groups are held out, where the structures let groups be told.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lamm.data.doctor.blocks import read_blocks
from lamm.data.doctor.fingerprints import fingerprints
from lamm.data.splits import TEST, TRAIN, VAL
from lamm.data.store import Store

NEAR = 2e-3
"""Å; structures of one composition whose fingerprints differ by less are copies or nearly so."""
LARGEST = 0.1
"""Share of the structures above which a system is cut into blocks of neighbouring frames: a group
as large as the validation split would leave nothing to choose."""
LEAST_ATOMS = 3
"""Atoms below which the same atoms in the same order are no sign of a common trajectory."""


def group_structures(store: Store) -> NDArray[np.int64]:
    """The group of each structure, numbered from 0 in the order in which groups appear.

    Structures of the same atoms in the same order and the same periodic directions are frames of
    one system. A system with more than `LARGEST` of all is cut into blocks of frames that follow
    each other. Copies of a structure go where the structure goes; systems that aren't cut and have
    copies of each other's structures are one.
    """
    parts = [(fingerprints(block), block.sizes) for block in read_blocks(store)]
    order = np.concatenate([found.order for found, _ in parts])
    composition = np.concatenate([found.composition for found, _ in parts])
    lengths = np.concatenate([found.lengths for found, _ in parts])
    sizes = np.concatenate([size for _, size in parts])
    count = len(order)
    group = np.unique(order, return_inverse=True)[1].astype(np.int64)
    small = sizes < LEAST_ATOMS
    group[small] = count + np.flatnonzero(small)

    blocks, is_cut = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    most = max(int(LARGEST * count), 1)
    for one in np.unique(group):
        rows = np.flatnonzero(group == one)
        if len(rows) > most:
            num_blocks = min(-(-len(rows) // most), len(rows))
            blocks[rows] = np.arange(len(rows)) * num_blocks // len(rows)
            is_cut[rows] = True
    group = np.unique(np.column_stack((group, blocks)), axis=0, return_inverse=True)[1].reshape(-1)
    return _in_order(_with_copies(group.astype(np.int64), is_cut, composition, lengths))


class _Sets:
    """Disjoint sets of the numbers from 0; the least of a set stands for it."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def first(self, one: int) -> int:
        """The least number in the set of `one`."""
        parent = self._parent
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = int(parent[one])
        return one

    def join(self, one: int, other: int) -> None:
        """Make two sets one."""
        low, high = sorted((self.first(one), self.first(other)))
        self._parent[high] = low

    def firsts(self) -> NDArray[np.int64]:
        """`first` of every number."""
        return np.array([self.first(one) for one in range(len(self._parent))], dtype=np.int64)


def _with_copies(
    group: NDArray[np.int64],
    is_cut: NDArray[np.bool_],
    composition: NDArray[np.uint64],
    lengths: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Nearly the same structures come into one group, by joining groups that are whole systems.

    Blocks of a system that was cut aren't joined: a few copies among frames in no order would make
    one of nearly all of them. The copies alone go to where the first of them is.
    """
    groups, rows = _Sets(int(group.max()) + 1), _Sets(len(group))
    sorted_rows = np.lexsort((lengths[:, 0], composition))
    before, after = sorted_rows[:-1], sorted_rows[1:]
    near = (composition[before] == composition[after]) & (
        np.abs(lengths[before] - lengths[after]) < NEAR
    ).all(axis=1)
    for one, other in zip(before[near].tolist(), after[near].tolist(), strict=True):
        if is_cut[one] or is_cut[other]:
            rows.join(one, other)
        else:
            groups.join(int(group[one]), int(group[other]))
    joined: NDArray[np.int64] = groups.firsts()[group]
    return joined[rows.firsts()]


def _in_order(group: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def split_groups(
    group: NDArray[np.int64], val_fraction: float, test_fraction: float, seed: int = 0
) -> NDArray[np.uint8]:
    """Splits of whole groups, as near to the shares as groups allow.

    Args:
        group: the group of each structure, from 0.
        val_fraction: wanted share for validation.
        test_fraction: wanted share for testing.
        seed: which groups.

    Returns:
        1 train, 2 val, 3 test. Validation has at least one group and training too, if there are
        two or more.
    """
    sizes = np.bincount(group)
    split = np.full(len(sizes), TRAIN, dtype=np.uint8)
    shuffled = np.random.default_rng([seed, len(sizes)]).permutation(len(sizes))
    left = len(sizes)
    for code, fraction in ((VAL, val_fraction), (TEST, test_fraction)):
        wanted, taken = fraction * len(group), 0
        for one in shuffled:
            if left < 2 or taken >= wanted:
                break
            # A group that goes far beyond the share waits, unless there is no other.
            if split[one] == TRAIN and taken + sizes[one] <= 1.5 * wanted + 1:
                split[one], taken, left = code, taken + int(sizes[one]), left - 1
        if code == VAL and not taken and left >= 2:
            smallest = int(np.argmin(sizes))
            split[smallest], left = VAL, left - 1
    return split[group]
