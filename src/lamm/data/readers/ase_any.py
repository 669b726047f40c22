"""Whatever ASE reads: trajectories, databases, CIF, VASP's and other codes' files, zips of them.

Trajectories, SQLite databases and zips are read from any record on; text formats from the start,
one structure after the other as far as ASE does so itself. Nothing is read that would unpickle.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol, TypeVar

from ase import Atoms
from ase.io import iread
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from ase.io.trajectory import TrajectoryReader
from ase.utils import string2index
from pydantic import field_validator

from lamm.data.cards import CardHeader
from lamm.data.readers.ase_db import JsonRows, Load, SqliteRows, schnetpack_metadata
from lamm.data.readers.ase_record import (
    NO_METADATA,
    Metadata,
    ase_structure,
    record_of_atoms,
)
from lamm.data.readers.common import (
    KeysFound,
    SkippedRecord,
    checked,
    reader_options,
    reading,
)
from lamm.data.readers.format import OnError
from lamm.errors import ConfigError, DataError, nearest_names
from lamm.schema import Frozen
from lamm.structure import Structure

_UNPACK: Final[dict[str, Callable[[Path], Any]]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
}
# A folder of VASP has POSCAR, CONTCAR, OUTCAR and vasprun.xml of one calculation: in a folder only
# the last counts, the others are to be named. JSON and zip files may be anything.
_KINDS: Final = (".traj", ".db", ".cif", ".vasp", ".poscar", "vasprun.xml", ".xsf")
SUFFIXES: Final = tuple(kind + packed for kind in _KINDS for packed in ("", *_UNPACK))
_REFUSED: Final = {
    "xyz": "Use the format `extxyz`.",
    "extxyz": "Use the format `extxyz`.",
    "bundletrajectory": "It may hold pickles. Convert it: ase convert OLD NEW.traj",
    "py": "It is a program. Write the structures to a .traj file.",
    "postgresql": "It is a server. Convert it: ase db ADDRESS --insert-into NEW.db",
    "mysql": "It is a server. Convert it: ase db ADDRESS --insert-into NEW.db",
}
_HIDDEN: Final = ("__MACOSX", ".")
"""How members of a zip begin that an operating system put there."""

Result = TypeVar("Result")


class AseOptions(Frozen):
    """What a card says to the reader of ASE's formats."""

    format: str | None = None
    """ASE's name of the format, of those that `ase info --formats` lists; found out where left
    out."""
    index: str = ":"
    """Which records of each file to read, as ``-1``, ``10:`` or ``::5``."""
    add_atomrefs: bool = False
    """Add the ``atomrefs`` in the metadata of a database of SchNetPack to each energy. For those,
    such as nablaDFT's, whose energies are without them."""

    @field_validator("format")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in ioformats:
            raise ValueError(f"ASE has no format '{name}'. {nearest_names(name, ioformats)}")
        return name

    @field_validator("index")
    @classmethod
    def _forward(cls, text: str) -> str:
        try:
            step = index_slice(text).step
        except ValueError:
            raise ValueError(f"'{text}' is no index such as '-1', '10:' or '::5'") from None
        if step is not None and step < 1:
            raise ValueError(f"'{text}' goes backwards; records are read in their order")
        return text


class Frames(Protocol):
    """The records of a file."""

    size: int | None
    """How many there are, where that is known without reading them."""

    def records(self, first: int, last: int | None, step: int) -> Iterator[tuple[str, Load]]:
        """Records of a slice: what follows the file's name in an origin, and how to get one."""
        ...


def index_slice(text: str) -> slice:
    """The slice that an index of ASE means; that of one record for a number.

    Raises:
        ValueError: it is none.
    """
    index = string2index(text)
    if isinstance(index, int):
        return slice(index, index + 1 or None)
    if not isinstance(index, slice):
        raise ValueError(text)
    return index


