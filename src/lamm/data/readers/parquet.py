"""Parquet tables with a structure per row: ColabFit's layout, and any other with declared columns.

ColabFit's tables (``co/co_0.parquet`` of its sets on Hugging Face) have ``atomic_numbers``,
``positions``, ``cell``, ``pbc``, ``energy``, ``atomic_forces`` and ``cauchy_stress`` in eV and Å,
and say with ``method`` how a row was calculated. Lists may be nested (``[[x, y, z], ...]``), flat,
or written as text. A null is a label that a row doesn't have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet
from pydantic import Field

from lamm.data.cards import CardHeader
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    SkippedRecord,
    choose_key,
    element_numbers,
    label_value,
    reader_options,
    reading,
)
from lamm.data.readers.extxyz import USUAL_KEYS
from lamm.data.readers.format import OnError
from lamm.data.readers.molfile import NoStructureError, element_number
from lamm.data.readers.parquet_rows import (
    Value,
    as_array,
    as_floats,
    first_value,
    open_parquet,
    read_rows,
)
from lamm.data.readers.sdf import passing_over
from lamm.data.splits import split_named
from lamm.errors import ConfigError, DataError
from lamm.schema import Frozen
from lamm.structure import Structure

SUFFIXES: Final = (".parquet",)
LABELS: Final = {
    "energy": USUAL_KEYS["energy"],
    "forces": ("atomic_forces", *USUAL_KEYS["forces"]),
    "stress": USUAL_KEYS["stress"],
}
"""Columns that labels are looked for in where the card names none. ColabFit's ``cauchy_stress`` has
the sign and the unit of the set that it comes from: it is a label only where the card says so."""
STRESS: Final = "cauchy_stress"
NORMALIZED: Final = "cauchy_stress_volume_normalized"
"""True where ColabFit's stress was multiplied by the volume of the cell."""
IDS: Final = ("id", "property_id", "configuration_id")
METHOD: Final = "method"


class ParquetColumns(Frozen):
    """What a table calls the columns of a structure."""

    atomic_numbers: str = "atomic_numbers"
    """Numbers or symbols of the elements."""
    positions: str = "positions"
    cell: str | None = "cell"
    """Rows are the lattice vectors; null for a table of molecules."""
    pbc: str | None = "pbc"


class ParquetOptions(Frozen):
    """What the card may say to this reader."""

    columns: ParquetColumns = ParquetColumns()
    """Names of ``atomic_numbers``, ``positions``, ``cell`` and ``pbc``."""
    where: dict[str, str] = Field(default_factory=dict)
    """Only rows with these values, such as ``{method: DFT-PBE}``; others are passed over."""
    stress_times_volume: bool | None = None
    """Whether stresses are multiplied by the volume of the cell; by ColabFit's column
    ``cauchy_stress_volume_normalized`` where left out."""


