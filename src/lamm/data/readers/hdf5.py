"""HDF5 with a declared layout: groups of one structure each, or of many of equal size."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np

from lamm.data.cards import CardHeader
from lamm.data.readers.arrays import ArrayReader, Naming
from lamm.data.readers.blocks import Array
from lamm.data.readers.common import IGNORED, KeysFound, SkippedRecord, reader_options, reading
from lamm.data.readers.format import OnError
from lamm.data.readers.hdf5_groups import families, path_behind
from lamm.data.readers.layouts import Layout, LayoutOption, check_units
from lamm.errors import ConfigError, DataError
from lamm.schema import Frozen
from lamm.structure import Structure

logger = logging.getLogger(__name__)

_KINDS: Final = (".hdf5", ".h5", ".hdf")
SUFFIXES: Final = (*_KINDS, *(f"{kind}.xz" for kind in _KINDS))
_UNPACK: Final[dict[str, Callable[[Path], Any]]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
}
_CACHE_BYTES: Final = 16 * 2**20
"""For chunks of compressed arrays; neighbouring blocks share some."""


class Hdf5Options(Frozen):
    """What a card says to the reader of HDF5."""

    layout: LayoutOption = Layout()
    """A name in `lamm.data.readers.layouts.LAYOUTS`, or what the file calls things."""
    splits: Literal["none", "official"] = "none"
    """``official`` takes the splits of the layout's `split_groups`. ``none`` leads to the paper's
    99/1, of which only OC20, OC22 and ODAC23 are excepted (Sec. 3.1)."""
    leave_out: Path | None = None
    """A text file with a name of a group on each line; these groups are left out. A name that ends
    in ``-opt`` stands for the structures displaced from it too: QM7-X's ``DupMols.dat``."""


