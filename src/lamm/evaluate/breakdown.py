"""Labels and errors as flat arrays, and what follows from them: medians, elements, sizes, cosines.

`lamm.evaluate.metrics` sums errors during training, where only a mean is wanted. A median needs all
of them at once, so an evaluation keeps its labels and errors (29 bytes per atom).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from lamm.evaluate.metrics import MILLI
from lamm.graph.batch import GraphBatch

MIN_FORCE = 1e-3
"""eV/Å: a label shorter than this has no direction to speak of, and no cosine."""
SIZE_CLASSES = ((1, 10), (11, 20), (21, 50), (51, 100), (101, 200), (201, None))
"""Fewest and most atoms of each size class."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Labels and errors (prediction minus label) of one output, in the order of the structures.

    Only what has a label is there: energies of some structures, forces of their free atoms, and
    stresses where the model predicts them. `..._row` says which structure an entry belongs to.
    """

    num_atoms: NDArray[np.int64]
    """(structures,)"""
    energy_row: NDArray[np.int64]
    """(energies,)"""
    energy_label: NDArray[np.float64]
    """(energies,) eV/atom."""
    energy_error: NDArray[np.float64]
    """(energies,) eV/atom."""
    atom_row: NDArray[np.int64]
    """(atoms,)"""
    element: NDArray[np.uint8]
    """(atoms,) atomic number."""
    force_label: NDArray[np.float32]
    """(atoms, 3) eV/Å, or Å where it is noise."""
    force_error: NDArray[np.float32]
    """(atoms, 3), likewise."""
    force_sigma: NDArray[np.float32]
    """(atoms,) standard deviation of the components, in eV/Å; (0,) where none is known."""
    stress_row: NDArray[np.int64]
    """(stresses,)"""
    stress_label: NDArray[np.float64]
    """(stresses, 6) eV/Å³."""
    stress_error: NDArray[np.float64]
    """(stresses, 6) eV/Å³."""


_EMPTY: dict[str, tuple[type, tuple[int, ...]]] = {
    "num_atoms": (np.int64, ()),
    "energy_row": (np.int64, ()),
    "energy_label": (np.float64, ()),
    "energy_error": (np.float64, ()),
    "atom_row": (np.int64, ()),
    "element": (np.uint8, ()),
    "force_label": (np.float32, (3,)),
    "force_error": (np.float32, (3,)),
    "force_sigma": (np.float32, ()),
    "stress_row": (np.int64, ()),
    "stress_label": (np.float64, (6,)),
    "stress_error": (np.float64, (6,)),
}


def labelled_atoms(batch: GraphBatch) -> Tensor:
    """(N,) which atoms are free and have a force label."""
    counted: Tensor = batch.free & batch.has_forces[batch.structure_index]
    return counted


@dataclass
class ComparisonParts:
    """What batches add to a `Comparison`."""

    parts: dict[str, list[NDArray[Any]]] = field(default_factory=lambda: {k: [] for k in _EMPTY})
    structures: int = 0

    def add(
        self,
        energy: Tensor,
        forces: Tensor,
        batch: GraphBatch,
        stress: Tensor | None = None,
        force_sigma: NDArray[np.float64] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            energy: (B,) prediction in eV.
            forces: (N, 3) prediction in eV/Å.
            batch: with labels.
            stress: (B, 6) prediction in eV/Å³.
            force_sigma: (N,) standard deviation of the forces' components in eV/Å.
        """
        rows = self.structures + torch.arange(batch.num_structures, device=energy.device)
        self.structures += batch.num_structures
        has, size = batch.has_energy, batch.num_atoms
        self._put("num_atoms", size)
        self._put("energy_row", rows[has])
        self._put("energy_label", (batch.energy.double() / size)[has])
        self._put("energy_error", ((energy.double() - batch.energy.double()) / size)[has])
        counted = labelled_atoms(batch)
        self._put("atom_row", rows[batch.structure_index][counted])
        self._put("element", batch.atomic_numbers[counted])
        self._put("force_label", batch.forces[counted])
        self._put("force_error", forces.double()[counted] - batch.forces.double()[counted])
        if force_sigma is not None:
            self._put("force_sigma", torch.as_tensor(force_sigma)[counted.cpu()])
        if stress is not None:
            has = batch.has_stress
            self._put("stress_row", rows[has])
            self._put("stress_label", batch.stress[has])
            self._put("stress_error", stress.double()[has] - batch.stress.double()[has])

    def _put(self, name: str, values: Tensor) -> None:
        self.parts[name].append(values.cpu().numpy().astype(_EMPTY[name][0]))

    def joined(self) -> Comparison:
        """All batches as one."""
        return Comparison(
            **{
                name: np.concatenate([np.zeros((0, *shape), dtype), *self.parts[name]])
                for name, (dtype, shape) in _EMPTY.items()
            }
        )


def energy_errors(error: NDArray[np.float64]) -> Row:
    """MAE, RMSE and median absolute error in meV/atom of errors (energies,) in eV/atom."""
    if not len(error):
        return {}
    mae, rmse, median = _mae_rmse_median(error)
    return {
        "energy_mae_mev_per_atom": mae,
        "energy_rmse_mev_per_atom": rmse,
        "energy_median_mev_per_atom": median,
    }


