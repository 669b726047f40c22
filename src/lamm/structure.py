"""One structure: its atoms, its cell and the labels that it has.

A `Structure` is what readers give, what the store takes and gives back, and what graphs are built
from. Energies are eV, positions Å, forces eV/Å, stress eV/Å³ (Voigt order xx yy zz yz xz xy, ASE's
sign). A label that a structure lacks is ``None``, never NaN or zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamm.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

MAX_ATOMIC_NUMBER = 118
SPLITS = ("train", "val", "test")
_CERTAIN_VOLUME = 1e-2
"""Å³; a cell of at least this volume spans space, however thin."""


def _no_cell() -> NDArray[np.float64]:
    return np.zeros((3, 3))


def _no_pbc() -> NDArray[np.bool_]:
    return np.zeros(3, dtype=bool)


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms, cell and labels of one sample, as plain arrays in eV and Å."""

    atomic_numbers: NDArray[np.uint8]
    """(N,) element of each atom, 1 to 118."""
    positions: NDArray[np.floating[Any]]
    """(N, 3) in Å, in the precision of the source."""
    cell: NDArray[np.float64] = field(default_factory=_no_cell)
    """(3, 3) in Å, rows are the lattice vectors; zero where there is none."""
    pbc: NDArray[np.bool_] = field(default_factory=_no_pbc)
    """(3,) whether each lattice vector repeats."""
    energy: float | None = None
    """Total energy in eV, by the convention of the subset's card."""
    forces: NDArray[np.floating[Any]] | None = None
    """(N, 3) in eV/Å."""
    stress: NDArray[np.float64] | None = None
    """(6,) in eV/Å³."""
    fixed: NDArray[np.bool_] | None = None
    """(N,) atoms that the source held still; their forces are no label."""
    id: str = ""
    origin: str = ""
    """File and record that the structure came from."""
    split: str | None = None
    """'train', 'val' or 'test' where the source says so."""

    @property
    def num_atoms(self) -> int:
        """How many atoms there are."""
        return len(self.atomic_numbers)

    @property
    def has_energy(self) -> bool:
        """Whether there is an energy label."""
        return self.energy is not None

    @property
    def has_forces(self) -> bool:
        """Whether there is a force label."""
        return self.forces is not None

    def check(self) -> None:
        """Raise `DataError` with the first thing that is wrong with the structure.

        Checked: at least one atom, elements 1 to 118, the shape of every array, finite numbers
        everywhere, a cell that spans space along each periodic direction, and a known split.
        """
        reason = self._fault()
        if reason:
            raise DataError(f"{self.origin or self.id or 'structure'}: {reason}")

    def _fault(self) -> str | None:
        n = self.num_atoms
        if n == 0:
            return "no atoms; a structure has at least one. Remove the record."
        numbers = np.asarray(self.atomic_numbers)
        if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
            wrong = int(numbers[(numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)][0])
            return f"unknown element {wrong}; atomic numbers are 1 to {MAX_ATOMIC_NUMBER}."
        shapes = (
            ("positions", self.positions, (n, 3)),
            ("cell", self.cell, (3, 3)),
            ("pbc", self.pbc, (3,)),
            ("forces", self.forces, (n, 3)),
            ("stress", self.stress, (6,)),
            ("fixed", self.fixed, (n,)),
        )
        for name, array, shape in shapes:
            if array is None:
                continue
            if array.shape != shape:
                return f"'{name}' has shape {array.shape}, expected {shape} for {n} atoms."
            if not np.isfinite(array).all():
                return (
                    f"'{name}' has a value that is not finite. "
                    "Mend the record or leave the label out."
                )
        if self.energy is not None and not np.isfinite(self.energy):
            return f"energy is {self.energy}. Mend the record or leave the label out."
        return self._cell_fault() or self._split_fault()

    def _cell_fault(self) -> str | None:
        if self.pbc.all() and abs(np.linalg.det(self.cell)) > _CERTAIN_VOLUME:
            return None
        periodic = self.cell[self.pbc]
        if len(periodic) and np.linalg.matrix_rank(periodic, tol=1e-6) < len(periodic):
            return (
                f"periodic along {self.pbc.tolist()} but the cell {self.cell.tolist()} "
                "does not span those directions."
            )
        return None

    def _split_fault(self) -> str | None:
        if self.split is not None and self.split not in SPLITS:
            return f"split '{self.split}' is not one of {', '.join(SPLITS)}."
        return None

    def to_atoms(self) -> Atoms:
        """The same structure for ASE, with its labels in a `SinglePointCalculator`."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.constraints import FixAtoms

        atoms = Atoms(
            numbers=self.atomic_numbers, positions=self.positions, cell=self.cell, pbc=self.pbc
        )
        labels = {"energy": self.energy, "forces": self.forces, "stress": self.stress}
        present = {name: value for name, value in labels.items() if value is not None}
        if present:
            atoms.calc = SinglePointCalculator(atoms, **present)
        if self.fixed is not None and self.fixed.any():
            atoms.set_constraint(FixAtoms(mask=self.fixed))
        atoms.info["id"] = self.id
        if self.split is not None:
            atoms.info["split"] = self.split
        return atoms
