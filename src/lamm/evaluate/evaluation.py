"""Errors of a potential on labelled structures: overall, by element, size and structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import NDArray

from lamm.errors import DataError
from lamm.evaluate.breakdown import (
    Comparison,
    ComparisonParts,
    errors_by_element,
    errors_by_size,
    mean_cosine,
    overall_errors,
)
from lamm.evaluate.metrics import ErrorSums
from lamm.evaluate.parity import Parity
from lamm.evaluate.predict import (
    EvaluatedBatch,
    predict_batches,
    unknown_elements,
    unknown_elements_message,
)
from lamm.evaluate.rigidity import Array, Calibration, calibration
from lamm.evaluate.uncertainty import Uncertainty, calibration_of
from lamm.structure import Structure

if TYPE_CHECKING:
    from lamm.models.potential import Potential

MAX_POINTS = 200_000
"""Points of each panel of the parity plot at most, taken at equal steps. Errors are over all."""
FORCES, NOISE = "forces_mae_mev_per_ang", "denoising_mae_own_ang"
FORCES_RMSE, FORCES_LARGEST = "forces_rmse_mev_per_ang", "force_norm_largest_mev_per_ang"
UNCERTAINTY, LARGEST = "energy_uncertainty_ev", "forces_uncertainty_largest_ev_per_ang"
COSINE, STRESS = "force_cosine", "stress_mae_mev_per_ang3"
WORST = 10
"""Structures that `Evaluation.worst` names."""


@dataclass
class Evaluation:
    """What `evaluate_structures` found."""

    errors: dict[str, Any]
    """Keys of `ErrorSums.result` and, but for the denoising task, of `overall_errors`."""
    by_element: list[dict[str, Any]]
    """Rows of `errors_by_element`; none for the denoising task."""
    by_size: list[dict[str, Any]]
    """Rows of `errors_by_size`; none for the denoising task."""
    comparison: Comparison
    """All labels and errors."""
    rows: list[dict[str, Any]]
    """Per structure: id, origin, num_atoms, energies in eV, errors in meV/atom, meV/Å and meV/Å³,
    and the mean cosine between predicted and labelled forces; None where there is no label.

    Instead of forces a denoising task has the mean absolute error of the noise in Å.
    """
    panels: list[Parity]
    """Energy, forces and stress, where there are labels."""
    num_points: int
    """Most labels of any panel; more than `MAX_POINTS` means that the plot shows a part."""
    calibration: Calibration | None
    """How well the energies' uncertainties tell their errors, where both are there."""
    force_calibration: Calibration | None
    """Likewise of the forces' components."""
    unknown_elements: list[str]
    """Symbols of elements that the head wasn't trained on; none for the denoising task."""
    warning: str
    """What such elements mean; empty without any."""

    @property
    def is_finite(self) -> bool:
        """Whether every error is a number."""
        return all(math.isfinite(value) for value in self.errors.values())

    def worst(self) -> list[dict[str, Any]]:
        """Rows with the largest error of forces, or of energies where there are no forces."""
        for key in (FORCES, NOISE, "energy_error_mev_per_atom"):
            having = [row for row in self.rows if row.get(key) is not None]
            if having:
                return sorted(having, key=lambda row: -abs(row[key]))[:WORST]
        return []


