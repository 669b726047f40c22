"""A store in blocks: flat arrays of a few thousand structures, so that checks need no loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lamm.data.columns import ENERGY, FORCES, STRESS, read_batch
from lamm.data.store import Store

BLOCK_ATOMS = 60_000
"""Atoms of a block, about; some 30 MB while it is looked at."""


@dataclass(frozen=True, eq=False)
class Block:
    """Structures that follow each other in a store, S of them with N atoms in all."""

    first_row: int
    sizes: NDArray[np.int64]
    """(S,) atoms of each."""
    numbers: NDArray[np.uint8]
    """(N,)"""
    positions: NDArray[np.float64]
    """(N, 3) Å."""
    cell: NDArray[np.float64]
    """(S, 3, 3) Å."""
    pbc: NDArray[np.bool_]
    """(S, 3)"""
    energy: NDArray[np.float64]
    """(S,) eV; 0 where there is none."""
    forces: NDArray[np.float64]
    """(N, 3) eV/Å; 0 where there are none."""
    stress: NDArray[np.float64]
    """(S, 6) eV/Å³; 0 where there is none."""
    fixed: NDArray[np.bool_]
    """(N,)"""
    labels: NDArray[np.uint8]
    """(S,) bits of what is there in the columns."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """(S,) row numbers in the store."""
        return self.first_row + np.arange(len(self.sizes))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(S,) first atom of each structure."""
        return np.asarray(np.cumsum(self.sizes) - self.sizes)

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """(N,) the structure, counted in the block, that each atom belongs to."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """(N,) place of each atom in its structure."""
        return np.asarray(np.arange(len(self.numbers)) - self.starts[self.owner])

    @property
    def has_energy(self) -> NDArray[np.bool_]:
        """(S,) whether there is a label in the column."""
        return np.asarray((self.labels & ENERGY) > 0)

    @property
    def has_forces(self) -> NDArray[np.bool_]:
        """(S,) whether there is a label in the column."""
        return np.asarray((self.labels & FORCES) > 0)

    @property
    def has_stress(self) -> NDArray[np.bool_]:
        """(S,) whether there is a label in the column."""
        return np.asarray((self.labels & STRESS) > 0)

    @property
    def periodic(self) -> NDArray[np.bool_]:
        """(S,) whether a structure repeats along any direction."""
        return np.asarray(self.pbc.any(axis=1))

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums over the atoms of each structure of (N, ...) values."""
        return np.asarray(np.add.reduceat(values, self.starts, axis=0))

    def max(self, values: NDArray[Any]) -> NDArray[Any]:
        """Largest over the atoms of each structure of (N,) values."""
        return np.asarray(np.maximum.reduceat(values, self.starts))


def read_blocks(store: Store) -> Iterator[Block]:
    """All structures of a store, block after block; a block is of one shard."""
    first_row = 0
    for record in store.card.shards:
        batch = read_batch(store.path / record.name)
        sizes = store.index.num_atoms[first_row : first_row + batch.num_rows].astype(np.int64)
        ends = np.cumsum(sizes)
        start = 0
        while start < len(sizes):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + BLOCK_ATOMS, side="right"))
            stop = max(stop, start + 1)
            yield _block(batch.slice(start, stop - start), first_row + start)
            start = stop
        first_row += batch.num_rows


def _block(batch: pa.RecordBatch, first_row: int) -> Block:
    numbers = batch.column("atomic_numbers")
    sizes = np.diff(numbers.offsets.to_numpy()).astype(np.int64)
    num_atoms = int(sizes.sum())
    pbc = batch.column("pbc").to_numpy()
    present = {name: _present(batch.column(name)) for name in ("energy", "forces", "stress")}
    bits = {"energy": ENERGY, "forces": FORCES, "stress": STRESS}
    forces = np.zeros((num_atoms, 3))
    flat = batch.column("forces").flatten().to_numpy()
    forces[np.repeat(present["forces"], sizes)] = flat.reshape(-1, 3)
    stress = np.zeros((len(sizes), 6))
    given = batch.column("stress").drop_null().flatten().to_numpy()
    stress[present["stress"]] = given.reshape(-1, 6)
    fixed = np.zeros(num_atoms, dtype=bool)
    held = batch.column("fixed").flatten().to_numpy(zero_copy_only=False)
    fixed[np.repeat(_present(batch.column("fixed")), sizes)] = held
    return Block(
        first_row=first_row,
        sizes=sizes,
        numbers=numbers.flatten().to_numpy(),
        positions=batch.column("positions").flatten().to_numpy().reshape(-1, 3).astype(np.float64),
        cell=batch.column("cell").flatten().to_numpy().reshape(-1, 3, 3),
        pbc=np.asarray(pbc[:, None] >> np.arange(3) & 1, dtype=bool),
        energy=batch.column("energy").fill_null(0.0).to_numpy(),
        forces=forces,
        stress=stress,
        fixed=fixed,
        labels=sum(
            (present[name].astype(np.uint8) * np.uint8(bits[name]) for name in bits),
            start=np.zeros(len(sizes), dtype=np.uint8),
        ),
    )


def _present(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False))
