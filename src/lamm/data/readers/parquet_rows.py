"""Rows of a Parquet file with their lists as NumPy arrays, in batches."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from lamm.errors import DataError

BATCH_ROWS: Final = 1000

Value: TypeAlias = Any
"""A number, a text, an array of all numbers of a list, or None."""


def open_parquet(path: Path) -> parquet.ParquetFile:
    """Open a file.

    Raises:
        DataError: it is damaged or no Parquet file.
    """
    try:
        return parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: not a Parquet file, or cut short ({error}). Fetch it again."
        ) from error


def read_rows(
    file: parquet.ParquetFile, columns: list[str], start: int, stop: int | None
) -> Iterator[dict[str, Value]]:
    """Rows from `start` to before `stop`; row groups without any of them aren't read.

    Args:
        file: an open file.
        columns: names of the columns that are read.
        start: number of the first row.
        stop: number of the first row that isn't read; to the end where left out.

    Raises:
        DataError: the file is damaged.
    """
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    begins = np.cumsum([0, *sizes]).tolist()
    stop = begins[-1] if stop is None else min(stop, begins[-1])
    groups = [
        group
        for group, begin in enumerate(begins[:-1])
        if begin < stop and begins[group + 1] > start
    ]
    number = begins[groups[0]] if groups else 0
    try:
        for batch in file.iter_batches(
            BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False
        ):
            first, last = max(start - number, 0), min(stop - number, batch.num_rows)
            number += batch.num_rows
            if first < last:
                yield from _rows_of(batch.slice(first, last - first))
            if number >= stop:
                return
    except pa.ArrowInvalid as error:
        raise DataError(f"row {number}: the file is damaged ({error}). Fetch it again.") from error


def _rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Value]]:
    cells = {name: _Cells(batch.column(name)) for name in batch.schema.names}
    for row in range(batch.num_rows):
        yield {name: column.value(row) for name, column in cells.items()}


class _Cells:
    """A column of a batch, with the values of lists as NumPy arrays."""

    def __init__(self, column: pa.Array) -> None:
        self.is_valid: list[bool] = column.is_valid().to_pylist()
        self.bounds: NDArray[np.int64] | None = None
        self.values: Any = None
        if pa.types.is_nested(column.type) and not pa.types.is_struct(column.type):
            self.bounds, flat = _flatten(column)
            numeric = pa.types.is_primitive(flat.type)
            self.values = flat.to_numpy(zero_copy_only=False) if numeric else flat.to_pylist()
        else:
            self.values = column.to_pylist()

    def value(self, row: int) -> Value:
        """What a row has: a number, a text, an array of all numbers of a list; None for a null."""
        if not self.is_valid[row]:
            return None
        if self.bounds is None:
            value = self.values[row]
            return None if value != value else value  # NaN is what pandas writes for a null
        return self.values[self.bounds[row] : self.bounds[row + 1]]


def _flatten(column: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Bounds of the rows in the values of lists of any depth, and these values."""
    bounds = np.arange(len(column) + 1)
    while pa.types.is_nested(column.type):
        if pa.types.is_fixed_size_list(column.type):
            bounds = (bounds + column.offset) * column.type.list_size
        else:
            bounds = column.offsets.to_numpy()[bounds].astype(np.int64)
        column = column.values
    return bounds, column


def first_value(file: parquet.ParquetFile, column: str) -> Value:
    """What the first row of a file has in a column; None where there is none."""
    if column not in file.schema_arrow.names or not file.metadata.num_rows:
        return None
    batches = file.iter_batches(1, columns=[column], use_threads=False)
    return next(batches).column(0)[0].as_py()


def as_floats(value: Any) -> NDArray[np.floating[Any]]:
    """Numbers in the precision that they have, if that is a floating one."""
    values = np.asarray(value)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def as_array(value: Value, name: str, convert: Callable[[Any], NDArray[Any]]) -> NDArray[Any]:
    """An array of a value, which may be a list written as text.

    Raises:
        DataError: it is a null, or can't be one.
    """
    if value is None:
        raise DataError(f"'{name}' is null, and every structure has one.")
    try:
        return convert(_parsed(value) if isinstance(value, str) else value)
    except (ValueError, TypeError, SyntaxError):
        raise DataError(f"'{name}' is {str(value)[:80]!r}, expected numbers.") from None


def _parsed(text: str) -> Any:
    """A list that is written as JSON or as Python writes it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return ast.literal_eval(text)
