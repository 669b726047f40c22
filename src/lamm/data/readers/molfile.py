"""One molecule of an SDF file: tables of V2000 and V3000, and the data fields below them.

The lines of a V2000 table have fixed columns, and coordinates the form ``xxxxx.xxxx``: all of a
molecule are read at once. Isotopes, charges and bonds are passed over.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from lamm.errors import DataError
from lamm.structure import MAX_ATOMIC_NUMBER

_ATOM_WIDTH: Final = 34
"""Columns of an atom's line that matter: three coordinates of 10, a blank, a symbol of 3."""
_MAX_FLAT_ATOMS: Final = 3
"""So many atoms lie in a plane wherever they are."""

_NUMBERS: Final = {symbol: z for z, symbol in enumerate(chemical_symbols) if z} | {"D": 1, "T": 1}


def _symbol_table() -> NDArray[np.uint8]:
    """Atomic numbers by the two bytes of a symbol as one number; 0 where there is no element."""
    table = np.zeros(1 << 16, dtype=np.uint8)
    for symbol, number in _NUMBERS.items():
        if number <= MAX_ATOMIC_NUMBER and len(symbol) <= 2:
            table[np.frombuffer(symbol.ljust(2).encode(), dtype=np.uint16)[0]] = number
    return table


def _digit_table() -> NDArray[np.float64]:
    """What a byte counts in a number of fixed point; NaN where it has no place in one."""
    table = np.full(256, np.nan)
    table[[ord(" "), ord("-")]] = 0.0
    table[ord("0") : ord("9") + 1] = np.arange(10.0)
    return table


_BY_SYMBOL: Final = _symbol_table()
_BY_DIGIT: Final = _digit_table()
_PLACES: Final = 10.0 ** np.arange(8, -1, -1)
_RANK: Final = np.array([{" ": 0, "-": 1}.get(chr(byte), 2) for byte in range(256)], dtype=np.uint8)
"""Before the point come blanks, then the sign, then digits."""


class NoStructureError(Exception):
    """A record that is in order and has no structure in space, or none with a label.

    Such records are passed over and reported, also where a record that is damaged stops reading.
    """


class Molecule(NamedTuple):
    """A record of an SDF file."""

    title: str
    atomic_numbers: NDArray[np.uint8]
    positions: NDArray[np.float64]
    """(N, 3) in the unit of the file."""
    fields: dict[str, bytes]
    """The data fields; as bytes, since most are never looked at."""

    def field(self, name: str) -> str:
        """A data field as text; a value of several lines has line breaks."""
        return as_text(self.fields[name]).strip()


def parse_molecule(text: bytes, keep_flat: bool = False) -> Molecule:
    """Understand the text of a record.

    Args:
        text: the record, without ``$$$$``.
        keep_flat: take molecules with z = 0 throughout that aren't marked as 3D.

    Raises:
        DataError: the record isn't a molecule in V2000 or V3000.
        NoStructureError: it has no atoms, or isn't a structure in space.
    """
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    parts = text.split(b"\n", 4)
    if len(parts) < 5:
        raise DataError(
            f"{len(parts)} lines, expected a title, two lines, a line of counts, and a table."
        )
    title, program, _, counts, table = parts
    if counts[33:39].strip() == b"V3000":
        numbers, positions = _v3000(table)
        tail = table
    else:
        num_atoms = _num_atoms(counts)
        lines, tail = _atom_lines(table, num_atoms)
        numbers, positions = _symbols(lines), _coordinates(lines)
    _check_in_space(positions, program[20:22], keep_flat)
    return Molecule(as_text(title).strip(), numbers, positions, _fields(tail))


def _num_atoms(counts: bytes) -> int:
    """The number of atoms, from the fourth line of a V2000 record."""
    if not counts[:3].strip().isdigit() or counts[33:39].strip() not in (b"V2000", b""):
        raise DataError(
            f"its fourth line is {as_text(counts)!r}, expected counts in columns of 3 and V2000 or "
            "V3000.\n  Is a line missing before it, or one too many?"
        )
    num_atoms = int(counts[:3])
    if num_atoms == 0:
        raise NoStructureError("no atoms: a record without a structure.")
    return num_atoms


def _atom_lines(table: bytes, num_atoms: int) -> tuple[NDArray[np.uint8], bytes]:
    """The (N, 34) bytes of the atoms' lines, and what follows them."""
    width = table.find(b"\n") + 1
    size = width * num_atoms
    if width > _ATOM_WIDTH and len(table) >= size and table.count(b"\n", 0, size) == num_atoms:
        block = np.frombuffer(table, dtype=np.uint8, count=size).reshape(num_atoms, width)
        if (block[:, -1] == ord("\n")).all():  # all lines are equally long
            return block[:, :_ATOM_WIDTH], table[size - 1 :]
    lines = table.split(b"\n", num_atoms)
    if len(lines) <= num_atoms:
        raise DataError(f"the record ends after {len(lines) - 1} of {num_atoms} atoms.")
    for number, line in enumerate(lines[:num_atoms]):
        if len(line) < _ATOM_WIDTH - 2:
            raise DataError(
                f"atom {number} is {as_text(line)!r}, expected three coordinates of 10 columns, "
                "a blank, and a symbol."
            )
    joined = b"".join([line[:_ATOM_WIDTH].ljust(_ATOM_WIDTH) for line in lines[:num_atoms]])
    block = np.frombuffer(joined, dtype=np.uint8).reshape(num_atoms, _ATOM_WIDTH)
    return block, b"\n" + lines[num_atoms]


