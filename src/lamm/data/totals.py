"""What a card says of all structures together, counted and fitted shard by shard."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamm.data.cards import AtomCounts, element_symbols
from lamm.data.columns import ENERGY, FORCES, STRESS, Columns
from lamm.data.references import (
    NUM_ELEMENTS,
    ForceScale,
    ReferenceAccumulator,
    energy_scale,
    flat_composition_counts,
    force_scale,
)
from lamm.data.splits import TEST, TRAIN, VAL, assign_splits

_FIT_ROWS = 4096


class Totals:
    """What the card says of all structures, shard by shard."""

    def __init__(self) -> None:
        self.num_structures = 0
        self.num_periodic = 0
        self.smallest, self.largest, self.num_atoms = np.iinfo(np.int64).max, 0, 0
        self.labels = {"energy": 0, "forces": 0, "stress": 0}
        self.splits = {TRAIN: 0, VAL: 0, TEST: 0}
        self.has_element = np.zeros(NUM_ELEMENTS, dtype=bool)
        self.references, self.forces = ReferenceAccumulator(), ForceScale()

    def add(self, columns: Columns, labels: NDArray[np.uint8], id_hash: NDArray[np.uint64]) -> None:
        """Count the structures of a shard, and fit what is for training."""
        sizes = columns.num_atoms
        self.num_structures += len(sizes)
        self.num_periodic += int(columns.periodic.sum())
        self.smallest = min(self.smallest, int(sizes.min()))
        self.largest = max(self.largest, int(sizes.max()))
        self.num_atoms += int(sizes.sum())
        for name, bit in (("energy", ENERGY), ("forces", FORCES), ("stress", STRESS)):
            self.labels[name] += int(np.count_nonzero(labels & bit))
        split = assign_splits(id_hash, columns.split)
        for code in self.splits:
            self.splits[code] += int(np.count_nonzero(split == code))
        self.has_element |= np.bincount(columns.atomic_numbers, minlength=NUM_ELEMENTS) > 0
        self._fit(columns, labels, split == TRAIN)

    def _fit(self, columns: Columns, labels: NDArray[np.uint8], train: NDArray[np.bool_]) -> None:
        sizes, energy = columns.num_atoms, columns.energy
        starts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        with_energy = train & ((labels & ENERGY) > 0)
        for first in range(0, len(sizes), _FIT_ROWS):
            last = min(first + _FIT_ROWS, len(sizes))
            numbers = columns.atomic_numbers[starts[first] : starts[last]]
            chosen = with_energy[first:last]
            counts = flat_composition_counts(numbers, sizes[first:last])[chosen]
            self.references.add(counts, energy[first:last][chosen])
        self.forces.add(columns.free_forces(train & ((labels & FORCES) > 0)))

    def card_entries(self) -> dict[str, Any]:
        """The entries of a card that follow from the structures."""
        fitted = self.references.solve()
        symbols = element_symbols(np.flatnonzero(fitted.known))
        return {
            "labels": tuple(name for name, count in self.labels.items() if count),
            "label_counts": self.labels,
            "periodic": {0: False, self.num_structures: True}.get(self.num_periodic),
            "num_periodic": self.num_periodic,
            "num_structures": self.num_structures,
            "num_atoms": AtomCounts(
                min=int(self.smallest),
                mean=self.num_atoms / self.num_structures,
                max=self.largest,
                total=self.num_atoms,
            ),
            "elements": element_symbols(np.flatnonzero(self.has_element)),
            "num_train": self.splits[TRAIN],
            "num_val": self.splits[VAL],
            "num_test": self.splits[TEST],
            "reference_energies": dict(
                zip(symbols, fitted.energies[fitted.known].tolist(), strict=True)
            ),
            "energy_scale": energy_scale(fitted) if self.labels["energy"] else None,
            "force_scale": force_scale(self.forces) if self.labels["forces"] else None,
        }