def read_ase(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: OnError = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read structures from a file that ASE knows, in eV and Å; see `Reader` in `format.py`.

    A label is looked for among the calculator's results, ``info``, the arrays, and a database's
    key-value pairs and ``data``; the first of these that has the name counts. Ids are, where
    `keys.id` doesn't say, an ``id`` among these, or the ``unique_id`` of a database's row.
    """
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    options = reader_options(header, AseOptions)
    with ExitStack() as stack:
        frames = _frames(stack.enter_context(_unpacked(path)), path, options, stack)
        metadata = _metadata(frames, options, path)
        first, last, step = _selection(frames, options, start, stop)
        records = (
            (f"record {inner}", f"{name}:{inner}", load)
            for inner, load in frames.records(first, last, step)
        )

        def build(load: Load, origin: str) -> Structure:
            return ase_structure(load(), header, origin, found, metadata)

        yield from checked(path, records, build, on_error)


def count_ase(path: str | Path, header: CardHeader) -> int | None:
    """How many records a file has; None for text formats and files that are compressed.

    Raises:
        DataError: the file can't be read.
    """
    path = Path(path)
    options = reader_options(header, AseOptions)
    if path.suffix.lower() in _UNPACK:
        return None
    with ExitStack() as stack:
        frames = _frames(path, path, options, stack)
        if frames.size is None:
            return None
        return len(range(*index_slice(options.index).indices(frames.size)))


def _selection(
    frames: Frames, options: AseOptions, start: int, stop: int | None
) -> tuple[int, int | None, int]:
    """First, last and step of what the card's index leaves, and of this what is asked for."""
    index = index_slice(options.index)
    step: int = index.step or 1
    size = frames.size
    if size is None and any(end is not None and end < 0 for end in (index.start, index.stop)):
        # Once through the file to count, rather than all of it in memory.
        size = sum(1 for _ in frames.records(0, None, 1))
    first, last = index.start or 0, index.stop
    if size is not None:
        first, last, step = index.indices(size)
    if stop is not None:
        end = first + stop * step
        last = end if last is None else min(last, end)
    return first + start * step, last, step


def _frames(path: Path, source: Path, options: AseOptions, stack: ExitStack) -> Frames:
    """The records of a file by what kind of file it is.

    Args:
        path: the file, not compressed.
        source: what the user calls it.
        options: the format, where the card names it.
        stack: closes what was opened.

    Raises:
        DataError: it can't be read, or must not be.
    """
    if path.is_dir():
        raise DataError(f"{source}: a folder, expected a file.")
    with reading(source), path.open("rb"):
        pass
    if options.format is None and path.suffix.lower() == ".zip":
        return ZipFrames(path, stack)
    kind = _format(path, source, options)
    if kind == "db":
        return SqliteRows(path)
    if kind == "json":
        return JsonRows(path)
    if kind == "traj":
        return TrajFrames(path, source, stack)
    return TextFrames(path, source, kind)


def _format(path: Path, source: Path, options: AseOptions) -> str:
    """ASE's name of a file's format."""
    kind = options.format
    if kind is None:
        try:
            # The suffix of a database counts for more than what ASE makes of the content.
            kind = "db" if path.suffix.lower() == ".db" else filetype(str(path))
        except UnknownFileTypeError as error:
            raise DataError(
                f"{source}: ASE doesn't know what this is ({error}).\n"
                "  Name its format with `reader: {format: ...}` in the card; `ase info --formats` "
                "lists them."
            ) from error
    if path.suffix.lower() == ".aselmdb":
        raise DataError(f"{source}: a database in LMDB. Use the format `aselmdb`.")
    if kind in _REFUSED:
        raise DataError(f"{source}: ASE's format '{kind}' is not read here. {_REFUSED[kind]}")
    if kind not in ioformats or not ioformats[kind].can_read:
        raise DataError(
            f"{source}: ASE can't read the format '{kind}'.\n"
            "  Name the right one with `reader: {format: ...}` in the card."
        )
    return kind


def _metadata(frames: Frames, options: AseOptions, path: Path) -> Metadata:
    if isinstance(frames, SqliteRows) or (isinstance(frames, JsonRows) and options.add_atomrefs):
        return schnetpack_metadata(frames.metadata(), options.add_atomrefs, path)
    if options.add_atomrefs:
        raise ConfigError(
            f"`add_atomrefs` is for databases, whose metadata has them, and {path} is none. "
            "Leave it out of `reader` in the card."
        )
    return NO_METADATA


class TrajFrames:
    """The frames of a ``.traj`` file.

    Args:
        path: the file, not compressed.
        source: what the user calls it.
        stack: closes it.
    """

    def __init__(self, path: Path, source: Path, stack: ExitStack) -> None:
        opened = _tried(f"{source}: can't be read as a .traj", partial(TrajectoryReader, str(path)))
        self._file = stack.enter_context(opened)
        self.size: int | None = len(opened)

    def records(self, first: int, last: int | None, step: int) -> Iterator[tuple[str, Load]]:
        """Frames of a slice, by their numbers."""
        for number in range(*slice(first, last, step).indices(len(self._file))):
            yield str(number), partial(self._load, number)

    def _load(self, number: int) -> Any:
        return record_of_atoms(_tried("the frame is damaged", lambda: self._file[number]))


class TextFrames:
    """The structures of a file that ASE reads from its start.

    Args:
        path: the file, not compressed.
        source: what the user calls it.
        kind: ASE's name of its format.
    """

    size: int | None = None

    def __init__(self, path: Path, source: Path, kind: str) -> None:
        self._path, self._source, self._kind = path, source, kind

    def records(self, first: int, last: int | None, step: int) -> Iterator[tuple[str, Load]]:
        """Structures of a slice, by their numbers."""
        for number, atoms in islice(enumerate(self.all()), first, last, step):
            yield str(number), partial(record_of_atoms, atoms)

    def all(self) -> Iterator[Atoms]:
        """Every structure.

        Raises:
            DataError: ASE can't read on, or there is none.
        """
        frames = iread(str(self._path), ":", format=self._kind, do_not_split_by_at_sign=True)
        number = 0
        while True:
            what = f"{self._source}: ASE can't read record {number} as '{self._kind}'"
            atoms = _tried(what, lambda: next(frames, None))
            if atoms is None:
                break
            yield atoms
            number += 1
        if not number:
            raise DataError(f"{self._source}: ASE finds no structure in it, as '{self._kind}'.")


class ZipFrames:
    """The files in a zip, one structure each, in order of their names.

    Args:
        path: the file.
        stack: closes it.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        with reading(path):
            try:
                self._file = stack.enter_context(zipfile.ZipFile(path))
            except zipfile.BadZipFile as error:
                raise DataError(f"{path}: not a zip, or cut short ({error}).") from error
        self._members = sorted(
            member.filename
            for member in self._file.infolist()
            if not member.is_dir()
            and not any(part.startswith(_HIDDEN) for part in PurePosixPath(member.filename).parts)
        )
        self.size: int | None = len(self._members)

    def records(self, first: int, last: int | None, step: int) -> Iterator[tuple[str, Load]]:
        """Members of a slice, by their names."""
        for member in self._members[first:last:step]:
            yield member, partial(self._load, member)

    def _load(self, member: str) -> Any:
        """A member, unpacked for a moment; ASE tells formats by names."""
        inner = Path(PurePosixPath(member).name)
        with tempfile.TemporaryDirectory(prefix="lamm-") as folder, ExitStack() as stack:
            path = Path(folder, inner)
            try:
                path.write_bytes(self._file.read(member))
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                raise DataError(f"the member is damaged or locked ({error}).") from error
            frames = _frames(path, inner, AseOptions(), stack)
            loads = [load for _, load in islice(frames.records(0, None, 1), 2)]
            if len(loads) != 1:
                raise DataError(
                    f"{len(loads) or 'no'} structures or more in it, expected one. Unpack the zip "
                    "and name its files."
                )
            return loads[0]()


def _tried(what: str, call: Callable[[], Result]) -> Result:
    """What a function of ASE gives; its parsers raise whatever Python happens to raise.

    Raises:
        DataError: it raised anything.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual spellings, unknown tags and the like
            return call()
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{what} ({type(error).__name__}: {error}).") from error


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file, or an unpacked copy of it that has the same name without the last suffix."""
    opener = _UNPACK.get(path.suffix.lower())
    if opener is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="lamm-") as folder:
        plain = Path(folder, path.stem)
        with reading(path), opener(path) as packed, plain.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        yield plain