def stress_errors(error: NDArray[np.float64]) -> Row:
    """MAE, RMSE and median absolute error in meV/Å³ over components of (stresses, 6) in eV/Å³."""
    if not len(error):
        return {}
    mae, rmse, median = _mae_rmse_median(error)
    return {
        "stress_mae_mev_per_ang3": mae,
        "stress_rmse_mev_per_ang3": rmse,
        "stress_median_mev_per_ang3": median,
    }


def force_errors(label: NDArray[np.float32], error: NDArray[np.float32]) -> Row:
    """Errors of forces by component and by vector, and how well their directions agree.

    Args:
        label: (atoms, 3) in eV/Å.
        error: (atoms, 3), prediction minus label.

    Returns:
        In meV/Å over Cartesian components ``forces_{mae,rmse,median}_mev_per_ang``; over atoms
        ``force_norm_{mae,rmse,median}_mev_per_ang`` of the length of the error vector, and
        ``force_magnitude_mae_mev_per_ang``, mean difference of the two lengths without its sign.
        ``force_cosine`` is `mean_cosine`, absent where no atom has one, and
        ``force_cosine_atoms`` the number of atoms in it. Nothing at all without atoms.
    """
    if not len(error):
        return {}
    predicted = label.astype(np.float64) + error
    length = np.linalg.norm(error, axis=1)
    magnitude = np.linalg.norm(predicted, axis=1) - np.linalg.norm(label, axis=1)
    components, vectors = _mae_rmse_median(error), _mae_rmse_median(length)
    cosine, count = mean_cosine(label, predicted)
    names = ("mae", "rmse", "median")
    return {
        **{f"forces_{n}_mev_per_ang": v for n, v in zip(names, components, strict=True)},
        **{f"force_norm_{n}_mev_per_ang": v for n, v in zip(names, vectors, strict=True)},
        "force_magnitude_mae_mev_per_ang": _mae_rmse_median(magnitude)[0],
        **({} if cosine is None else {"force_cosine": cosine}),
        "force_cosine_atoms": count,
    }


def mean_cosine(
    label: NDArray[np.floating[Any]], predicted: NDArray[np.floating[Any]]
) -> tuple[float | None, int]:
    """Mean cosine of the angle between forces, and over how many atoms.

    A label shorter than `MIN_FORCE` has no direction, and its atom is left out. A prediction of
    exactly zero for any other label has missed the direction: its cosine is 0.

    Args:
        label: (atoms, 3) eV/Å.
        predicted: (atoms, 3) eV/Å.

    Returns:
        The mean, None where every atom was left out, and the number of atoms in it.
    """
    length = np.linalg.norm(label, axis=1)
    counted = length >= MIN_FORCE
    if not counted.any():
        return None, 0
    product = length[counted] * np.linalg.norm(predicted[counted], axis=1)
    dot = np.einsum("na,na->n", label[counted], predicted[counted], dtype=np.float64)
    cosine = np.where(product == 0, 0.0, dot / np.where(product == 0, 1.0, product))
    return float(cosine.mean()), int(counted.sum())


def overall_errors(comparison: Comparison) -> Row:
    """Errors of energies, forces and stresses over all structures."""
    return (
        energy_errors(comparison.energy_error)
        | force_errors(comparison.force_label, comparison.force_error)
        | stress_errors(comparison.stress_error)
    )


def errors_by_element(comparison: Comparison) -> list[Row]:
    """`force_errors` of the atoms of each element, most frequent first, with ``atoms`` of it."""
    counts = np.bincount(comparison.element, minlength=1)
    order = sorted(np.flatnonzero(counts), key=lambda z: (-counts[z], z))
    rows = []
    for z in order:
        mine = comparison.element == z
        errors = force_errors(comparison.force_label[mine], comparison.force_error[mine])
        rows.append({"element": chemical_symbols[z], "atoms": int(counts[z])} | errors)
    return rows


def errors_by_size(
    comparison: Comparison, classes: Sequence[tuple[int, int | None]] = SIZE_CLASSES
) -> list[Row]:
    """Errors of the structures of each size class that has any, with ``structures`` in it."""
    rows = []
    for low, high in classes:
        inside = (comparison.num_atoms >= low) & (comparison.num_atoms <= (high or np.inf))
        if not inside.any():
            continue
        energies = inside[comparison.energy_row]
        atoms, stresses = inside[comparison.atom_row], inside[comparison.stress_row]
        rows.append(
            {
                "atoms_per_structure": f"{low}–{high}" if high else f"above {low - 1}",
                "structures": int(inside.sum()),
            }
            | energy_errors(comparison.energy_error[energies])
            | force_errors(comparison.force_label[atoms], comparison.force_error[atoms])
            | stress_errors(comparison.stress_error[stresses])
        )
    return rows


def _mae_rmse_median(error: NDArray[np.floating[Any]]) -> tuple[float, float, float]:
    """In thousandths, over all entries."""
    size = np.abs(error, dtype=np.float64)
    return (
        float(MILLI * size.mean()),
        float(MILLI * np.sqrt(np.square(size).mean())),
        float(MILLI * np.median(size)),
    )
