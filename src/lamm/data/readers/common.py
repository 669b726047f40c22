"""What the readers share: skipped records, the names of labels, text files compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, NamedTuple, TextIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from lamm.errors import DamagedFileError, DataError
from lamm.schema import Frozen, parse
from lamm.structure import MAX_ATOMIC_NUMBER, Structure

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamm.data.cards import CardHeader, Label

_VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
LABELS: Final[tuple[Label, ...]] = ("energy", "forces", "stress")
IGNORED = "none"
"""Written for a key in the card: ignore what the source has."""


MAX_KEYS_SEEN = 256
"""Names in the records of one file that are remembered."""


class NoOptions(Frozen):
    """Options of a reader that has none."""


Options = TypeVar("Options", bound=Frozen)


def reader_options(header: CardHeader, kind: type[Options]) -> Options:
    """What the card says to the reader under `reader`.

    Raises:
        ConfigError: an unknown option, or a value that is wrong.
    """
    return parse(kind, header.reader, "`reader` in the card")


class SkippedRecord(NamedTuple):
    """A record that didn't become a structure."""

    record: str
    reason: str


class KeysFound:
    """What a source calls each label, that it does so throughout, and what else there is."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.seen: dict[str, None] = {}
        """Every name in the records, whether it is used or not, in the order of appearance."""
        self._file: BinaryIO | None = None
        self._bytes = 0

    def follow(self, file: BinaryIO) -> None:
        """Remember an open file, so that `fraction` knows how far reading is."""
        self._file = file
        self._bytes = os.fstat(file.fileno()).st_size

    @property
    def fraction(self) -> float | None:
        """The share of the file that has been read; None where nobody knows."""
        if self._file is None or self._file.closed:
            return None
        return min(self._file.tell() / max(self._bytes, 1), 1.0)

    def see(self, keys: Iterable[str]) -> None:
        """Remember the names that a record has, so that labels left unused can be pointed out."""
        for key in keys:
            if key not in self.seen and len(self.seen) < MAX_KEYS_SEEN:
                self.seen[key] = None

    def note(self, label: str, key: str) -> None:
        """Remember a label's key.

        Raises:
            DataError: an earlier record calls the label otherwise.
        """
        known = self.names.setdefault(label, key)
        if known != key:
            raise DataError(
                f"its {label} label is called '{key}', and '{known}' in records before it.\n"
                f"  Say which it is with `keys: {{{label}: {known}}}` in the card."
            )


def choose_key(
    quantity: str, named: str | None, usual: Iterable[str], present: Iterable[str], promised: bool
) -> str | None:
    """The key of a quantity in a record, or None where the record doesn't have it.

    Args:
        quantity: ``energy``, ``forces`` and so on: the entry of `keys` in the card.
        named: the key that the card names.
        usual: names to look for where the card names none.
        present: keys of the record.
        promised: whether the card says that every record has it.

    Raises:
        DataError: several candidates, or none where one is promised.
    """
    has = set(present)
    candidates = [key for key in ([named] if named is not None else usual) if key in has]
    if len(candidates) > 1:
        listed = "', '".join(candidates)
        raise DataError(
            f"'{listed}' could all be the {quantity}.\n"
            f"  Say which it is with `keys: {{{quantity}: {candidates[0]}}}` in the card."
        )
    if not candidates and promised:
        wanted = f"'{named}'" if named is not None else f"'{quantity}'"
        raise DataError(
            f"no {wanted}, which the card promises; the record has: "
            f"{', '.join(sorted(has)) or 'nothing'}.\n  Name the right key under "
            f"`keys.{quantity}` in the card, or leave '{quantity}' out of `labels`."
        )
    return candidates[0] if candidates else None


def element_numbers(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """(N,) atomic numbers of any kind of number as the store has them.

    Raises:
        DataError: one isn't an element.
    """
    wrong = ~((numbers >= 1) & (numbers <= MAX_ATOMIC_NUMBER) & (numbers % 1 == 0))
    if wrong.any():
        atom = int(np.argmax(wrong))
        raise DataError(
            f"atom {atom}: unknown element {numbers[atom]}; atomic numbers are 1 to "
            f"{MAX_ATOMIC_NUMBER}."
        )
    return numbers.astype(np.uint8)


def label_value(label: str, key: str, value: Any) -> Any:
    """The value of a label as float64, in the source's unit: a number, (N, 3) or (6,).

    Raises:
        DataError: not numbers, or as many as the label can't have. The number of atoms is checked
            with the rest of the structure.
    """
    try:
        numbers: NDArray[np.float64] = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError):
        raise DataError(f"'{key}' is {value!r}, expected numbers for the {label}.") from None
    if label == "energy":
        if numbers.size != 1 or isinstance(value, (bool, np.bool_)):
            raise DataError(f"'{key}' is {value!r}, expected one number for the energy.")
        return float(numbers.reshape(()))
    if label == "stress":
        return _voigt(key, numbers)
    return numbers


def _voigt(key: str, stress: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stress of 6 numbers (xx yy zz yz xz xy), or of 9, as 6."""
    if stress.size == 6:
        return stress.reshape(6)
    if stress.size != 9:
        raise DataError(f"'{key}' has shape {stress.shape}, expected 6 or 9 numbers of stress.")
    full = stress.reshape(3, 3)
    if np.abs(full - full.T).max() > 1e-6 + 1e-3 * np.abs(full).max():
        raise DataError(f"'{key}' is not symmetric: {full.tolist()}; a stress is.")
    voigt: NDArray[np.float64] = full[_VOIGT]
    return voigt


