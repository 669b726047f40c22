"""OC20's S2EF data as published: ``N.extxyz.xz``, and ``N.txt.xz`` with a line for each structure.

A line is ``random<sid>,frame<fid>,<reference energy>``. The energy in the extended XYZ file is the
total one; without the reference (clean slab and adsorbate) it is the adsorption energy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final, Literal, NamedTuple

from lamm.data.cards import CardHeader
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    SkippedRecord,
    checked,
    open_text,
    reader_options,
    reading,
)
from lamm.data.readers.extxyz import Record, extxyz_records, extxyz_structure
from lamm.errors import ConfigError, DataError
from lamm.schema import Frozen
from lamm.structure import Structure

_COMPRESSED: Final = ("", ".xz", ".gz", ".bz2")
SUFFIXES: Final = tuple(f".extxyz{compressed}" for compressed in _COMPRESSED)


class Oc20Options(Frozen):
    """Options of the format."""

    energy: Literal["total", "adsorption"] = "total"
    """The label: the energy as it is in the file (S2EF-Total), or less the reference (S2EF)."""


class _Line(NamedTuple):
    """A line of the index: which system and frame a structure is."""

    system: str
    frame: str
    reference: float | None


def read_oc20(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read structures of OC20, in eV and Å; see `Reader` in `format.py`.

    Ids are ``random<sid>_frame<fid>``; atoms that ``move_mask`` holds are fixed.

    Raises:
        ConfigError: `reader.energy` is not of the card's task.
        DataError: a record can't become a structure, or there is no line for it in the index.
    """
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    options = reader_options(header, Oc20Options)
    _check_task(header, options)
    index = index_of(path)
    pairs = zip_longest(extxyz_records(path, found), _lines(index))
    numbered = ((number, record, line) for number, (record, line) in enumerate(pairs))
    records = (
        (
            f"record {number} and line {number + 1} of {index.name}",
            f"{name}:{number}",
            (record, line),
        )
        for number, record, line in islice(numbered, start, stop)
    )

    def build(pair: tuple[Record | None, str | None], origin: str) -> Structure:
        return _structure(*pair, header, options, origin, found)

    for number, one in enumerate(checked(path, records, build, on_error), start):
        if isinstance(one, SkippedRecord) and one.reason.startswith(_UNEQUAL):
            # Nobody knows which lines belong to which structures: not to be skipped over.
            raise DataError(f"{path}, record {number}: {one.reason}")
        yield one


_UNEQUAL = "the index has"


def index_of(path: Path) -> Path:
    """The file with the lines that belong to a file of structures.

    Raises:
        DataError: there is none.
    """
    stem = path.name[: path.name.lower().rindex(".extxyz")]
    for compressed in _COMPRESSED:
        index = path.with_name(f"{stem}.txt{compressed}")
        if index.is_file():
            return index
    raise DataError(
        f"{path}: its index {stem}.txt.xz (or {stem}.txt) isn't beside it, and has the systems and "
        "reference energies of its structures.\n  Put it there, or read the file with the format "
        "'extxyz'."
    )


def _lines(index: Path) -> Iterator[str]:
    with reading(index), open_text(index) as file:
        for line in file:
            if line.strip():
                yield line.strip()


def _check_task(header: CardHeader, options: Oc20Options) -> None:
    fitting = {"total": "S2EF-Total", "adsorption": "S2EF"}[options.energy]
    if header.task is not None and header.task != fitting:
        raise ConfigError(
            f"task '{header.task}' in the card and `reader: {{energy: {options.energy}}}`: with "
            f"these energies the task is {fitting}.\n  Change one of the two."
        )


def _structure(
    record: Record | None,
    line: str | None,
    header: CardHeader,
    options: Oc20Options,
    origin: str,
    found: KeysFound,
) -> Structure:
    if record is None or line is None:
        fewer = (
            "fewer lines than the file has structures"
            if line is None
            else ("more lines than the file has structures")
        )
        raise DataError(f"{_UNEQUAL} {fewer}. Both have to be of one download: fetch them again.")
    where = _parse(line)
    structure = extxyz_structure(record, header, origin, found)
    energy = structure.energy
    if options.energy == "adsorption" and energy is not None:
        if where.reference is None:
            raise DataError(f"no reference energy in the index ({line!r}).")
        energy -= where.reference * header.units.factors()["energy"]
    named = header.keys.id is not None
    return replace(
        structure,
        energy=energy,
        id=origin if header.keys.id == IGNORED else structure.id if named else _id(where),
    )


def _id(line: _Line) -> str:
    return f"{line.system}_{line.frame}"


def _parse(line: str) -> _Line:
    words = [word.strip() for word in line.split(",")]
    try:
        reference = float(words[2]) if len(words) > 2 else None
        is_named = bool(words[0] and words[1])
    except (IndexError, ValueError):
        is_named = False
    if not is_named:
        raise DataError(
            f"the index has {line!r}, expected random<sid>,frame<fid>,<reference energy>."
        )
    return _Line(words[0], words[1], reference)
