"""File formats that can be ingested: one reader each, in the dictionary `FORMATS`."""

from __future__ import annotations

from lamm.data.readers.common import KeysFound, SkippedRecord
from lamm.data.readers.extxyz import SUFFIXES as EXTXYZ_SUFFIXES
from lamm.data.readers.extxyz import read_extxyz
from lamm.data.readers.format import Format, OnError, Reader

__all__ = ["FORMATS", "Format", "KeysFound", "OnError", "Reader", "SkippedRecord"]

FORMATS: dict[str, Format] = {
    "extxyz": Format(read_extxyz, EXTXYZ_SUFFIXES, "extended XYZ with any key names"),
}
"""Name on the command line to format."""