def wanted_labels(header: CardHeader) -> tuple[Label, ...]:
    """The labels that the card promises, or all that there can be."""
    return LABELS if header.labels is None else header.labels


def read_labels(
    wanted: Iterable[str],
    header: CardHeader,
    found: KeysFound,
    factors: Mapping[str, float],
    usual: Mapping[str, Iterable[str]],
    present: Iterable[str],
    value_of: Callable[[str, str], Any],
) -> dict[str, Any]:
    """The labels that a record has or must have, in eV and Å.

    Args:
        wanted: labels to look for.
        header: which are promised, and what they are called.
        found: is told what each is called.
        factors: what the values are multiplied by.
        usual: names to look for where the card names none.
        present: names in the record.
        value_of: value of a label under a key, as `label_value` gives it.

    Raises:
        DataError: a label is promised and not there, or it isn't clear which name is meant.
    """
    labels: dict[str, Any] = {}
    for label in wanted:
        named = getattr(header.keys, label)
        promised = header.labels is not None or named is not None
        key = choose_key(label, named, usual[label], present, promised)
        if key is not None:
            labels[label] = value_of(label, key) * factors[label]
            found.note(label, key)
    return labels


def no_key(key: str, quantity: str, present: Iterable[str]) -> str:
    """Says that a record lacks what the card names."""
    return (
        f"no '{key}', which the card names under `keys.{quantity}`; the record has: "
        f"{', '.join(sorted(present)) or 'nothing'}."
    )


Record = TypeVar("Record")


def checked(
    path: Path,
    records: Iterable[tuple[str, str, Record]],
    build: Callable[[Record, str], Structure],
    on_error: Literal["stop", "skip"],
) -> Iterator[Structure | SkippedRecord]:
    """Make a checked structure of every record; what a reader's loop comes to.

    Args:
        path: the file.
        records: where each is, in words for a message; what it is called, which is the structure's
            origin; and what it holds.
        build: makes a structure of the record and its origin.
        on_error: ``stop`` at a record that can't be used, or give it as `SkippedRecord`.

    Raises:
        DataError: a record can't be used.
    """
    for where, origin, record in records:
        try:
            structure = build(record, origin)
            structure.check()
        except DataError as error:
            reason = str(error).removeprefix(f"{origin}: ")
            if on_error == "stop":
                raise DataError(f"{path}, {where}: {reason}") from error
            yield SkippedRecord(origin, reason)
        else:
            yield structure


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file itself into a `DataError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check the path.") from None
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedFileError(
            f"{path}: the compressed file is damaged or cut short ({error}). Fetch it again."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error}).") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error}).") from error


def open_text(path: Path, found: KeysFound | None = None) -> TextIO:
    """Open a text file, decompressing ``.xz``, ``.gz`` and ``.bz2``.

    Args:
        path: the file.
        found: is told how far in the file reading is, as it goes on.
    """
    openers: dict[str, Callable[..., object]] = {
        ".xz": lzma.open,
        ".gz": gzip.open,
        ".bz2": bz2.open,
    }
    raw = path.open("rb")
    if found is not None:
        found.follow(raw)
    opener = openers.get(path.suffix.lower())
    binary = raw if opener is None else cast(BinaryIO, opener(raw, "rb"))
    return _OwningText(binary, raw)


class _OwningText(io.TextIOWrapper):
    """Text that closes the file below its decompression too."""

    def __init__(self, binary: BinaryIO, raw: BinaryIO) -> None:
        super().__init__(binary, encoding="utf-8")
        self._raw_file = raw

    def close(self) -> None:
        """Close both."""
        super().close()
        self._raw_file.close()
