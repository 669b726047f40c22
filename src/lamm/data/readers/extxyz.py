"""Extended XYZ: ``.xyz`` and ``.extxyz``, and these as ``.xz``, ``.gz`` or ``.bz2``.

The text is cut into records here, so that files of any length are read in one pass and a fault is
named by record and line; `lamm.data.readers.extxyz_record` makes sense of each record.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    SkippedRecord,
    checked,
    element_numbers,
    label_value,
    no_key,
    open_text,
    read_labels,
    reading,
    wanted_labels,
)
from lamm.data.readers.extxyz_record import Frame
from lamm.data.splits import split_named
from lamm.errors import DamagedFileError, DataError
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


class Record(NamedTuple):
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
        for record in islice(extxyz_records(path, found), start, stop)
    )
    yield from checked(
        path,
        records,
        lambda record, origin: extxyz_structure(record, header, origin, found),
        on_error,
    )


def extxyz_records(path: Path, found: KeysFound) -> Iterator[Record]:
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
                    raise DamagedFileError(
                        f"{path}, record {number} (line {start}): the file ends after "
                        f"{max(len(lines) - 1, 0)} of {num_atoms} atoms: it was cut short. "
                        "Fetch it again."
                    )
                lines.append(text)
            line += len(lines)
            yield Record(number, start, num_atoms, lines[0], lines[1:])
            number += 1


def extxyz_structure(record: Record, header: CardHeader, name: str, found: KeysFound) -> Structure:
    """The structure of a record.

    Args:
        record: its text.
        header: labels that are promised, keys, units.
        name: what it is called where it doesn't say so itself.
        found: is told what it calls the labels.

    Raises:
        DataError: it can't become a structure.
    """
    if record.num_atoms < 1:
        raise DataError("no atoms; a structure has at least one. Remove the record.")
    frame = Frame(record.comment, record.rows)
    found.see(frame)
    factors = header.units.factors()
    labels = read_labels(
        wanted_labels(header),
        header,
        found,
        factors,
        USUAL_KEYS,
        frame,
        lambda label, key: label_value(label, key, frame[key]),
    )
    return Structure(
        atomic_numbers=element_numbers(frame.atomic_numbers()),
        positions=frame.positions() * factors["length"],
        cell=frame.cell() * factors["length"],
        pbc=frame.pbc(),
        energy=labels.get("energy"),
        forces=labels.get("forces"),
        stress=labels.get("stress"),
        fixed=_fixed(frame, header.keys.fixed),
        id=_id(frame, header.keys.id) or name,
        origin=name,
        split=_split(frame, header.keys.split),
    )


def _fixed(frame: Frame, key: str | None) -> NDArray[np.bool_] | None:
    """(N,) atoms that are held still, or None where none is; one held along some axis counts."""
    if key == IGNORED:
        return None
    if key is not None and key not in frame:
        raise DataError(no_key(key, "fixed", frame))
    fixed: NDArray[np.bool_] | None = None
    if (column := key or "fixed") in frame:
        values = np.asarray(frame[column])
        if values.ndim != 1 or values.dtype.kind not in "bi":
            raise DataError(
                f"'{column}' has {values.ndim} dimensions of {values.dtype}, expected "
                "one true or false per atom."
            )
        fixed = values.astype(bool)
    if key is None and "move_mask" in frame:
        free = np.asarray(frame["move_mask"], dtype=bool)
        held: NDArray[np.bool_] = ~(np.all(free, axis=1) if free.ndim == 2 else free)
        fixed = held if fixed is None else fixed | held
    return fixed if fixed is not None and fixed.any() else None


def _id(frame: Frame, key: str | None) -> str | None:
    """The record's own name, as it is written there: '007' is no number."""
    if key == IGNORED:
        return None
    wanted = key or "id"
    if wanted in frame.texts:
        return frame.texts[wanted]
    if wanted in frame:
        return str(frame[wanted])
    if key is not None:
        raise DataError(no_key(key, "id", frame))
    return None


def _split(frame: Frame, key: str | None) -> str | None:
    if key == IGNORED:
        return None
    wanted = key or "split"
    if wanted not in frame:
        if key is None:
            return None
        raise DataError(no_key(key, "split", frame))
    return split_named(f"'{wanted}'", str(frame[wanted]))