def evaluate_structures(
    model: Potential,
    structures: Iterable[Structure],
    column: int,
    *,
    denoising: bool = False,
    uncertainty: Uncertainty | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predict for structures with one output and compare with their labels.

    Args:
        model: the potential.
        structures: with labels; those without any are counted and compared with nothing.
        column: the output to compare.
        denoising: whether the force labels are noise in Å.
        uncertainty: adds standard deviations, and how well they are calibrated.
        batch_size: structures per batch, fewer where they are large.
        progress: called with the number of structures done after each batch.

    Raises:
        DataError: no structure has a label that can be compared.
    """
    sums = ErrorSums(1, model.energy_scale.device, [denoising])
    parts = ComparisonParts()
    rows: list[dict[str, Any]] = []
    head = model.subsets[column]
    present: set[int] = set()
    for item in predict_batches(
        model, structures, column, batch_size=batch_size, last_layer=uncertainty is not None
    ):
        batch, prediction = item.batch, item.prediction
        energy, forces = prediction.energy[:, 0], prediction.forces[:, 0]
        stress = None if prediction.stress is None else prediction.stress[:, 0]
        batch.subset_index = torch.zeros_like(batch.subset_index)  # the one row of the sums
        sums.update(energy, forces, batch, stress)
        force_sigma = None if uncertainty is None else uncertainty.forces_sigma(head, item)
        parts.add(energy, forces, batch, stress, force_sigma)
        present |= set(batch.atomic_numbers.unique().tolist())
        rows.extend(_rows(item, energy))
        if uncertainty is not None:
            _add_uncertainty(
                rows[-len(item.structures) :], uncertainty.energy_sigma(head, item), force_sigma
            )
        if progress is not None:
            progress(len(rows))
    errors = sums.result(["all"])["all"]
    if set(errors) == {"structures"}:
        raise DataError(
            f"none of the {errors['structures']} structures has a label that this model predicts "
            "(energy, forces, or stress with `forces: gradient`).\n  Name the labels' keys in a "
            "card (`keys:`) if the file calls them otherwise, or use `lamm predict`."
        )
    comparison = parts.joined()
    _add_errors(rows, comparison, denoising)
    by_element, by_size = [], []
    if not denoising:
        errors = {"structures": len(rows)} | overall_errors(comparison) | errors
        by_element, by_size = errors_by_element(comparison), errors_by_size(comparison)
    panels, num_points = _panels(comparison, errors, denoising)
    unknown = [] if denoising else unknown_elements(model, column, sorted(present))
    return Evaluation(
        errors,
        by_element,
        by_size,
        comparison,
        rows,
        panels,
        num_points,
        calibration_of(rows),
        _force_calibration(comparison),
        unknown,
        unknown_elements_message(model, column, unknown) if unknown else "",
    )


def _add_uncertainty(rows: list[dict[str, Any]], energies: Array, forces: Array | None) -> None:
    """Add standard deviations to the rows of a batch: of the energy, and the forces' largest."""
    start = 0
    for row, sigma in zip(rows, energies.tolist(), strict=True):
        row[UNCERTAINTY] = sigma
        stop = start + row["num_atoms"]
        if forces is not None:
            row[LARGEST] = float(forces[start:stop].max())
        start = stop


def _force_calibration(comparison: Comparison) -> Calibration | None:
    """Calibration of the forces' components; None where no deviations or labels are there."""
    if not len(comparison.force_sigma):
        return None
    error, sigma = comparison.force_error, comparison.force_sigma
    return calibration(error.astype(np.float64), sigma.astype(np.float64))


def _panels(
    comparison: Comparison, errors: dict[str, Any], denoising: bool
) -> tuple[list[Parity], int]:
    """Parity of each quantity that has labels, and most labels of any of them."""
    kinds = {
        "energy": ("Energy", "eV/atom", "mev_per_atom"),
        "forces": ("Forces", "eV/Å", "mev_per_ang"),
        "stress": ("Stress", "eV/Å³", "mev_per_ang3"),
    }
    values: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "energy": (comparison.energy_label, comparison.energy_error),
        "forces": (comparison.force_label, comparison.force_error),
        "stress": (comparison.stress_label, comparison.stress_error),
    }
    panels = []
    for name, (title, unit, key) in kinds.items():
        label, error = (array.reshape(-1) for array in values[name])
        if not len(label):
            continue
        step = -(-len(label) // MAX_POINTS)
        some = label[::step].astype(np.float64)
        points = some, some + error[::step]
        if name == "forces" and denoising:
            panels.append(Parity("Noise", "Å", *points))
            continue
        mae, rmse = errors[f"{name}_mae_{key}"], errors[f"{name}_rmse_{key}"]
        panels.append(Parity(title, unit, *points, mae, rmse))
    return panels, max(array.size for array, _ in values.values())


def _rows(item: EvaluatedBatch, energy: torch.Tensor) -> list[dict[str, Any]]:
    """One row per structure of a batch: what it is and its energies; `_add_errors` adds more."""
    columns = zip(
        item.structures,
        energy.tolist(),
        item.batch.energy.tolist(),
        item.batch.has_energy.tolist(),
        strict=True,
    )
    return [
        {
            "id": structure.id,
            "origin": structure.origin,
            "formula": Formula.from_list(
                [chemical_symbols[z] for z in structure.atomic_numbers]
            ).format("hill"),
            "num_atoms": structure.num_atoms,
            "energy_ev": predicted,
            "energy_label_ev": label if has_energy else None,
            "energy_error_mev_per_atom": (
                1000 * (predicted - label) / structure.num_atoms if has_energy else None
            ),
        }
        for structure, predicted, label, has_energy in columns
    ]


def _add_errors(rows: list[dict[str, Any]], comparison: Comparison, denoising: bool) -> None:
    """Add the errors of forces (or noise) and stress to each structure's row."""
    names = (NOISE,) if denoising else (FORCES, FORCES_RMSE, FORCES_LARGEST, COSINE)
    for row in rows:
        row.update(dict.fromkeys(names))
    for k, mine in _groups(comparison.atom_row):
        error = comparison.force_error[mine].astype(np.float64)
        if denoising:
            rows[k][NOISE] = float(np.abs(error).mean())
            continue
        label = comparison.force_label[mine].astype(np.float64)
        rows[k][FORCES] = float(1000 * np.abs(error).mean())
        rows[k][FORCES_RMSE] = float(1000 * np.sqrt(np.square(error).mean()))
        rows[k][FORCES_LARGEST] = float(1000 * np.linalg.norm(error, axis=1).max())
        rows[k][COSINE] = mean_cosine(label, label + error)[0]
    if len(comparison.stress_row):
        for row in rows:
            row[STRESS] = None
        for k, error in zip(comparison.stress_row, comparison.stress_error, strict=True):
            rows[k][STRESS] = float(1000 * np.abs(error).mean())


def _groups(rows: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Each value of an ascending array, and where it stands."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    for start, stop in pairwise([*starts.tolist(), len(rows)]):
        yield int(rows[start]), slice(start, stop)