def read_parquet(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: OnError = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read structures from a Parquet file, in eV and Å; see `Reader` in `format.py`.

    Labels are looked for in every row: the ones that ``header.labels`` promises, or all; ColabFit's
    stress where it is promised or named. Rows of another ``method`` than the first are an error,
    since a subset has one level of theory: choose with ``where``.
    """
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    options = reader_options(header, ParquetOptions)
    with reading(path), open_parquet(path) as file:
        build = _Builder(header, options, file, found)
        records = (
            (f"row {number}", f"{name}:{number}", row)
            for number, row in enumerate(read_rows(file, build.columns, start, stop), start)
        )
        yield from passing_over(path, records, build, on_error)


def count_parquet(path: str | Path, header: CardHeader) -> int:
    """How many rows a file has, by its footer.

    Raises:
        DataError: the file can't be read.
    """
    with reading(Path(path)), open_parquet(Path(path)) as file:
        return int(file.metadata.num_rows)


class _Builder:
    """Makes structures of rows.

    Args:
        header: labels, keys and units.
        options: what the card says to the reader.
        file: the table.
        found: is told what it has.

    Raises:
        ConfigError: a column that the card names isn't in the table.
    """

    def __init__(
        self,
        header: CardHeader,
        options: ParquetOptions,
        file: parquet.ParquetFile,
        found: KeysFound,
    ) -> None:
        self.header, self.options, self.found = header, options, found
        self.names = options.columns
        self.factors = header.units.factors()
        present = list(file.schema_arrow.names)
        found.see(present)
        self._check_columns(present)
        self.usual = dict(LABELS)
        if header.labels is not None and "stress" in header.labels:
            self.usual["stress"] = (STRESS, *LABELS["stress"])
        self.labels = ("energy", "forces", "stress") if header.labels is None else header.labels
        self.id_columns = IDS if header.keys.id is None else (header.keys.id,)
        self.split = header.keys.split or "split"
        self.fixed = header.keys.fixed or "fixed"
        wanted = {
            *(name for _, name in self.names if name is not None),
            *(name for label in self.labels for name in self._candidates(label)),
            *self.id_columns,
            *(self.split, self.fixed, METHOD, NORMALIZED, *options.where),
        }
        self.columns = [name for name in present if name in wanted]
        self.method = first_value(file, METHOD) if METHOD not in options.where else None

    def _candidates(self, label: str) -> tuple[str, ...]:
        named = getattr(self.header.keys, label)
        return self.usual[label] if named is None else (named,)

    def _check_columns(self, present: list[str]) -> None:
        """See that what the card names is there, and what every structure needs."""
        keys = self.header.keys
        named = {f"keys.{key}": name for key, name in keys if name not in (None, IGNORED)}
        named |= {f"reader.where.{name}": name for name in self.options.where}
        always = {"atomic_numbers", "positions"} | self.names.model_fields_set
        named |= {f"reader.columns.{key}": name for key, name in self.names if key in always}
        for place, name in named.items():
            if name is not None and name not in present:
                raise ConfigError(
                    f"no column '{name}' (`{place}`) in the table; it has: {', '.join(present)}.\n"
                    "  Name the right column in the card. ColabFit's structures are in "
                    "`co/co_*.parquet`; its `ds.parquet` describes the set."
                )

    def __call__(self, row: Mapping[str, Value], origin: str) -> Structure:
        """The structure of a row.

        Raises:
            DataError: the row can't be a structure, lacks a label, or has another method.
            NoStructureError: the row is not among those that the card asks for.
        """
        self._check_chosen(row)
        numbers = self._numbers(row)
        values = self._labels(row, len(numbers))
        cell, pbc = self._cell(row)
        if values.get("stress") is not None and self._is_times_volume(row):
            volume = abs(float(np.linalg.det(cell)))
            if not volume:
                raise DataError("its stress is multiplied by the volume, and it has no cell.")
            values["stress"] = values["stress"] / volume
        return Structure(
            atomic_numbers=numbers,
            positions=self._per_atom(row, self.names.positions, len(numbers))
            * self.factors["length"],
            cell=cell,
            pbc=pbc,
            energy=values.get("energy"),
            forces=values.get("forces"),
            stress=values.get("stress"),
            fixed=self._fixed(row, len(numbers)),
            id=self._id(row) or origin,
            origin=origin,
            split=self._split(row),
        )

    def _check_chosen(self, row: Mapping[str, Value]) -> None:
        for name, wanted in self.options.where.items():
            if str(row[name]) != wanted:
                raise NoStructureError(
                    f"'{name}' is {row[name]!r}, and `reader.where` asks for {wanted!r}."
                )
        if self.method is not None and row[METHOD] != self.method:
            raise DataError(
                f"its method is {row[METHOD]!r}, and {self.method!r} in the first row; a set has "
                "one level of theory.\n  Choose it with `reader: {where: {method: "
                f"{self.method}}}}}` in the card."
            )

    def _numbers(self, row: Mapping[str, Value]) -> NDArray[np.uint8]:
        """(N,) atomic numbers, of numbers or symbols."""
        values = as_array(row[self.names.atomic_numbers], self.names.atomic_numbers, np.asarray)
        if values.dtype.kind in "OU":
            return np.array([element_number(one, i) for i, one in enumerate(values)], np.uint8)
        return element_numbers(values.reshape(-1))

    def _per_atom(
        self, row: Mapping[str, Value], name: str, num_atoms: int
    ) -> NDArray[np.floating[Any]]:
        """(N, 3) of a column, in its own precision."""
        values = as_array(row[name], name, as_floats)
        if values.size != 3 * num_atoms:
            raise DataError(
                f"'{name}' has {values.size} numbers, expected 3 for each of {num_atoms} atoms."
            )
        return values.reshape(num_atoms, 3)

    def _labels(self, row: Mapping[str, Value], num_atoms: int) -> dict[str, Any]:
        present = [name for name, value in row.items() if value is not None]
        values: dict[str, Any] = {}
        for label in self.labels:
            named = getattr(self.header.keys, label)
            promised = self.header.labels is not None or named is not None
            key = choose_key(label, named, self.usual[label], present, promised)
            if key is None:
                continue
            self.found.note(label, key)
            if label == "forces":
                value = self._per_atom(row, key, num_atoms).astype(np.float64)
            else:
                value = label_value(label, key, as_array(row[key], key, as_floats))
            values[label] = value * self.factors[label]
        return values

    def _cell(self, row: Mapping[str, Value]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(3, 3) lattice vectors in Å and (3,) which of them repeat.

        A table without ``pbc`` has structures that repeat along every lattice vector, unless the
        card says that none is periodic.
        """
        cell = np.zeros((3, 3))
        if self.names.cell is not None and row.get(self.names.cell) is not None:
            values = as_array(row[self.names.cell], self.names.cell, as_floats)
            if values.size != 9:
                raise DataError(f"'{self.names.cell}' has {values.size} numbers, expected 3x3.")
            cell = values.reshape(3, 3).astype(np.float64) * self.factors["length"]
        if self.names.pbc is not None and row.get(self.names.pbc) is not None:
            repeats = as_array(row[self.names.pbc], self.names.pbc, np.asarray)
            if repeats.size not in (1, 3):
                raise DataError(f"'{self.names.pbc}' has {repeats.size} values, expected 3.")
            return cell, np.broadcast_to(repeats.astype(bool), 3).copy()
        if self.header.periodic is False:
            return cell, np.zeros(3, dtype=bool)
        return cell, np.asarray(cell.any(axis=1))

    def _is_times_volume(self, row: Mapping[str, Value]) -> bool:
        said = self.options.stress_times_volume
        return bool(row.get(NORMALIZED)) if said is None else said

    def _fixed(self, row: Mapping[str, Value], num_atoms: int) -> NDArray[np.bool_] | None:
        if self.fixed == IGNORED or row.get(self.fixed) is None:
            return None
        values = as_array(row[self.fixed], self.fixed, np.asarray)
        if values.shape != (num_atoms,) or values.dtype.kind not in "biu":
            raise DataError(f"'{self.fixed}' isn't one true or false for each of its atoms.")
        fixed: NDArray[np.bool_] = values.astype(bool)
        return fixed if fixed.any() else None

    def _id(self, row: Mapping[str, Value]) -> str | None:
        values = (row.get(name) for name in self.id_columns)
        return next((str(value) for value in values if value is not None), None)

    def _split(self, row: Mapping[str, Value]) -> str | None:
        value = None if self.split == IGNORED else row.get(self.split)
        if value is None:
            return None
        advice = "Name another column under `keys.split` in the card, or `none` to ignore it."
        return split_named(f"'{self.split}'", str(value), advice)
