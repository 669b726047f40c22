"""The records of a file by what kind of file it is, each of them when it is asked for.

Trajectories, SQLite databases and zips are read from any record on; text formats from the start,
one structure after the other as far as ASE does so itself. Nothing is read that would unpickle.
"""

from __future__ import annotations

import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from lamm.data.readers.ase_db import JsonRows, Load, SqliteRows
from lamm.data.readers.ase_record import record_of_atoms
from lamm.data.readers.common import reading
from lamm.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

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


class Frames(Protocol):
    """The records of a file."""

    size: int | None
    """How many there are, where that is known without reading them."""

    def records(self, first: int, last: int | None, step: int) -> Iterator[tuple[str, Load]]:
        """Records of a slice: what follows the file's name in an origin, and how to get one."""
        ...


def open_frames(path: Path, source: Path, named: str | None, stack: ExitStack) -> Frames:
    """The records of a file by what kind of file it is.

    Args:
        path: the file, not compressed.
        source: what the user calls it.
        named: ASE's name of the format, where the card says it; of a zip's members.
        stack: closes what was opened.

    Raises:
        DataError: it can't be read, or must not be.
    """
    if path.is_dir():
        raise DataError(f"{source}: a folder, expected a file.")
    with reading(source), path.open("rb"):
        pass
    if path.suffix.lower() == ".zip":
        return ZipFrames(path, source, named, stack)
    kind = _format(path, source, named)
    if kind == "db":
        return SqliteRows(path, source)
    if kind == "json":
        return JsonRows(path, source)
    if kind == "traj":
        return TrajFrames(path, source, stack)
    return TextFrames(path, source, kind)


def _format(path: Path, source: Path, named: str | None) -> str:
    """ASE's name of a file's format."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    kind = named
    if kind is None:
        try:
            # The suffix of a database counts for more than what ASE makes of the content. Absolute,
            # since ASE takes a name that begins with postgres or mysql for a server's.
            kind = "db" if path.suffix.lower() == ".db" else filetype(str(path.absolute()))
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


class TrajFrames:
    """The frames of a ``.traj`` file.

    Args:
        path: the file, not compressed.
        source: what the user calls it.
        stack: closes it.
    """

    def __init__(self, path: Path, source: Path, stack: ExitStack) -> None:
        from ase.io.trajectory import TrajectoryReader

        opened = _tried(f"{source}: can't be read as a .traj", partial(TrajectoryReader, str(path)))
        self._file = stack.enter_context(opened)
        self.size: int | None = len(opened)

    def records(self, first: int, last: int | None, step: int) -> Iterator[tuple[str, Load]]:
        """Frames of a slice, by their numbers."""
        for number in range(*slice(first, last, step).indices(len(self._file))):
            yield str(number), partial(self._load, number)

    def _load(self, number: int) -> Any:
        return record_of_atoms(*_tried("the frame is damaged", partial(self._frame, number)))

    def _frame(self, number: int) -> tuple[Atoms, dict[str, Any]]:
        """Atoms and results, without the calculator that ASE would copy the atoms into."""
        from ase.calculators.calculator import all_properties
        from ase.io.trajectory import read_atoms

        file = self._file
        frame = file.backend[number]
        is_whole = "numbers" in frame  # what is the same in all frames stands in the first alone
        shared = None if is_whole else (file.pbc, file.numbers, file.masses, file.constraints)
        results = {}
        if "calculator" in frame:
            calculator = frame.calculator
            results = {key: calculator.get(key) for key in all_properties if key in calculator}
        return read_atoms(frame, header=shared, traj=file), results


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
        from ase.io import iread

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
        path: the file, not compressed.
        source: what the user calls it.
        named: ASE's name of the members' format, where the card says it.
        stack: closes it.
    """

    def __init__(self, path: Path, source: Path, named: str | None, stack: ExitStack) -> None:
        self._named = named
        with reading(source):
            try:
                self._file = stack.enter_context(zipfile.ZipFile(path))
            except zipfile.BadZipFile as error:
                raise DataError(f"{source}: not a zip, or cut short ({error}).") from error
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
            frames = open_frames(path, inner, self._named, stack)
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