def _symbols(lines: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N,) atomic numbers from columns 32 to 34."""
    pairs = np.ascontiguousarray(lines[:, 31:33]).view(np.uint16)[:, 0]
    numbers = _BY_SYMBOL[pairs]
    if numbers.all() and (lines[:, 33] == ord(" ")).all():
        return numbers
    return np.array(
        [
            element_number(line[31:34].tobytes().decode("latin-1"), i)
            for i, line in enumerate(lines)
        ],
        dtype=np.uint8,
    )


def element_number(written: str, atom: int) -> int:
    """Atomic number of a symbol in any case."""
    symbol = written.strip()
    number = _NUMBERS.get(symbol) or _NUMBERS.get(symbol.capitalize())
    if not number and not (symbol[:1].isalpha() or symbol == "*"):
        raise DataError(
            f"atom {atom} has {symbol!r} where a symbol is expected (columns 32-34 in SDF)."
        )
    if not number or number > MAX_ATOMIC_NUMBER:
        raise NoStructureError(
            f"atom {atom} is '{symbol}', which is no element: a dummy atom, an R group or a query."
        )
    return number


def _coordinates(lines: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 3) coordinates from the first 30 columns.

    Digits times powers of ten are whole numbers below 2^53, and their quotient by 10^4 is rounded
    once: the numbers are those that `float` gives.
    """
    text = np.ascontiguousarray(lines[:, :30]).reshape(-1, 10)
    if (text[:, 5] == ord(".")).all():
        digits = np.concatenate((text[:, :5], text[:, 6:]), axis=1)
        values: NDArray[np.float64] = _BY_DIGIT[digits] @ _PLACES
        rank = _RANK[digits]
        signs = (rank == 1).sum(axis=1)
        in_order = (rank[:, 1:] >= rank[:, :-1]).all() and (rank[:, 5] == 2).all()
        if in_order and signs.max() <= 1 and not np.isnan(values).any():
            return (np.where(signs, -values, values) / 1e4).reshape(-1, 3)
    try:
        return np.array([float(one.tobytes()) for one in text]).reshape(-1, 3)
    except ValueError as error:
        raise DataError(
            f"a coordinate isn't a number in its 10 columns ({error}).\n"
            "  The coordinates are columns 1-10, 11-20 and 21-30 of an atom's line."
        ) from None


def _v3000(table: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Atomic numbers and coordinates of a V3000 table: ``M  V30 index symbol x y z map``."""
    _, begin, rest = table.partition(b"M  V30 BEGIN ATOM")
    block, end, _ = rest.partition(b"M  V30 END ATOM")
    if not begin and b"M  V30 COUNTS 0 " in table:
        raise NoStructureError("no atoms: a record without a structure.")
    if not end:
        raise DataError("no lines from 'M  V30 BEGIN ATOM' to 'M  V30 END ATOM'.")
    lines = block.replace(b"-\nM  V30 ", b"").split(b"\n")
    words = [line.split()[2:] for line in lines if line.strip()]
    if not words:
        raise NoStructureError("no atoms: a record without a structure.")
    try:
        positions = np.array([[float(word) for word in one[2:5]] for one in words])
        if positions.shape != (len(words), 3):
            raise ValueError
    except ValueError:
        raise DataError("an atom has no three coordinates: `M  V30 1 C 0.0 0.0 0.0 0`.") from None
    symbols = [element_number(as_text(one[1]), number) for number, one in enumerate(words)]
    return np.array(symbols, dtype=np.uint8), positions


def _check_in_space(positions: NDArray[np.float64], dimensions: bytes, keep_flat: bool) -> None:
    """See that the coordinates are more than a drawing.

    Raises:
        NoStructureError: they aren't.
    """
    if positions[:, 2].any():  # some programs write 2D and mean 3D
        return
    if len(positions) > 1 and not positions.any():
        raise NoStructureError("all coordinates are 0: a record without a structure in space.")
    may_be_drawn = dimensions == b"2D" or len(positions) > _MAX_FLAT_ATOMS
    if may_be_drawn and dimensions != b"3D" and not keep_flat:
        raise NoStructureError(
            "z is 0 throughout and the second line doesn't say 3D: a drawing, not a structure in "
            "space (`reader: {keep_flat: true}` keeps such records)."
        )


def _fields(tail: bytes) -> dict[str, bytes]:
    """The data fields below a table: a line ``>  <NAME>``, lines of the value, a blank line."""
    fields: dict[str, bytes] = {}
    name, unended = "", False
    for part in tail.split(b"\n>")[1:]:
        if unended:  # no blank line before it: a line of the value that begins with '>'
            fields[name] += b"\n>" + part
        else:
            head, _, value = part.partition(b"\n")
            name = head[head.find(b"<") + 1 : head.rfind(b">")].decode("utf-8", "backslashreplace")
            fields[name] = value
        unended = fields[name] != b"" and not part.endswith(b"\n")
    return fields


def as_text(text: bytes) -> str:
    """Text of bytes in any encoding; what isn't UTF-8 is kept as numbers, so that names differ."""
    return text.decode("utf-8", "backslashreplace")
