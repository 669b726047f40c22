"""Columns of a plan index that take less memory than an array with an entry per structure.

Of hundreds of millions of structures, most columns are plain: all of a subset have forces, the
training structures are all rows but a few. Such a column answers like an array where it is asked
for some places, and nothing else is asked of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Integer, Shaped, UInt16

from lamm.errors import DataError

_MOST = np.iinfo(np.uint16).max


class Column(ABC):
    """A column that works out its values where they are asked for."""

    @abstractmethod
    def __len__(self) -> int:
        """Structures in the column."""

    @abstractmethod
    def __getitem__(self, places: Integer[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """The values at some places."""


class Computed(Column):
    """A column whose values a function of the places gives."""

    def __init__(
        self,
        size: int,
        at: Callable[[Integer[np.ndarray, "*shape"]], Shaped[np.ndarray, "*shape"]],
    ) -> None:
        self.size, self.at = size, at

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, places: Integer[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        return self.at(places)


class AllExcept(Column):
    """The numbers from 0 on of which some are missing; only the missing ones are stored."""

    def __init__(self, size: int, missing: Integer[np.ndarray, " missing"]) -> None:
        """Make the column.

        Args:
            size: how many numbers there are, with the missing ones.
            missing: what is missing, ascending.
        """
        self.size = size - len(missing)
        present_before = missing - np.arange(len(missing))
        self._present_before = present_before.astype(np.uint32 if size <= 2**32 else np.int64)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, places: Integer[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
        wanted = places.astype(self._present_before.dtype)
        skipped = np.searchsorted(self._present_before, wanted, side="right")
        numbers: Int64[np.ndarray, "*shape"] = places.astype(np.int64) + skipped
        return numbers


class Joined(Column):
    """Pieces one after another, for instance one of each subset."""

    def __init__(self, pieces: Sequence[Shaped[np.ndarray, " _"] | Column]) -> None:
        self.pieces = tuple(pieces)
        self.offsets = np.cumsum([0, *(len(piece) for piece in self.pieces)])
        """(pieces + 1,) where each piece starts, and the length at the end."""
        nothing = np.zeros(0, dtype=np.int64)
        self._dtype = np.result_type(*(piece[nothing].dtype for piece in self.pieces))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, places: Integer[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        piece_of = np.searchsorted(self.offsets[1:-1], places, side="right")
        result = np.empty(places.shape, dtype=self._dtype)
        for number in np.unique(piece_of).tolist():
            here = piece_of == number
            result[here] = self.pieces[number][places[here] - self.offsets[number]]
        return result


class Coarse(Column):
    """Integers in 16 bits each, rounded to multiples of a power of two where some are too large."""

    def __init__(self, codes: UInt16[np.ndarray, " _"], shift: int) -> None:
        self.codes, self.shift = codes, shift

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, places: Integer[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
        values: Int64[np.ndarray, "*shape"] = self.codes[places].astype(np.int64) << self.shift
        return values


def constant(value: Any, size: int) -> Shaped[np.ndarray, " size"]:
    """An array of one value that takes the memory of one; it can't be written to."""
    array: Shaped[np.ndarray, " size"] = np.broadcast_to(np.asarray(value), (size,))
    return array


def compact_mask(mask: Bool[np.ndarray, " size"]) -> Bool[np.ndarray, " size"]:
    """The mask itself, or where all of it agrees, one value that stands for all."""
    if len(mask) and (mask.all() or not mask.any()):
        return constant(mask[0], len(mask))
    return mask


def places_where(mask: Bool[np.ndarray, " _"]) -> Integer[np.ndarray, " _"] | Column:
    """Where a mask holds, ascending: as a column where that takes less memory than an array."""
    missing = len(mask) - int(np.count_nonzero(mask))
    if 2 * missing > len(mask):
        return np.flatnonzero(mask)
    if missing:
        return AllExcept(len(mask), np.flatnonzero(~mask))
    return Computed(len(mask), lambda places: places.astype(np.int64))


def moved(
    numbers: Integer[np.ndarray, " size"] | Column, by: int
) -> Integer[np.ndarray, " size"] | Column:
    """Numbers with `by` added to each."""
    return Computed(len(numbers), lambda places: numbers[places] + by)


def picked(
    values: Shaped[np.ndarray, " rows"], rows: Integer[np.ndarray, " size"] | Column
) -> Shaped[np.ndarray, " size"] | Column:
    """The values of some rows; what is `constant` stays so."""
    if len(values) and values.strides == (0,):
        return constant(values[0], len(rows))
    return Computed(len(rows), lambda places: values[rows[places]])


def coarse_shift(largest: int) -> int:
    """By how many bits numbers up to `largest` are shortened to fit into 16."""
    shift = 0
    while _rounded(largest, shift) > _MOST:
        shift += 1
    return shift


def coarse_codes(values: Integer[np.ndarray, " _"], shift: int) -> UInt16[np.ndarray, " _"]:
    """Positive integers as codes of a `Coarse` column: rounded, and at least 1.

    Raises:
        DataError: a number that doesn't fit.
    """
    codes = np.maximum(_rounded(values, shift), 1)
    if len(codes) and int(codes.max()) > _MOST:
        raise DataError(f"{int(values.max())} shortened by {shift} bits doesn't fit into 16 bits.")
    short: UInt16[np.ndarray, " _"] = codes.astype(np.uint16)
    return short


def coarse(values: Iterable[Integer[np.ndarray, " _"]], size: int, largest: int) -> Coarse:
    """Positive integers as a `Coarse` column, two bytes each.

    Args:
        values: the integers, some at a time.
        size: how many there are in all.
        largest: no integer is larger.
    """
    shift = coarse_shift(largest)
    codes = np.empty(size, dtype=np.uint16)
    filled = 0
    for some in values:
        codes[filled : filled + len(some)] = coarse_codes(some, shift)
        filled += len(some)
    return Coarse(codes, shift)


def _rounded(value: Any, shift: int) -> Any:
    return (value + ((1 << shift) >> 1)) >> shift


def spread_places(size: int, most: int) -> Int64[np.ndarray, " places"]:
    """At most so many places of a column, evenly spread from its first to its last."""
    places: Int64[np.ndarray, " places"] = np.unique(
        np.linspace(0, size - 1, most).astype(np.int64)
    )
    return places


def as_array(column: Shaped[np.ndarray, " size"] | Column) -> Shaped[np.ndarray, " size"]:
    """All of a column."""
    return column if isinstance(column, np.ndarray) else column[np.arange(len(column))]
