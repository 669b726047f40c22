"""Stores as sources: several become one, or one with fewer labels or other edges counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lamm.data.cards import CardHeader
from lamm.data.readers.common import IGNORED, KeysFound, SkippedRecord, checked
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure

SUFFIXES = ("",)
_LABELS = ("energy", "forces", "stress")


def read_store(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read the structures of a store; see `Reader` in `format.py`.

    ``header.labels`` chooses among their labels. Ids and splits are kept, unless ``keys`` says
    ``none``; the origin stays the file that the structure once came from.

    Raises:
        ConfigError: the header has units, which a store can't have others of.
    """
    if any(factor != 1.0 for factor in header.units.factors().values()):
        raise ConfigError("`units` in the card: a store is in eV and Å; leave them out.")
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    store = Store.open(path)
    wanted = _LABELS if header.labels is None else header.labels
    found.see(label for label in _LABELS if label in store.card.labels)
    rows = range(start, len(store) if stop is None else min(stop, len(store)))
    for label in wanted:
        if label in store.card.labels:
            found.note(label, label)

    def build(row: int, origin: str) -> Structure:
        one = store[row]
        if header.labels is not None:
            for label in wanted:
                if getattr(one, label) is None:
                    raise DataError(f"no '{label}', which the card promises.")
        return replace(
            one,
            energy=one.energy if "energy" in wanted else None,
            forces=one.forces if "forces" in wanted else None,
            stress=one.stress if "stress" in wanted else None,
            id=origin if header.keys.id == IGNORED else one.id,
            split=None if header.keys.split == IGNORED else one.split,
            fixed=None if header.keys.fixed == IGNORED else one.fixed,
        )

    records = ((f"structure {row}", f"{name}:{row}", row) for row in rows)
    yield from checked(path, records, build, on_error)


def count_store(path: str | Path, header: CardHeader) -> int:
    """How many structures a store has."""
    return len(Store.open(path))
