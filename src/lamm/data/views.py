"""Columns of an Arrow record batch as they lie in memory, or in a mapped file: no copy is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Lists:
    """A list column as flat numbers, and where each row's begin."""

    __slots__ = ("nulls", "offsets", "starts", "values", "width")

    def __init__(self, array: pa.ListArray, width: int = 1) -> None:
        """`width` numbers belong to one atom: 3 for positions, given back as (atoms, 3)."""
        self.nulls, self.width = nulls_of(array), width
        self.offsets, flat = _parts(array)
        # What a memory view holds comes out as a Python number, sooner than from numpy.
        self.starts = self.offsets.data
        values: NDArray[Any] = flat.to_numpy()
        self.values = values.reshape(-1, width) if width > 1 else values

    def __getitem__(self, row: int) -> NDArray[Any] | None:
        if self.nulls is not None and self.nulls[row]:
            return None
        return self.values[self.starts[row] // self.width : self.starts[row + 1] // self.width]


class Masks:
    """A list column of booleans, eight to a byte as Arrow has them, unpacked row by row.

    All of a large data set's, unpacked, would fill the memory of every process that reads it.
    """

    __slots__ = ("_array", "bits", "first", "nulls", "starts")

    def __init__(self, array: pa.ListArray) -> None:
        self.nulls = nulls_of(array)
        offsets, self._array = _parts(array)
        self.starts, self.first = offsets.data, self._array.offset
        _, buffer = self._array.buffers()
        self.bits = np.frombuffer(buffer, np.uint8) if buffer else np.zeros(0, np.uint8)

    def __getitem__(self, row: int) -> NDArray[np.bool_] | None:
        if self.nulls is not None and self.nulls[row]:
            return None
        start, stop = self.starts[row] + self.first, self.starts[row + 1] + self.first
        packed = self.bits[start >> 3 : (stop + 7) >> 3]
        unpacked = np.unpackbits(packed, bitorder="little").view(np.bool_)
        unpacked.flags.writeable = False
        return unpacked[start & 7 : (start & 7) + stop - start]

    @property
    def flat(self) -> NDArray[np.bool_]:
        """All rows, one after the other."""
        return np.asarray(self._array.to_numpy(zero_copy_only=False))


def _parts(array: pa.ListArray) -> tuple[NDArray[np.int32], pa.Array]:
    """Where the rows of a list column begin, from 0, and its flat values."""
    offsets = array.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    return (offsets - first if first else offsets), array.values.slice(first, last - first)


class Nulls:
    """Which rows of a column are null, one by one from the column's bit mask."""

    __slots__ = ("bits", "first")

    def __init__(self, array: pa.Array) -> None:
        self.bits = memoryview(array.buffers()[0]).cast("B")
        self.first = array.offset

    def __getitem__(self, row: int) -> bool:
        place = row + self.first
        return not self.bits[place >> 3] >> (place & 7) & 1


def nulls_of(array: pa.Array) -> Nulls | None:
    """Which rows of a column are null; None where none is."""
    return Nulls(array) if array.null_count else None


def flat_values(array: pa.Array, dtype: type[np.generic]) -> NDArray[Any]:
    """Numbers of a column without a copy; where it is null, whatever stands there."""
    _, buffer = array.buffers()
    values: NDArray[Any] = np.frombuffer(buffer, dtype, len(array) + array.offset)
    return values[array.offset :]


def matrices(array: pa.FixedSizeListArray, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(S, *shape) numbers of a column of lists of one length."""
    size = int(np.prod(shape))
    start = array.offset * size
    flat = flat_values(array.values, np.float64)[start : start + len(array) * size]
    return flat.reshape(-1, *shape)