def read_hdf5(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: OnError = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read structures from an HDF5 file, in eV and Å; see `Reader` in `format.py`.

    Groups come in the order of the file, which is that of their names unless it was written
    otherwise. Groups before `start` are passed over by their sizes.
    """
    path = Path(path)
    name = name or path.name
    options = reader_options(header, Hdf5Options)
    check_units(options.layout, header)
    reader = ArrayReader(path, options.layout, header, on_error, found or KeysFound())
    left_out = _left_out(options.leave_out)
    group: Hdf5Group | None = None
    with _opened(path) as file, _damage(path, lambda: group):
        for group, first, last in _groups(file, path, reader, start, stop):
            inner = path_behind(group.path, options.layout)
            origin = f"{name}:{group.path}"
            by_group = options.layout.ids == "group" and header.keys.id != IGNORED
            naming = Naming(inner if by_group else origin, origin)
            if _is_left_out(group.path.rpartition("/")[2], left_out):
                reason = f"listed in {options.leave_out}"
                yield from reader.left_out(naming, range(first, last), reason)
            else:
                split = _official(file, inner, options) if options.splits == "official" else None
                yield from reader.structures(group, naming, split, first, last)


def _groups(
    file: h5py.File, path: Path, reader: ArrayReader, start: int, stop: int | None
) -> Iterator[tuple[Hdf5Group, int, int]]:
    """The groups that hold records `start` to before `stop`, and which of their structures do."""
    is_small = reader.layout.one_per_group
    number = 0
    for parent, below, names in families(file, reader.layout, path):
        if is_small and number + len(names) <= start:
            number += len(names)
            continue
        for own in names:
            if stop is not None and number >= stop:
                return
            if is_small and number < start:
                number += 1
                continue
            group = Hdf5Group(parent, below, own, is_small=is_small)
            size = 1 if is_small else reader.size(group)
            if number + size > start:
                last = size if stop is None else min(stop - number, size)
                yield group, max(start - number, 0), last
            number += size


def count_hdf5(path: str | Path, header: CardHeader) -> int | None:
    """How many records a file has, by the shapes of its arrays; None for a compressed file.

    Raises:
        DataError: the file can't be read, or has no group where the layout says.
        ConfigError: the layout or its units are wrong.
    """
    path = Path(path)
    if path.suffix.lower() in _UNPACK:
        return None
    options = reader_options(header, Hdf5Options)
    check_units(options.layout, header)
    reader = ArrayReader(path, options.layout, header, "skip", KeysFound())
    with _opened(path) as file, _damage(path, lambda: None):
        found = families(file, options.layout, path)
        if options.layout.one_per_group:
            return sum(len(names) for _, _, names in found)
        return sum(
            reader.size(Hdf5Group(parent, below, own))
            for parent, below, names in found
            for own in names
        )


class Hdf5Group:
    """The arrays of a group.

    Args:
        parent: the group above it.
        below: path of that, without slashes around it; empty at the top.
        name: of the group in its parent; empty for the parent itself.
        is_small: whether arrays are read as a whole, which is quicker for those of one structure.
    """

    def __init__(
        self, parent: h5py.Group, below: str, name: str, *, is_small: bool = False
    ) -> None:
        self.path = f"{below}/{name}".strip("/")
        self.title = f"group '{self.path}'" if self.path else "the top of the file"
        self._parent, self._name, self._is_small = parent, name, is_small
        self._group: h5py.Group | None = None

    @property
    def group(self) -> h5py.Group:
        """The group itself, opened when it is asked for."""
        if self._group is None:
            group = self._parent[self._name] if self._name else self._parent
            if not isinstance(group, h5py.Group):
                raise DataError("is an array, expected a group; see `groups` of the layout.")
            self._group = group
        return self._group

    def names(self) -> list[str]:
        """Names of the arrays in the group, and ``@name`` of its attributes."""
        arrays = [one for one in self.group if self.group.get(one, getclass=True) is h5py.Dataset]
        return [*arrays, *(f"@{attribute}" for attribute in self.group.attrs)]

    def array(self, name: str) -> Array:
        """A dataset, or the value of an attribute.

        Raises:
            KeyError: there is none of that name.
        """
        if name.startswith("@"):
            return np.asarray(self.group.attrs[name[1:]])
        array = self.group[name]
        if not isinstance(array, h5py.Dataset):
            raise KeyError(name)
        return array[()] if self._is_small else array

    def unit(self, name: str) -> str | None:
        """What an array's attribute ``units`` or ``unit`` says."""
        if name.startswith("@"):
            return None
        attributes = self.group[name].attrs
        unit = attributes.get("units", attributes.get("unit"))
        return unit.decode("utf-8", "replace") if isinstance(unit, bytes) else unit


def _official(file: h5py.File, inner: str, options: Hdf5Options) -> str | None:
    """The split whose group has the same path below it."""
    if not options.layout.split_groups:
        raise ConfigError(
            "`splits: official` needs a layout with `split_groups`, and this one has none. "
            "Leave it out of `reader` in the card."
        )
    for split, top in options.layout.split_groups.items():
        if f"{top}/{inner}" in file:
            return split
    return None


def _left_out(path: Path | None) -> frozenset[str]:
    """Names of groups that are left out; ``-opt`` is cut off where it stands for several."""
    if path is None:
        return frozenset()
    with reading(path):
        lines = path.read_text(encoding="utf-8").split()
    return frozenset(line[:-3] if line.endswith("-opt") else line for line in lines)


def _is_left_out(name: str, left_out: frozenset[str]) -> bool:
    if not left_out:
        return False
    stem, dash, _ = name.rpartition("-")
    return name in left_out or stem + dash in left_out


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a file, unpacked to a temporary one where it is compressed.

    Raises:
        DataError: there is none, it isn't HDF5, or it was cut short.
    """
    opener = _UNPACK.get(path.suffix.lower())
    if opener is None:
        with _open(path, path) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile(prefix="lamm-", suffix=".hdf5") as unpacked:
        logger.info(
            "%s: unpacking to a temporary file in %s (TMPDIR says where); a file that is unpacked "
            "before can be read in parts",
            path,
            tempfile.gettempdir(),
        )
        with reading(path), opener(path) as packed:
            shutil.copyfileobj(packed, unpacked, 2**20)
        unpacked.flush()
        with _open(Path(unpacked.name), path) as file:
            yield file


def _open(path: Path, source: Path) -> h5py.File:
    with reading(source), path.open("rb"):
        pass
    try:
        try:
            # Without a lock: file systems that are read-only or shared may not give one.
            return h5py.File(path, "r", locking=False, rdcc_nbytes=_CACHE_BYTES)
        except OSError as error:
            if "locking flag" not in str(error):
                raise
            # This process has the file open already, with a lock.
            return h5py.File(path, "r", rdcc_nbytes=_CACHE_BYTES)
    except OSError as error:
        what = "can't be opened as HDF5"
        if "truncated" in str(error):
            what = "the HDF5 file was cut short"
        elif "signature" in str(error):
            what = "not an HDF5 file"
        raise DataError(f"{source}: {what} ({error}). Fetch it again.") from error


@contextmanager
def _damage(path: Path, current: Callable[[], Hdf5Group | None]) -> Iterator[None]:
    """Turn what h5py raises on damaged content into a message with the place."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        group = current()
        where = f", {group.title}" if group is not None else ""
        if "not registered" in str(error) or "plugin" in str(error):
            raise DataError(
                f"{path}{where}: compressed in a way that h5py lacks ({error}).\n"
                "  Rewrite the file with `h5repack -f GZIP=4 OLD NEW`."
            ) from error
        raise DataError(
            f"{path}{where}: the HDF5 file is damaged ({error}). Fetch it again."
        ) from error
