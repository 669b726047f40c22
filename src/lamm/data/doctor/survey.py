"""One pass over a store: what each check needs of every structure, with bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lamm.data.doctor.blocks import Block, read_blocks
from lamm.data.doctor.fingerprints import fingerprints
from lamm.data.store import Store
from lamm.structure import Structure

MAX_KEPT = 8_000_000
"""Structures whose fingerprints are kept: 60 bytes each, half a gigabyte in all. Of a larger store
the compositions whose hash falls into a share are kept, so that copies stay together."""
SAMPLE = 3000
"""Structures that are looked at one by one, evenly spread over a store."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Of the structures that are kept, K of them, in the order of the store."""

    row: NDArray[np.int64]
    composition: NDArray[np.uint64]
    order: NDArray[np.uint64]
    lengths: NDArray[np.float64]
    """(K, 3) Å; see `lamm.data.doctor.fingerprints`."""
    forces: NDArray[np.uint64]
    energy: NDArray[np.float64]
    """eV; NaN without."""
    share: float
    """Share of all compositions that are kept."""

    def __len__(self) -> int:
        return len(self.row)

    def without(self, rows: NDArray[np.int64]) -> Kept:
        """The same but for some rows of the store."""
        left = ~np.isin(self.row, rows)
        return Kept(
            self.row[left],
            self.composition[left],
            self.order[left],
            self.lengths[left],
            self.forces[left],
            self.energy[left],
            self.share,
        )


@dataclass(frozen=True, eq=False)
class Survey:
    """A store as the checks see it."""

    name: str
    store: Store
    kept: Kept
    sample_rows: NDArray[np.int64]
    sample: list[Structure]

    def without(self, rows: NDArray[np.int64]) -> Survey:
        """What it were if some rows of the store weren't there."""
        left = ~np.isin(self.sample_rows, rows)
        return replace(
            self,
            kept=self.kept.without(rows),
            sample_rows=self.sample_rows[left],
            sample=[one for one, stays in zip(self.sample, left, strict=True) if stays],
        )


def take_survey(
    name: str,
    store: Store,
    look: Callable[[Block], None],
    progress: Callable[[int], None] | None = None,
) -> Survey:
    """Read all of a store, block after block.

    Args:
        name: what the store is called in findings.
        store: the store.
        look: is given every block; collects what can be told from a structure alone.
        progress: is told how many structures were read.
    """
    share = min(1.0, MAX_KEPT / max(len(store), 1))
    limit = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    parts: list[tuple[NDArray[np.generic], ...]] = []
    for block in read_blocks(store):
        look(block)
        found = fingerprints(block)
        keep = found.composition * np.uint64(0x9E3779B97F4A7C15) <= limit
        energy = np.where(block.has_energy, block.energy, np.nan)
        columns = (block.rows, *found, energy)
        parts.append(tuple(column[keep] for column in columns))
        if progress is not None:
            progress(block.first_row + len(block.sizes))
    row, composition, order, lengths, forces, energy = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    rows = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store))).astype(np.int64))
    return Survey(
        name=name,
        store=store,
        kept=Kept(row, composition, order, lengths, forces, energy, share),
        sample_rows=rows,
        sample=[store[int(row)] for row in rows],
    )
