"""A structure as a store gives it: views of the mapped file, and the rest when it is asked for."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamm.structure import Structure


class Rows(Protocol):
    """Where the late fields are: `lamm.data.columns.Columns`."""

    def stress(self, row: int) -> NDArray[np.float64] | None:
        """(6,) stress of a row."""
        ...

    def fixed(self, row: int) -> NDArray[np.bool_] | None:
        """(N,) atoms of a row that were held still."""
        ...

    def split_name(self, row: int) -> str | None:
        """What the source says of a row: 'train', 'val', 'test' or nothing."""
        ...

    def name(self, row: int) -> tuple[str, str]:
        """Id and origin of a row."""
        ...


class StoredStructure(Structure):
    """A `Structure` whose arrays are read-only views of a shard.

    A training step reads a million structures and no id of any: strings, bit masks and what few
    stores have are decoded on first use. Everything else of a `Structure` holds, and pickled or
    copied it is a plain one.
    """

    _rows: Rows
    _row: int

    @cached_property
    def stress(self) -> NDArray[np.float64] | None:
        """(6,) in eV/Å³."""
        return self._rows.stress(self._row)

    @cached_property
    def fixed(self) -> NDArray[np.bool_] | None:
        """(N,) atoms that the source held still."""
        return self._rows.fixed(self._row)

    @cached_property
    def id(self) -> str:
        """Name within the store."""
        return self._rows.name(self._row)[0]

    @cached_property
    def origin(self) -> str:
        """File and record that the structure came from."""
        return self._rows.name(self._row)[1]

    @cached_property
    def split(self) -> str | None:
        """'train', 'val' or 'test' where the source says so."""
        return self._rows.split_name(self._row)

    def __reduce__(self) -> tuple[type[Structure], tuple[Any, ...]]:
        """Another process gets the structure alone, without the shard that it is in."""
        return Structure, tuple(getattr(self, field.name) for field in fields(Structure))
