"""QMugs: one ``.sdf`` file per conformer, as a folder or in the tar that is published.

``structures/CHEMBL123/conf_00.sdf`` is conformer ``CHEMBL123/conf_00`` with its energies as data
fields (``DFT:TOTAL_ENERGY``, ``GFN2:TOTAL_ENERGY``; Hartree). ``summary.csv`` has the same energies
by ``chembl_id`` and ``conf_id`` (``DFT_TOTAL_ENERGY``): what differs there, and conformers that are
there alone, are reported.

A tar is read from beginning to end without unpacking it. The conformers of a folder are numbered in
the order of their names, so that reading can begin anywhere.
"""

from __future__ import annotations

import logging
import os
import tarfile
from array import array
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.readers.common import KeysFound, SkippedRecord, open_text, reader_options, reading
from lamm.data.readers.format import OnError
from lamm.data.readers.molfile import NoStructureError
from lamm.data.readers.qmugs_summary import QMugsOptions, Summary, open_summary
from lamm.data.readers.sdf import StructureBuilder, passing_over
from lamm.errors import ConfigError, DamagedFileError, DataError
from lamm.structure import Structure

SUFFIXES: Final = (".tar", ".tar.gz", ".tar.xz", ".tar.bz2")
ENERGY: Final = "DFT:TOTAL_ENERGY"
"""The label, unless the card names another, such as ``GFN2:TOTAL_ENERGY``."""
MAX_DIFFERENCE: Final = 1e-5
"""Hartree; what the rounding of two files may differ by."""
_BUFFER: Final = 1 << 18

_log = logging.getLogger(__name__)


class _Conformer(NamedTuple):
    """A conformer's file; without a text, one that only the summary has."""

    id: str
    text: bytes | None


def read_qmugs(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: OnError = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read conformers from QMugs' tar or folder, in eV and Å; see `Reader` in `format.py`.

    Conformers that only the summary has come last. They, and those without a known energy, are
    passed over, whatever `on_error` says.

    Raises:
        ConfigError: energies of GFN2-xTB under a card that says that they are DFT's.
    """
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    energy = header.keys.energy or ENERGY
    if energy.startswith("GFN2") and header.is_dft:
        raise ConfigError(
            f"`keys.energy` is '{energy}', and the card says `is_dft: true`: GFN2-xTB isn't a "
            "density functional.\n  Set `functional: GFN2-xTB` and `is_dft: false`."
        )
    summary = open_summary(path, reader_options(header, QMugsOptions), energy)
    if path.is_dir():
        conformers = _from_folder(path, summary, start)
    else:
        conformers = _from_tar(path, found, summary, start)
    records = (
        (f"conformer {one.id}", f"{name}:{one.id}", one)
        for one in islice(conformers, None if stop is None else max(stop - start, 0))
    )
    yield from passing_over(path, records, _Builder(header, energy, summary, found), on_error)


def count_qmugs(path: str | Path, header: CardHeader) -> int | None:
    """How many conformers a folder and its summary have; None for a tar.

    Raises:
        DataError: the folder can't be read, or has no conformers.
    """
    path = Path(path)
    if not path.is_dir():
        return None
    energy = header.keys.energy or ENERGY
    summary = open_summary(path, reader_options(header, QMugsOptions), energy)
    ids = _listing(path).ids
    return len(ids) + (0 if summary is None else len(summary.absent(summary.places(ids))))


class _Builder:
    """Makes structures of conformers, and holds them against the summary."""

    def __init__(
        self, header: CardHeader, energy: str, summary: Summary | None, found: KeysFound
    ) -> None:
        keys = header.keys.model_copy(update={"energy": energy, "id": "{CHEMBL_ID}/{CONF_ID}"})
        labels = ("energy",) if header.labels is None else header.labels
        header = header.model_copy(update={"keys": keys, "labels": labels})
        self.structure = StructureBuilder(header, found, keep_flat=False)
        self.unit = header.units.factors()["energy"]
        self.summary = summary

    def __call__(self, conformer: _Conformer, origin: str) -> Structure:
        """The structure of a conformer.

        Raises:
            DataError: it can't be understood, or the summary or its path say otherwise.
            NoStructureError: it has no structure or no energy, or is to be left out.
        """
        if conformer.text is None:
            raise NoStructureError("it is in the summary, and there is no such file.")
        row = None if self.summary is None else self.summary.row(conformer.id)
        if row is not None and row.left_out_by:
            raise NoStructureError(f"'{row.left_out_by}' is true in the summary.")
        text, _, rest = conformer.text.partition(b"$$$$")
        if rest.strip():
            raise DataError("its file goes on behind '$$$$', expected one conformer.")
        structure = self.structure(text, origin)
        if structure.id != conformer.id:
            raise DataError(
                f"its fields CHEMBL_ID and CONF_ID say '{structure.id}', its path says otherwise."
            )
        if row is not None and structure.energy is not None:
            self._compare(structure.energy / self.unit, row.energy)
        return structure

    def _compare(self, energy: float, listed: float) -> None:
        if np.isnan(listed):
            raise NoStructureError("the summary has no energy: its calculation has failed.")
        if abs(energy - listed) > MAX_DIFFERENCE:
            raise DataError(
                f"its energy is {energy:.8f} and in the summary {listed:.8f}.\n  Are both of one "
                "version of QMugs? `reader: {summary: none}` reads without the summary."
            )


def _from_tar(
    path: Path, found: KeysFound, summary: Summary | None, start: int
) -> Iterator[_Conformer]:
    """Conformers of a tar in its order, from a number on; then those that it lacks."""
    _check_end(path)
    places = array("q")
    number = 0
    with reading(path), open_text(path, found) as file:
        try:
            with tarfile.open(fileobj=file.buffer, mode="r|", bufsize=_BUFFER) as archive:
                kept = vars(archive)["members"]
                while (member := archive.next()) is not None:
                    kept.clear()  # or there are two million of them in the end
                    conformer = _conformer_id(member.name)
                    if conformer is None or not member.isfile():
                        continue
                    if summary is not None:
                        places.append(summary.place(conformer))
                    if number >= start:
                        content = archive.extractfile(member)
                        assert content is not None
                        yield _Conformer(conformer, content.read())
                    number += 1
        except tarfile.TarError as error:
            raise DamagedFileError(
                f"{path}: damaged, cut short or no tar ({error}). Fetch it again."
            ) from error
    if number == 0:
        raise DataError(f"{path}: no file in it is like 'structures/CHEMBL123/conf_00.sdf'.")
    if summary is not None:
        absent = summary.absent(np.array(places))
        yield from (_Conformer(one, None) for one in absent[max(start - number, 0) :])


def _check_end(path: Path) -> None:
    """See that a tar without compression, which has no checksum, isn't cut short."""
    if path.suffix != ".tar":
        return
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - 1024, 0))
        if size % 512 or file.read().strip(b"\0"):
            raise DamagedFileError(
                f"{path}: cut short, or no tar: it has no end mark. Fetch it again."
            )


