"""Errors of a potential on labelled structures: sums for the table, points for the parity plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lamm.errors import DataError
from lamm.evaluate.metrics import ErrorSums
from lamm.evaluate.parity import Parity
from lamm.evaluate.predict import EvaluatedBatch, predict_batches
from lamm.structure import Structure

if TYPE_CHECKING:
    from lamm.models.potential import Potential

MAX_POINTS = 200_000
"""Points that are kept for each panel of the parity plot: the first ones. Errors are over all."""
FORCES, NOISE = "forces_mae_mev_per_ang", "denoising_mae_own_ang"
WORST = 10
"""Structures that `Evaluation.worst` names."""


@dataclass
class _Points:
    """Labels and predictions of one quantity, up to `MAX_POINTS` of each."""

    labels: list[NDArray[np.float64]] = field(default_factory=list)
    predictions: list[NDArray[np.float64]] = field(default_factory=list)
    count: int = 0

    def add(self, labels: torch.Tensor, predictions: torch.Tensor) -> None:
        room = MAX_POINTS - self.count
        if room > 0 and labels.numel():
            self.labels.append(labels.double().reshape(-1)[:room].cpu().numpy())
            self.predictions.append(predictions.double().reshape(-1)[:room].cpu().numpy())
        self.count += labels.numel()

    def panel(self, title: str, unit: str, mae: float, rmse: float) -> Parity:
        labels, predictions = np.concatenate(self.labels), np.concatenate(self.predictions)
        return Parity(title, unit, labels, predictions, mae, rmse)


@dataclass
class Evaluation:
    """What `evaluate_structures` found."""

    errors: dict[str, Any]
    """Keys of `ErrorSums.result`."""
    rows: list[dict[str, Any]]
    """Per structure: id, origin, num_atoms, energies in eV, and errors in meV/atom and meV/Å.

    Instead of forces a denoising task has the mean absolute error of the noise in Å.
    """
    panels: list[Parity]
    """Energy, forces and stress, where there are labels."""
    num_points: int
    """Most labels of any panel; more than `MAX_POINTS` means that the plot shows a part."""

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
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predict for structures with one output and compare with their labels.

    Args:
        model: the potential.
        structures: with labels; those without any are counted and compared with nothing.
        column: the output to compare.
        denoising: whether the force labels are noise in Å.
        batch_size: structures per batch, fewer where they are large.
        progress: called with the number of structures done after each batch.

    Raises:
        DataError: no structure has a label that can be compared.
    """
    sums = ErrorSums(1, model.energy_scale.device, [denoising])
    points = {name: _Points() for name in ("energy", "forces", "stress")}
    rows: list[dict[str, Any]] = []
    for item in predict_batches(model, structures, column, batch_size=batch_size):
        batch, prediction = item.batch, item.prediction
        energy, forces = prediction.energy[:, 0], prediction.forces[:, 0]
        stress = None if prediction.stress is None else prediction.stress[:, 0]
        batch.subset_index = torch.zeros_like(batch.subset_index)  # the one row of the sums
        sums.update(energy, forces, batch, stress)
        labelled = batch.free & batch.has_forces[batch.structure_index]
        has_energy = batch.has_energy
        size = batch.num_atoms[has_energy]
        points["energy"].add(batch.energy[has_energy] / size, energy[has_energy] / size)
        points["forces"].add(batch.forces[labelled], forces[labelled])
        if stress is not None:
            points["stress"].add(batch.stress[batch.has_stress], stress[batch.has_stress])
        rows.extend(_rows(item, energy, forces, denoising))
        if progress is not None:
            progress(len(rows))
    errors = sums.result(["all"])["all"]
    if set(errors) == {"structures"}:
        raise DataError(
            f"none of the {errors['structures']} structures has a label that this model predicts "
            "(energy, forces, or stress with `forces: gradient`).\n  Name the labels' keys in a "
            "card (`keys:`) if the file calls them otherwise, or use `lamm predict`."
        )
    return Evaluation(
        errors, rows, _panels(points, errors, denoising), max(p.count for p in points.values())
    )


def _panels(points: dict[str, _Points], errors: dict[str, Any], denoising: bool) -> list[Parity]:
    units = {
        "energy": ("Energy", "eV/atom", "mev_per_atom"),
        "forces": ("Forces", "eV/Å", "mev_per_ang"),
        "stress": ("Stress", "eV/Å³", "mev_per_ang3"),
    }
    panels = []
    for name, (title, unit, key) in units.items():
        if not points[name].count:
            continue
        if name == "forces" and denoising:
            panels.append(points[name].panel("Noise", "Å", math.nan, math.nan))
            continue
        mae, rmse = errors[f"{name}_mae_{key}"], errors[f"{name}_rmse_{key}"]
        panels.append(points[name].panel(title, unit, mae, rmse))
    return panels


def _rows(
    item: EvaluatedBatch, energy: torch.Tensor, forces: torch.Tensor, denoising: bool
) -> list[dict[str, Any]]:
    """One row per structure of a batch."""
    force_key, factor = (NOISE, 1.0) if denoising else (FORCES, 1000.0)
    batch = item.batch
    labelled = batch.free & batch.has_forces[batch.structure_index]
    difference = (forces.double() - batch.forces.double()).abs().mean(dim=1) * labelled  # (N,)
    total = difference.new_zeros(batch.num_structures)
    mae = total.index_add(0, batch.structure_index, difference) / total.index_add(
        0, batch.structure_index, labelled.double()
    )
    columns = zip(
        item.structures,
        energy.tolist(),
        batch.energy.tolist(),
        batch.has_energy.tolist(),
        (factor * mae).tolist(),
        batch.has_forces.tolist(),
        strict=True,
    )
    return [
        {
            "id": structure.id,
            "origin": structure.origin,
            "num_atoms": structure.num_atoms,
            "energy_ev": predicted,
            "energy_label_ev": label if has_energy else None,
            "energy_error_mev_per_atom": (
                1000 * (predicted - label) / structure.num_atoms if has_energy else None
            ),
            force_key: force_error if has_forces else None,
        }
        for structure, predicted, label, has_energy, force_error, has_forces in columns
    ]
