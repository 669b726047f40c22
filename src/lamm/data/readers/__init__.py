"""File formats that can be ingested: one function each, in the dictionary `READERS`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from lamm.data.cards import CardHeader
from lamm.data.readers.common import KeysFound, SkippedRecord
from lamm.data.readers.extxyz import SUFFIXES as EXTXYZ_SUFFIXES
from lamm.data.readers.extxyz import read_extxyz
from lamm.structure import Structure

__all__ = ["READERS", "SUFFIXES", "KeysFound", "OnError", "Reader", "SkippedRecord"]

OnError: TypeAlias = Literal["stop", "skip"]


class Reader(Protocol):
    """What a format has to provide: a file to structures in eV and Å, one by one."""

    def __call__(
        self,
        path: str | Path,
        header: CardHeader,
        *,
        on_error: OnError = "stop",
        name: str | None = None,
        found: KeysFound | None = None,
    ) -> Iterator[Structure | SkippedRecord]:
        """Read a file.

        Args:
            path: the file.
            header: labels that are promised, keys, units.
            on_error: whether a bad record stops reading, or is given as `SkippedRecord`.
            name: what ids and origins call the file; its own name where left out.
            found: is told what the file calls the labels.

        Raises:
            DataError: a record can't become a structure (with `on_error="stop"`), or the file can't
                be read on.
        """
        ...


READERS: dict[str, Reader] = {"extxyz": read_extxyz}
"""Name on the command line to reader."""
SUFFIXES: dict[str, tuple[str, ...]] = {"extxyz": EXTXYZ_SUFFIXES}
"""How the files of each format end: what is looked for in a folder."""
