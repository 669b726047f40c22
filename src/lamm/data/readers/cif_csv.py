"""Tables (csv) with a crystal per row as CIF text, as CDVAE and its successors publish."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydantic import Field

from lamm.data.cards import CardHeader
from lamm.data.readers.ase_record import refuse_disorder, split_of
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    SkippedRecord,
    checked,
    choose_key,
    element_numbers,
    label_value,
    open_text,
    reader_options,
    reading,
)
from lamm.errors import DataError
from lamm.schema import Frozen
from lamm.structure import Structure

if TYPE_CHECKING:
    from ase import Atoms

SUFFIXES: Final = tuple(f".csv{compressed}" for compressed in ("", ".xz", ".gz", ".bz2"))
_PER_ATOM = "energy_per_atom"
_LONGEST_FIELD = 1 << 24


class CifCsvOptions(Frozen):
    """Options of the format."""

    cif: str = Field(default="cif", min_length=1)
    """Column of the CIF text."""
    per_atom: bool | None = None
    """Whether the energy is one of an atom; where left out, that of ``energy_per_atom`` is."""


def read_cif_csv(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read crystals and their energies from a table; see `Reader` in `format.py`."""
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    options = reader_options(header, CifCsvOptions)
    records = (
        (f"row {number}", f"{name}:{number}", row)
        for number, row in islice(enumerate(_rows(path)), start, stop)
    )

    def build(row: dict[str, str], origin: str) -> Structure:
        return _structure(row, header, options, origin, found)

    yield from checked(path, records, build, on_error)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with reading(path), open_text(path) as file:
        try:
            table = csv.DictReader(file)
            if not table.fieldnames:
                raise DataError(f"{path}: an empty file, expected a line of column names.")
            yield from table
        except csv.Error as error:
            raise DataError(f"{path}: not a table of comma-separated values ({error}).") from error


def _structure(
    row: dict[str, str], header: CardHeader, options: CifCsvOptions, origin: str, found: KeysFound
) -> Structure:
    present = [key for key in row if key]
    found.see(present)
    if None in row:  # where the values that have no column are
        raise DataError(
            f"more values than the {len(present)} columns; a text with commas has to be in quotes."
        )
    if options.cif not in row:
        raise DataError(
            f"no column '{options.cif}'; the row has: {', '.join(present)}.\n"
            "  Name the column of the CIF text with `reader: {cif: COLUMN}` in the card."
        )
    if not row[options.cif]:
        raise DataError(f"nothing in the column '{options.cif}', expected CIF text.")
    atoms = _atoms(row[options.cif])
    factors = header.units.factors()
    return Structure(
        atomic_numbers=element_numbers(atoms.numbers),
        positions=atoms.positions * factors["length"],
        cell=atoms.cell.array * factors["length"],
        pbc=np.ones(3, dtype=bool),
        energy=_energy(row, len(atoms), header, options, found),
        id=_id(row, header.keys.id) or origin,
        origin=origin,
        split=split_of({key: row[key] for key in present}, header.keys.split),
    )


def _energy(
    row: dict[str, str],
    num_atoms: int,
    header: CardHeader,
    options: CifCsvOptions,
    found: KeysFound,
) -> float | None:
    """The energy of the whole crystal in eV; None where the row has none.

    Raises:
        DataError: the card promises one, or another label, which a table doesn't have.
    """
    filled = [key for key in row if key and row[key]]
    for label in header.labels or ():
        if label != "energy":
            raise DataError(f"such a table has no {label}. Leave '{label}' out of `labels`.")
    if header.labels is not None and "energy" not in header.labels:
        return None
    promised = header.labels is not None or header.keys.energy is not None
    key = choose_key("energy", header.keys.energy, ("energy", _PER_ATOM), filled, promised)
    if key is None:
        return None
    energy: float = label_value("energy", key, row[key]) * header.units.factors()["energy"]
    found.note("energy", key)
    per_atom = key == _PER_ATOM if options.per_atom is None else options.per_atom
    return energy * num_atoms if per_atom else energy


def _atoms(text: str) -> Atoms:
    """The crystal of a CIF, by ASE."""
    from ase import Atoms
    from ase.io import read

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of space groups spelt in unusual ways
            atoms = read(StringIO(text), index=0, format="cif")
    except Exception as error:  # ASE's parser raises what Python happens to raise
        raise DataError(f"not a CIF that ASE can read: {type(error).__name__}: {error}") from error
    assert isinstance(atoms, Atoms)  # a list for an index that is a slice
    refuse_disorder(atoms)
    return atoms


def _id(row: dict[str, str], key: str | None) -> str | None:
    if key in (None, IGNORED):
        return None
    if not row.get(str(key)):
        raise DataError(f"no '{key}', which the card names under `keys.id`.")
    return row[str(key)]
