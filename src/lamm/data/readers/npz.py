"""NumPy's npz: arrays of many structures in one file, padded where their sizes differ."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.readers.arrays import ArrayReader, Naming
from lamm.data.readers.common import KeysFound, SkippedRecord, reader_options, reading
from lamm.data.readers.format import OnError
from lamm.data.readers.layouts import Layout, LayoutOption, check_units
from lamm.errors import DataError
from lamm.schema import Frozen
from lamm.structure import Structure

SUFFIXES: Final = (".npz",)
_NPY: Final = ".npy"
_LOCAL_HEADER: Final = 30
"""Bytes of a zip member's own header before its name; the last four are two lengths."""


class NpzOptions(Frozen):
    """What a card says to the reader of npz."""

    layout: LayoutOption = Layout()
    """A name in `lamm.data.readers.layouts.LAYOUTS`, or what the file calls things; its `groups`
    mean nothing here."""


def read_npz(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: OnError = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read structures from an npz file, in eV and Å; see `Reader` in `format.py`.

    Arrays that were written without compression stay on disk; others are unpacked into memory one
    by one, as the format allows nothing else.
    """
    path = Path(path)
    name = name or path.name
    options = reader_options(header, NpzOptions)
    check_units(options.layout, header)
    reader = ArrayReader(path, options.layout, header, on_error, found or KeysFound())
    with _opened(path) as file:
        naming = Naming(id=name, origin=name, separator=":")
        yield from reader.structures(file, naming, None, start, stop)


def count_npz(path: str | Path, header: CardHeader) -> int:
    """How many structures a file has, by the shapes of its arrays.

    Raises:
        DataError: the file can't be read.
        ConfigError: the layout or its units are wrong.
    """
    options = reader_options(header, NpzOptions)
    check_units(options.layout, header)
    reader = ArrayReader(Path(path), options.layout, header, "skip", KeysFound())
    with _opened(Path(path)) as file:
        return reader.size(file)


class NpzFile:
    """The arrays of an npz file, as one group.

    Args:
        path: the file.
        archive: the same file, open.
    """

    title = "the file"

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._members = {
            member.filename.removesuffix(_NPY): member for member in archive.infolist()
        }
        self._arrays: dict[str, NpzArray] = {}

    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._members)

    def array(self, name: str) -> NpzArray:
        """An array, of which nothing but the shape is read yet.

        Raises:
            KeyError: there is none of that name.
        """
        if name not in self._arrays:
            member = self._members[name]
            self._arrays[name] = NpzArray(self._path, self._archive, member)
        return self._arrays[name]

    def unit(self, name: str) -> str | None:
        """What the arrays ``r_unit`` and ``e_unit`` of the sGDML data sets say."""
        units = {"R": "r_unit", "E": "e_unit"}
        if name not in units or units[name] not in self._members:
            return None
        return str(self.array(units[name])[()])


class NpzArray:
    """An array of an npz file: its shape at once, its numbers when they are asked for."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        self._path, self._archive, self._member = path, archive, member
        try:
            with archive.open(member) as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                self.shape, self._is_fortran, self.dtype = read(file)
                self._header_bytes = file.tell()
        except ValueError as error:
            raise DataError(f"'{member.filename}' is not an array of NumPy ({error}).") from error
        if self.dtype.hasobject:
            raise DataError(
                f"'{member.filename}' holds Python objects, which are not read: they could run "
                "code. Write it as an array of numbers, padded with 0 where sizes differ."
            )

    def __getitem__(self, rows: Any) -> Any:
        return self._values[rows]

    @cached_property
    def _values(self) -> NDArray[Any]:
        """The array, mapped into memory if it is stored as it is."""
        if self._member.compress_type != zipfile.ZIP_STORED or 0 in self.shape or not self.shape:
            with self._archive.open(self._member) as file:
                return np.asarray(npy.read_array(file, allow_pickle=False))
        with self._path.open("rb") as raw:
            raw.seek(self._member.header_offset)
            local = raw.read(_LOCAL_HEADER)
        lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        return np.memmap(
            self._path,
            self.dtype,
            "r",
            self._member.header_offset + _LOCAL_HEADER + lengths + self._header_bytes,
            self.shape,
            "F" if self._is_fortran else "C",
        )


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    """Open a file.

    Raises:
        DataError: there is none, it isn't an npz file, or it is damaged.
    """
    with reading(path):
        try:
            with zipfile.ZipFile(path) as archive:
                yield NpzFile(path, archive)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise DataError(
                f"{path}: not an npz file, or damaged or cut short ({error}). Fetch it again."
            ) from error
