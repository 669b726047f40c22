"""One record of extended XYZ: its comment and its columns, of which only what is used is parsed.

A comment of plain ``key=value`` pairs, quoted or not, is taken apart here; anything else that the
format allows (brackets, braces, escapes, flags without a value) is left to ASE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from lamm.errors import DataError

ASE_NAMES: Final = {"pos": "positions", "Z": "numbers", "charge": "charges", "species": "symbols"}
"""Columns that go by another name than in the file, as in ASE."""
_PLAIN = re.compile(r"""\s*(?:[^\s="'\\{}\[\]]+=(?:"[^"\\]*"|[^\s="'\\{}\[\]]+)(?:\s+|$))*""")
_PAIR = re.compile(r"""([^\s=]+)=(?:"([^"]*)"|(\S+))""")
_TRUE, _FALSE = ("T", "True", "TRUE", "true"), ("F", "False", "FALSE", "false")
_LOGICAL: Final = dict.fromkeys((*_TRUE, "1"), True) | dict.fromkeys((*_FALSE, "0"), False)
_PLAIN_XYZ = "species:S:1:pos:R:3"
_MATRIX = ("Lattice", "stress", "virial")


class Frame(Mapping[str, Any]):
    """The names of a record and, when it is asked for, the value of each: of a pair or of a column.

    A value of the comment is an int, a float, a bool or a text, or an array of numbers; 3 x 3
    matrices are as ASE gives them. A column is (N,) or (N, k). Where a pair and a column have one
    name, the column counts.

    Args:
        comment: the second line.
        rows: the lines of the atoms.

    Raises:
        DataError: the record isn't extended XYZ.
    """

    def __init__(self, comment: str, rows: Sequence[str]) -> None:
        self.texts, parsed = _pairs(comment)
        self._get: dict[str, Callable[[], Any]] = {
            key: _constant(value) for key, value in parsed.items()
        }
        for key, text in self.texts.items():
            self._get[key] = _converted(key, text)
        self._is_plain = self._get.pop("Properties", None) is None
        self.properties = str(self.texts.get("Properties", parsed.get("Properties", _PLAIN_XYZ)))
        words = list(map(str.split, rows))
        self._num_atoms = len(words)
        self._columns(words)

    def __getitem__(self, key: str) -> Any:
        return self._get[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._get)

    def __len__(self) -> int:
        return len(self._get)

    def _columns(self, words: list[list[str]]) -> None:
        fields = self.properties.split(":")
        if len(fields) % 3 or not all(width.isdecimal() for width in fields[2::3]):
            raise DataError(
                f"Properties={self.properties}: expected name:type:columns for each column."
            )
        names, kinds, widths = fields[::3], fields[1::3], [int(width) for width in fields[2::3]]
        expected = sum(widths)
        for number, row in enumerate(words):
            # Plain XYZ may have more columns than anyone names.
            if len(row) != expected and not (self._is_plain and len(row) > expected):
                raise DataError(
                    f"atom {number} has {len(row)} columns, expected {expected} "
                    f"by Properties={self.properties}."
                )
        columns = list(zip(*words, strict=False))
        first = 0
        for name, kind, width in zip(names, kinds, widths, strict=True):
            if kind not in _KINDS:
                raise DataError(f"Properties: '{name}' is of type {kind}, expected R, I, S or L.")
            chosen = columns[first : first + width]
            self._get[ASE_NAMES.get(name, name)] = _column(name, kind, chosen, self._num_atoms)
            first += width

    def atomic_numbers(self) -> NDArray[np.integer[Any]]:
        """(N,) elements, from the column of numbers or of symbols.

        Raises:
            DataError: there is no such column, or a symbol is unknown.
        """
        if "numbers" in self._get:
            return np.asarray(self["numbers"])
        if "symbols" not in self._get:
            raise DataError(f"Properties={self.properties} has no column of elements (species).")
        symbols = self["symbols"]
        try:
            return np.array([_atomic_number(symbol) for symbol in symbols], dtype=np.int64)
        except KeyError as error:
            raise DataError(f"unknown element {error}; expected chemical symbols.") from None

    def positions(self) -> NDArray[np.float64]:
        """(N, 3).

        Raises:
            DataError: there are none.
        """
        if "positions" not in self._get:
            raise DataError(f"Properties={self.properties} has no column of positions (pos).")
        return np.asarray(self["positions"], dtype=np.float64)

    def cell(self) -> NDArray[np.float64]:
        """(3, 3), rows are the lattice vectors; zero where there is no lattice.

        Raises:
            DataError: it isn't nine numbers.
        """
        if "Lattice" not in self._get:
            return np.zeros((3, 3))
        lattice = self["Lattice"]
        if not isinstance(lattice, np.ndarray) or lattice.shape != (3, 3):
            raise DataError(f"Lattice is {lattice!r}, expected nine numbers.")
        return np.ascontiguousarray(lattice.T, dtype=np.float64)

    def pbc(self) -> NDArray[np.bool_]:
        """(3,); where nothing is said, whatever has a lattice repeats along all of it.

        Raises:
            DataError: it isn't three times true or false.
        """
        if "pbc" not in self._get:
            return np.full(3, "Lattice" in self._get)
        value = self["pbc"]
        try:
            return np.broadcast_to(np.array(value, dtype=bool), 3).copy()
        except ValueError:
            raise DataError(f"pbc is {value!r}, expected three times T or F.") from None


def _atomic_number(symbol: str) -> int:
    number = atomic_numbers.get(symbol)
    return int(atomic_numbers[symbol.capitalize()] if number is None else number)


def _pairs(comment: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The texts of a plain comment, or of another one what ASE makes of it."""
    if _PLAIN.fullmatch(comment):
        return {key: quoted or plain for key, quoted, plain in _PAIR.findall(comment)}, {}
    from ase.io.extxyz import key_val_str_to_dict  # half a second, which few files need

    try:
        return {}, key_val_str_to_dict(comment)
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"not a record of extended XYZ: {error}") from error


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _converted(key: str, text: str) -> Callable[[], Any]:
    return lambda: convert(key, text)


def convert(key: str, text: str) -> Any:
    """What a text of the comment means: numbers where it can be, then true or false, else text.

    Raises:
        DataError: a matrix isn't nine numbers.
    """
    words = text.replace(",", " ").split()
    numbers = _numbers(words)
    if key in _MATRIX:
        if numbers is None or numbers.shape not in ((9,), (6,)):
            raise DataError(f"'{key}' is {text!r}, expected nine numbers.")
        return numbers.reshape(3, 3, order="F") if numbers.size == 9 else numbers
    if numbers is not None and words and key.lower() != "uid":
        return numbers[0] if len(numbers) == 1 else numbers
    if words and all(word in _LOGICAL for word in words):
        logical = [_LOGICAL[word] for word in words]
        return logical[0] if len(logical) == 1 else logical
    return text


def _numbers(words: Sequence[str]) -> NDArray[Any] | None:
    for kind in (int, float):
        try:
            return np.array([kind(word) for word in words])
        except (ValueError, OverflowError):
            continue
    return None


def _column(
    name: str, kind: str, words: Sequence[Sequence[str]], num_atoms: int
) -> Callable[[], NDArray[Any]]:
    """The column when it is asked for: (N,) of one word per atom, (N, k) of k."""

    def column() -> NDArray[Any]:
        convert_word, dtype = _KINDS[kind]
        try:
            flat = list(map(convert_word, chain.from_iterable(words)))
        except (ValueError, KeyError) as error:
            raise DataError(f"column '{name}' of type {kind}: {error}.") from None
        if len(words) == 1:
            return np.array(flat, dtype=dtype)
        return np.ascontiguousarray(np.array(flat, dtype=dtype).reshape(len(words), num_atoms).T)

    return column


def _logical(word: str) -> bool:
    if word not in _LOGICAL:
        raise ValueError(f"found {word!r}, expected T or F")
    return _LOGICAL[word]


_KINDS: Final[dict[str, tuple[Callable[[str], Any], Any]]] = {
    "R": (float, np.float64),
    "I": (int, np.int64),
    "S": (str, object),
    "L": (_logical, bool),
}
"""How a word of a column's type is read, and the type of the array."""
