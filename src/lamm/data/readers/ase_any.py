"""Whatever ASE reads: trajectories, databases, CIF, VASP's and other codes' files, zips of them.

`lamm.data.readers.ase_frames` opens the files, `ase_db` the databases among them, and `ase_record`
makes structures of what they hold.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import field_validator

from lamm.data.cards import CardHeader
from lamm.data.readers.ase_db import JsonRows, Load, SqliteRows, schnetpack_metadata
from lamm.data.readers.ase_frames import Frames, open_frames
from lamm.data.readers.ase_record import (
    NO_METADATA,
    Metadata,
    ase_structure,
)
from lamm.data.readers.common import (
    KeysFound,
    SkippedRecord,
    checked,
    reader_options,
    reading,
)
from lamm.data.readers.format import OnError
from lamm.errors import ConfigError, nearest_names
from lamm.schema import Frozen
from lamm.structure import Structure

logger = logging.getLogger(__name__)

_UNPACK: Final[dict[str, Callable[[Path], Any]]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
}
# A folder of VASP has POSCAR, CONTCAR, OUTCAR and vasprun.xml of one calculation: in a folder only
# the last counts, the others are to be named. JSON and zip files may be anything.
_KINDS: Final = (".traj", ".db", ".cif", ".vasp", ".poscar", "vasprun.xml", ".xsf")
SUFFIXES: Final = tuple(kind + packed for kind in _KINDS for packed in ("", *_UNPACK))


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
        from ase.io.formats import ioformats

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


def index_slice(text: str) -> slice:
    """The slice that an index of ASE means; that of one record for a number.

    Raises:
        ValueError: it is none.
    """
    from ase.utils import string2index

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

    Of VASP's files ``energy`` is ASE's, that extrapolated to zero smearing; the free energy, of
    which the forces are the slope, is `keys: {energy: free_energy}`.
    """
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    options = reader_options(header, AseOptions)
    with ExitStack() as stack:
        frames = open_frames(stack.enter_context(_unpacked(path)), path, options.format, stack)
        metadata, factors = _metadata(frames, options, path), header.units.factors()
        first, last, step = _selection(frames, options, start, stop)
        records = (
            (f"record {inner}", f"{name}:{inner}", load)
            for inner, load in frames.records(first, last, step)
        )

        def build(load: Load, origin: str) -> Structure:
            return ase_structure(load(), header, origin, found, factors, metadata)

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
        frames = open_frames(path, path, options.format, stack)
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


def _metadata(frames: Frames, options: AseOptions, path: Path) -> Metadata:
    if isinstance(frames, SqliteRows) or (isinstance(frames, JsonRows) and options.add_atomrefs):
        return schnetpack_metadata(frames.metadata(), options.add_atomrefs, path)
    if options.add_atomrefs:
        raise ConfigError(
            f"`add_atomrefs` is for databases, whose metadata has them, and {path} is none. "
            "Leave it out of `reader` in the card."
        )
    return NO_METADATA


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file, or an unpacked copy of it that has the same name without the last suffix."""
    opener = _UNPACK.get(path.suffix.lower())
    if opener is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="lamm-") as folder:
        plain = Path(folder, path.stem)
        logger.info("%s: unpacking to a temporary file in %s (TMPDIR says where)", path, folder)
        with reading(path), opener(path) as packed, plain.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        yield plain
