"""What an epoch uses: the training structures, how often each subset's, and in which order.

Nothing here is stored per use: any use of an epoch can be asked for by its place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, Integer

from lamm.balance.columns import Column, Joined, as_array
from lamm.data.sampling import SamplingConfig, SubsetStream, temperature_sizes
from lamm.errors import ConfigError, DataError
from lamm.keyed import key_of, permutation


@dataclass(frozen=True, eq=False)
class PlanIndex:
    """What a planner knows of each training structure: columns of one length, subset after subset.

    A column is an array, or where there are very many structures, a `lamm.balance.columns.Column`.

    Raises:
        DataError: no structure, lengths that differ, subsets out of order, a cost below 1.
    """

    # The lengths are compared below, with a message, and so the shapes here have no letter.

    ids: Integer[np.ndarray, " _"] | Column
    """Joint id of each training structure, no two alike."""
    subset: Integer[np.ndarray, " _"] | Joined
    """Subset of each structure, ascending from 0; pieces of a column are the subsets in order."""
    cost: Integer[np.ndarray, " _"] | Column
    """What a step spends on each structure, at least 1; see `lamm.balance.cost`."""
    has_energy: Bool[np.ndarray, " _"] | Column
    has_forces: Bool[np.ndarray, " _"] | Column
    num_atoms: Integer[np.ndarray, " _"] | Column | None = None
    """Atoms of each structure, by which `paper` sorts; where left out it sorts by cost."""
    sampling_weights: tuple[float, ...] | None = None
    """Factor on the uses of each subset in an epoch; 1 where left out."""

    def __post_init__(self) -> None:
        lengths = {
            name: len(column)
            for name, column in vars(self).items()
            if isinstance(column, np.ndarray | Column)
        }
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"plan index: columns of unequal length: {lengths}; expected one entry per "
                "training structure in each."
            )
        if len(self.ids) == 0:
            raise DataError(
                "plan index: no training structure. Check the subsets' splits and filters."
            )
        if isinstance(self.subset, np.ndarray):
            _check_order(self.subset)
        if isinstance(self.cost, np.ndarray) and self.cost.min() < 1:
            first = int(np.argmax(self.cost < 1))
            raise DataError(
                f"plan index: structure {int(self.ids[np.array([first])][0])} (entry {first}) has "
                f"cost {int(self.cost[first])}; expected at least 1."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def subset_offsets(self) -> Int64[np.ndarray, " offsets"]:
        """Where each subset starts, and the number of structures at the end."""
        if isinstance(self.subset, Joined):
            return self.subset.offsets
        num_subsets = int(self.subset[-1]) + 1
        return np.searchsorted(self.subset, np.arange(num_subsets + 1)).astype(np.int64)

    @property
    def num_subsets(self) -> int:
        """D, subsets up to the last that has a structure."""
        return len(self.subset_offsets) - 1

    def find(self, ids: Integer[np.ndarray, " uses"]) -> Int[np.ndarray, " uses"]:
        """The entry of each joint id.

        Raises:
            DataError: an id that no entry has.
        """
        own_ids = as_array(self.ids)
        order = np.argsort(own_ids, kind="stable")
        places = np.searchsorted(own_ids, ids, sorter=order)
        entries = order[np.minimum(places, len(order) - 1)]
        missing = np.flatnonzero(own_ids[entries] != ids)
        if len(missing):
            raise DataError(
                f"plan index: no structure has the joint id {int(ids[missing[0]])}. "
                "Was the plan made from another index?"
            )
        return entries


def _check_order(subset: Integer[np.ndarray, " _"]) -> None:
    falls = np.flatnonzero(subset[1:] < subset[:-1])
    if subset[0] < 0 or len(falls):
        entry = int(falls[0]) + 1 if len(falls) else 0
        raise DataError(
            f"plan index: subset {int(subset[entry])} at entry {entry} comes after "
            f"subset {int(subset[entry - 1]) if entry else 0}; expected subsets in "
            "ascending order from 0. Sort the structures by subset."
        )


@dataclass(frozen=True)
class BatchShape:
    """How large mini-batches are and over how many ranks they go."""

    ranks: int
    """W."""
    mini_batch_size: int
    """G, structures in a mini-batch."""
    segments: int | None = None
    """S, the segments that `paper` cuts an epoch into; `num_segments` chooses if left out."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"batches with {name}={value}; expected at least 1.")

    def num_steps(self, num_uses: int) -> int:
        """Mini-batches of at most G that hold `num_uses` structures."""
        return -(-num_uses // self.mini_batch_size)

    def num_segments(self, num_uses: int) -> int:
        """S for an epoch; no more than there are mini-batches.

        The paper gives no number. The more structures a segment has, the more alike are those of a
        chunk, and the less time is idle; the more segments, the less drifts the size of what is
        trained on. So: ten, but fewer where a segment would have less than 256 mini-batches, and
        more where it would have above four million structures to be sorted in memory.
        """
        steps = self.num_steps(num_uses)
        if self.segments is not None:
            return min(self.segments, steps)
        return max(min(10, steps // 256), -(-num_uses // 2**22), 1)


@dataclass(frozen=True, eq=False)
class Window:
    """Some consecutive steps of a plan."""

    entries: Integer[np.ndarray, " uses"]
    """Entry in the `PlanIndex` of each use, in order of (step, rank)."""
    passes: Int32[np.ndarray, " uses"]
    """Pass of its subset's stream that each use belongs to."""
    counts: Integer[np.ndarray, "steps ranks"]
    """Structures of each step and rank."""


def uses_of(index: PlanIndex, sampling: SamplingConfig) -> Int64[np.ndarray, " subsets"]:
    """Uses of each subset in an epoch, N_i'."""
    sizes = np.diff(index.subset_offsets)
    return temperature_sizes(sizes, sampling.temperature, index.sampling_weights)


class EpochUses:
    """Which structures an epoch uses, one use after another."""

    def __init__(
        self, index: PlanIndex, sampling: SamplingConfig, *, seed: int, epoch: int
    ) -> None:
        self.index = index
        self.seed, self.epoch = seed, epoch
        self.sizes = uses_of(index, sampling)
        """(D,) uses of each subset in an epoch, N_i'."""
        self.streams = tuple(
            SubsetStream(int(size), key_of("stream", seed, subset))
            for subset, size in enumerate(np.diff(index.subset_offsets))
        )
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        """(D + 1,) uses of the subsets before each one."""

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def key(self, *parts: int | str) -> int:
        """A key of this epoch for one purpose."""
        return key_of(*parts, self.seed, self.epoch)

    def _gather(
        self, places: Sequence[Integer[np.ndarray, " _"]]
    ) -> tuple[Int[np.ndarray, " uses"], Int32[np.ndarray, " uses"]]:
        """Entries and passes at places of this epoch's part of each subset's stream."""
        entries, passes = [], []
        for subset, some_places in enumerate(places):
            start = self.epoch * self.sizes[subset]
            local, pass_index = self.streams[subset].at(some_places + start)
            entries.append(local + self.index.subset_offsets[subset])
            passes.append(pass_index)
        return np.concatenate(entries), np.concatenate(passes)

    def between(
        self, first: Integer[np.ndarray, " subsets"], last: Integer[np.ndarray, " subsets"]
    ) -> tuple[Int[np.ndarray, " uses"], Int32[np.ndarray, " uses"]]:
        """Uses number `first` to `last` - 1 of each subset in this epoch, subset after subset.

        Returns:
            The entry in the index of each use, and its pass.
        """
        bounds: Iterable[tuple[int, int]] = zip(first.tolist(), last.tolist(), strict=True)
        return self._gather([np.arange(start, stop) for start, stop in bounds])

    def permuted(
        self, first: int, last: int
    ) -> tuple[Int[np.ndarray, " uses"], Int32[np.ndarray, " uses"]]:
        """Uses number `first` to `last` - 1 of the whole epoch in a keyed random order.

        Returns:
            The entry in the index of each use, and its pass.
        """
        order = permutation(len(self), self.key("epoch order"))
        places = order(np.arange(first, last))
        by_place = np.argsort(places, kind="stable")
        cuts = np.searchsorted(places[by_place], self.offsets)
        parts = [
            places[by_place[start:stop]] - offset
            for start, stop, offset in zip(cuts[:-1], cuts[1:], self.offsets, strict=False)
        ]
        entries, passes = self._gather(parts)
        back = np.argsort(by_place, kind="stable")
        return entries[back], passes[back]