def _conformer_id(member: str) -> str | None:
    """``CHEMBL123/conf_00`` of ``structures/CHEMBL123/conf_00.sdf``; None for other files."""
    folder, _, file = member.rpartition("/")
    if not folder or not file.endswith(".sdf") or file.startswith("."):
        return None
    return f"{folder.rpartition('/')[2]}/{file[:-4]}"


class _Listing(NamedTuple):
    """The files of a folder."""

    base: Path
    ids: NDArray[np.bytes_]
    """``CHEMBL123/conf_00`` of all, in the order of their names."""


def _listing(path: Path) -> _Listing:
    """What files there are; looked up once per process, since there are millions.

    Raises:
        DataError: the folder can't be read, or has none.
    """
    base = path / "structures"
    base = base if base.is_dir() else path
    with reading(path):
        return _list_files(base, base.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _list_files(base: Path, changed: int) -> _Listing:
    with os.scandir(base) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir())
    ids = [
        f"{folder}/{file[:-4]}"
        for folder in folders
        for file in sorted(os.listdir(base / folder))  # noqa: PTH208 (names are all that is needed)
        if file.endswith(".sdf") and not file.startswith(".")
    ]
    if not ids:
        raise DataError(
            f"{base}: no file in it is like 'CHEMBL123/conf_00.sdf'.\n  Name the folder "
            "'structures', the one that it is in, or the tar that it came in."
        )
    _log.info("%s: %d conformers of %d molecules", base, len(ids), len(folders))
    return _Listing(base, np.array(ids, dtype=bytes))


def _from_folder(path: Path, summary: Summary | None, start: int) -> Iterator[_Conformer]:
    """Conformers of a folder in the order of their names; then those that it lacks."""
    base, ids = _listing(path)
    for conformer in ids[start:].astype(str).tolist():
        file = base / f"{conformer}.sdf"
        with reading(file):
            yield _Conformer(conformer, file.read_bytes())
    if summary is not None:
        absent = summary.absent(summary.places(ids))
        yield from (_Conformer(one, None) for one in absent[max(start - len(ids), 0) :])
