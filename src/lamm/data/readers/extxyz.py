"""Extended XYZ, through ASE: ``.xyz`` and ``.extxyz``, and these as ``.xz``, ``.gz`` or ``.bz2``.

The text is cut into records here, so that files of any length are read in one pass and a fault is
named by record and line; ASE makes sense of each record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import read_extxyz as ase_read_extxyz
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    SkippedRecord,
    checked,
    choose_key,
    element_numbers,
    label_value,
    open_text,
    reading,
)
from lamm.data.splits import SPELLINGS
from lamm.errors import DataError, nearest_names
from lamm.structure import Structure

SUFFIXES: Final = tuple(
    kind + compressed for kind in (".xyz", ".extxyz") for compressed in ("", ".xz", ".gz", ".bz2")
)
_PREFIXES = ("", "REF_", "ref_", "dft_", "DFT_")
USUAL_KEYS: Final = {
    "energy": (*(f"{prefix}energy" for prefix in _PREFIXES), "Energy", "total_energy", "TotEnergy"),
    "forces": (
        *(f"{prefix}{name}" for name in ("forces", "force") for prefix in _PREFIXES),
        "Forces",
    ),
    "stress": (*(f"{prefix}stress" for prefix in _PREFIXES), "Stress"),
}
"""Names that the labels are looked for where the card names none; case matters."""
_PROPERTIES = re.compile(r"""Properties\s*=\s*["']?([^\s"']+)""")


class _Record(NamedTuple):
    """The text of one structure."""

    number: int
    line: int
    num_atoms: int
    comment: str
    rows: list[str]


def read_extxyz(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read structures from an extended XYZ file, in eV and Å; see `Reader` in `format.py`.

    Labels are looked for in every record: the ones that ``header.labels`` promises, or all three.
    Fixed atoms are those of ``move_mask`` or of a column ``fixed``.
    """
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    records = (
        (f"record {record.number} (line {record.line})", f"{name}:{record.number}", record)
        for record in islice(_records(path, found), start, stop)
    )
    yield from checked(
        path, records, lambda record, origin: _structure(record, header, origin, found), on_error
    )


def _records(path: Path, found: KeysFound) -> Iterator[_Record]:
    """Cut a file into records; what isn't one can't be skipped, since its end is unknown."""
    with reading(path), open_text(path, found) as file:
        line = number = 0
        while text := file.readline():
            line += 1
            if not text.strip():
                continue
            start = line
            if not text.strip().isdecimal():
                raise DataError(
                    f"{path}, line {line}: found {text.strip()[:60]!r}, expected the number of "
                    f"atoms of record {number}.\n  Is this an extended XYZ file? Perhaps the "
                    "record before it says another number of atoms than it has."
                )
            num_atoms = int(text)
            lines: list[str] = []
            while len(lines) <= num_atoms:
                if not (text := file.readline()):
                    raise DataError(
                        f"{path}, record {number} (line {start}): the file ends after "
                        f"{max(len(lines) - 1, 0)} of {num_atoms} atoms: it was cut short. "
                        "Fetch it again."
                    )
                lines.append(text)
            line += len(lines)
            yield _Record(number, start, num_atoms, lines[0], lines[1:])
            number += 1


def _structure(record: _Record, header: CardHeader, name: str, found: KeysFound) -> Structure:
    if record.num_atoms < 1:
        raise DataError("no atoms; a structure has at least one. Remove the record.")
    atoms = _parse(record)
    results = {} if atoms.calc is None else atoms.calc.results
    present = {**atoms.info, **atoms.arrays, **results}
    found.see(present)
    wanted = ("energy", "forces", "stress") if header.labels is None else header.labels
    factors = header.units.factors()
    values: dict[str, Any] = {}
    for label in wanted:
        key = choose_key(
            label,
            getattr(header.keys, label),
            USUAL_KEYS[label],
            present,
            promised=header.labels is not None or getattr(header.keys, label) is not None,
        )
        if key is not None:
            values[label] = label_value(label, key, present[key]) * factors[label]
            found.note(label, key)
    return Structure(
        atomic_numbers=element_numbers(atoms.numbers),
        positions=atoms.positions * factors["length"],
        cell=atoms.cell.array * factors["length"],
        pbc=atoms.pbc.copy(),
        energy=values.get("energy"),
        forces=values.get("forces"),
        stress=values.get("stress"),
        fixed=_fixed(atoms, header.keys.fixed),
        id=_id(atoms, header.keys.id, record.comment) or name,
        origin=name,
        split=_split(atoms, header.keys.split),
    )


def _parse(record: _Record) -> Atoms:
    """A record as ASE reads it, after a look at what ASE doesn't."""
    properties = _PROPERTIES.search(record.comment)
    if properties:
        widths = properties[1].split(":")[2::3]
        expected = sum(int(width) for width in widths if width.isdigit())
        for number, row in enumerate(record.rows):
            count = len(row.split())
            if count != expected:
                raise DataError(
                    f"atom {number} has {count} columns, expected {expected} "
                    f"by Properties={properties[1]}."
                )
    text = f"{record.num_atoms}\n{record.comment}{''.join(record.rows)}\n"
    try:
        atoms = next(iter(ase_read_extxyz(StringIO(text), index=0)))
    except KeyError as error:
        raise DataError(f"unknown element {error}; expected chemical symbols.") from error
    except (ValueError, TypeError, IndexError, AttributeError, OSError) as error:
        raise DataError(f"not a record of extended XYZ: {error}") from error
    assert isinstance(atoms, Atoms)
    return atoms


def _fixed(atoms: Atoms, key: str | None) -> NDArray[np.bool_] | None:
    """(N,) atoms that are held still, or None where none is; one held along some axis counts."""
    fixed = np.zeros(len(atoms), dtype=bool)
    if key == IGNORED:
        return None
    if key is not None and key not in atoms.arrays:
        raise DataError(_no_key(key, "fixed", atoms.arrays))
    column = key or "fixed"
    if column in atoms.arrays:
        values = atoms.arrays[column]
        if values.ndim != 1 or values.dtype.kind not in "bi":
            raise DataError(
                f"'{column}' has {values.ndim} dimensions of {values.dtype}, expected "
                "one true or false per atom."
            )
        fixed |= values.astype(bool)
    if key is None:
        for constraint in atoms.constraints:
            if isinstance(constraint, FixAtoms):
                fixed[constraint.index] = True
            elif isinstance(constraint, FixCartesian):
                fixed[constraint.index] |= bool(np.any(constraint.mask))
    return fixed if fixed.any() else None


def _id(atoms: Atoms, key: str | None, comment: str) -> str | None:
    """The record's own name, as it is written there."""
    if key == IGNORED:
        return None
    wanted = key or "id"
    if wanted not in atoms.info:
        if key is None:
            return None
        raise DataError(_no_key(key, "id", atoms.info))
    value = atoms.info[wanted]
    if isinstance(value, str):
        return value
    # ASE reads '007' as 7 and 'T' as true; a name is kept as it stands.
    written = re.search(rf"""(?:^|\s){re.escape(wanted)}\s*=\s*(?:"([^"]*)"|(\S+))""", comment)
    return next(filter(None, written.groups()), str(value)) if written else str(value)


def _split(atoms: Atoms, key: str | None) -> str | None:
    if key == IGNORED:
        return None
    wanted = key or "split"
    if wanted not in atoms.info:
        if key is None:
            return None
        raise DataError(_no_key(key, "split", atoms.info))
    value = str(atoms.info[wanted])
    if value.lower() not in SPELLINGS:
        raise DataError(
            f"'{wanted}' is {value!r}. {nearest_names(value.lower(), SPELLINGS)}\n"
            "  Name another key under `keys.split` in the card, or `none` to ignore it."
        )
    return SPELLINGS[value.lower()]


def _no_key(key: str, quantity: str, present: Iterable[str]) -> str:
    return (
        f"no '{key}', which the card names under `keys.{quantity}`; the record has: "
        f"{', '.join(sorted(present)) or 'nothing'}."
    )
