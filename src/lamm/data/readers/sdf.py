"""Structure-data files (SDF), PubChem3D's format: ``.sdf``, and as ``.gz``, ``.xz`` or ``.bz2``.

A record is a molecule, data fields such as ``> <PUBCHEM_COMPOUND_CID>`` with a value below, and a
line ``$$$$``. `lamm.data.readers.molfile` makes sense of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from lamm.data.cards import CardHeader
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    SkippedRecord,
    checked,
    choose_key,
    label_value,
    open_text,
    reader_options,
    reading,
)
from lamm.data.readers.format import OnError
from lamm.data.readers.molfile import Molecule, NoStructureError, parse_molecule
from lamm.data.splits import split_named
from lamm.errors import DamagedFileError, DataError
from lamm.schema import Frozen
from lamm.structure import Structure

SUFFIXES: Final = tuple(".sdf" + compressed for compressed in ("", ".gz", ".xz", ".bz2"))
_CHUNK: Final = 1 << 22
MAX_RECORD_BYTES: Final = 1 << 26
"""Longer records are taken for a file of another kind."""
ABSENT: Final = ("nan", "none", "null")
"""Written for a value that isn't known, in lower case."""
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")


class SdfOptions(Frozen):
    """What the card may say to this reader."""

    keep_flat: bool = False
    """Keep molecules of more than three atoms with z = 0 throughout that aren't marked as 3D."""


class _Record(NamedTuple):
    """The text of one molecule."""

    number: int
    line: int
    text: bytes


def read_sdf(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: OnError = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read molecules from an SDF file, in eV and Å; see `Reader` in `format.py`.

    No data field is a label of itself: name it, as in ``keys: {energy: DFT:TOTAL_ENERGY}``. The id
    is that of the field ``keys.id``, which may also be a pattern such as
    ``cid:{PUBCHEM_COMPOUND_CID}`` (``{title}`` is the first line). Molecules without atoms or drawn
    in a plane are passed over, whatever `on_error` says.
    """
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    options = reader_options(header, SdfOptions)
    build = StructureBuilder(header, found, options.keep_flat)
    records = (
        (f"record {record.number} (line {record.line})", f"{name}:{record.number}", record.text)
        for record in islice(_records(path, found), start, stop)
    )
    yield from passing_over(path, records, build, on_error)


def passing_over(
    path: Path,
    records: Iterable[tuple[str, str, Any]],
    build: Callable[[Any, str], Structure],
    on_error: OnError,
) -> Iterator[Structure | SkippedRecord]:
    """As `checked`, where `build` may also say that a record has no structure."""
    for record in records:
        try:
            yield from checked(path, (record,), build, on_error)
        except NoStructureError as reason:
            yield SkippedRecord(record[1], str(reason))


class StructureBuilder:
    """Makes structures of the text of records.

    Args:
        header: labels, keys and units.
        found: is told what the records have.
        keep_flat: see `SdfOptions`.
    """

    def __init__(self, header: CardHeader, found: KeysFound, keep_flat: bool) -> None:
        self.keys = header.keys
        self.found = found
        self.keep_flat = keep_flat
        self.factors = header.units.factors()
        named = [one for one in ("energy", "forces", "stress") if getattr(header.keys, one)]
        self.labels = tuple(named) if header.labels is None else header.labels

    def __call__(self, text: bytes, origin: str) -> Structure:
        """The structure of a record.

        Raises:
            DataError: the record can't be understood, or lacks a label.
            NoStructureError: it has no structure in space.
        """
        molecule = parse_molecule(text, self.keep_flat)
        self.found.see(molecule.fields)
        values: dict[str, Any] = {}
        for label in self.labels:
            key = choose_key(label, getattr(self.keys, label), (), molecule.fields, promised=True)
            assert key is not None
            values[label] = self._label(label, key, molecule)
            self.found.note(label, key)
        return Structure(
            atomic_numbers=molecule.atomic_numbers,
            positions=molecule.positions * self.factors["length"],
            energy=values.get("energy"),
            forces=values.get("forces"),
            stress=values.get("stress"),
            id=self._id(molecule) or origin,
            origin=origin,
            split=self._split(molecule),
        )

    def _label(self, label: str, key: str, molecule: Molecule) -> Any:
        words = molecule.field(key).split()
        if not words or words[0].lower() in ABSENT:
            raise NoStructureError(f"'{key}' is '{' '.join(words[:3])}': the {label} isn't known.")
        value = label_value(label, key, words)
        if label == "forces" and value.size == molecule.positions.size:
            value = value.reshape(-1, 3)
        return value * self.factors[label]

    def _id(self, molecule: Molecule) -> str | None:
        pattern = self.keys.id
        if pattern is None or pattern == IGNORED:
            return None
        if "{" not in pattern:
            return _first_line(molecule, pattern, "id")
        return _PLACEHOLDER.sub(lambda one: _first_line(molecule, one[1], "id"), pattern)

    def _split(self, molecule: Molecule) -> str | None:
        key = self.keys.split
        if key is None or key == IGNORED:
            return None
        value = _first_line(molecule, key, "split")
        advice = "Name another key under `keys.split` in the card, or leave it out."
        return split_named(f"'{key}'", value, advice)


def _first_line(molecule: Molecule, key: str, quantity: str) -> str:
    """The first line of a field, or of the record for ``title``."""
    value = molecule.field(key) if key in molecule.fields else ""
    if key == "title" and key not in molecule.fields:
        value = molecule.title
    if not value:
        raise DataError(
            f"no '{key}', which the card names under `keys.{quantity}`; the record has: "
            f"{', '.join(molecule.fields) or 'no data fields'}."
        )
    return value.partition("\n")[0].strip()


def _records(path: Path, found: KeysFound) -> Iterator[_Record]:
    """Cut a file into records."""
    with reading(path), open_text(path, found) as file:
        line = 1
        # Bytes: the columns of a table are counted in them.
        for number, text in enumerate(_cut(file.buffer, path)):
            yield _Record(number, line, text)
            line += text.count(b"\n") + 1


def _cut(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Records without their last line ``$$$$``."""
    text, number = b"", 0
    while chunk := file.read(_CHUNK):
        text += chunk
        begin = 0
        while (place := _end_of_record(text, begin)) is not None:
            end, behind = place
            yield text[begin:end]
            number += 1
            begin = behind
        text = text[begin:]
        if len(text) > MAX_RECORD_BYTES:
            raise DataError(
                f"{path}, record {number}: no line '$$$$', which ends a record, in "
                f"{MAX_RECORD_BYTES >> 20} MB.\n  Is this an SDF file?"
            )
    rest = text.strip()
    if rest.endswith(b"$$$$"):  # without a line break at the end of the file
        yield text[: text.rindex(b"$$$$")]
    elif rest and number == 0 and rest.endswith(b"M  END"):
        yield text  # a file of one molecule may do without '$$$$'
    elif rest:
        raise DamagedFileError(
            f"{path}, record {number}: the file ends within it, expected a line '$$$$': it was "
            "cut short, or isn't an SDF file. Fetch it again."
        )


def _end_of_record(text: bytes, begin: int) -> tuple[int, int] | None:
    """Where a record ends and where the next begins, as far as there is text."""
    place = text.find(b"$$$$", begin)
    while place > begin and text[place - 1] != ord("\n"):
        place = text.find(b"$$$$", place + 1)
    line_end = text.find(b"\n", place)
    return None if place < 0 or line_end < 0 else (place, line_end + 1)
