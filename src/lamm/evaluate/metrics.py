"""Errors per subset in meV/atom, meV/Å and meV/Å³, summed on the device and over all ranks.

A sum of errors and a count of labels for each quantity are all that a mean over any number of
batches and ranks needs. `ErrorSums` keeps them in one float64 tensor: batches add to it without
waiting for the device, ranks add theirs by one all-reduce, and `ErrorSums.result` divides last.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from torch import Tensor

from lamm.graph.batch import GraphBatch

MILLI = 1000.0
"""meV in an eV."""


class Quantity(IntEnum):
    """Columns of `ErrorSums.tensor`."""

    STRUCTURES = 0
    ENERGIES = 1
    """Structures with an energy label."""
    ENERGY_ABS = 2
    """Sum over them of the absolute error per atom, eV."""
    ENERGY_SQUARE = 3
    FORCE_ATOMS = 4
    """Free atoms with a force label."""
    FORCE_ABS = 5
    """Sum over them and their three components of the absolute error, eV/Å (noise: Å)."""
    FORCE_SQUARE = 6
    FORCE_NORM = 7
    """Sum over them of the length of the error vector."""
    CENTRED_ABS = 8
    """As FORCE_ABS, each structure's mean removed from label and prediction; denoising only."""
    STRESSES = 9
    """Structures with a stress label and a predicted stress."""
    STRESS_ABS = 10
    """Sum over them and their six components of the absolute error, eV/Å³."""
    STRESS_SQUARE = 11


class ErrorSums:
    """Sums of errors and counts of labels for each subset.

    What counts: energies of structures whose ``has_energy`` is True; forces of atoms that are
    ``free`` in structures whose ``has_forces`` is True; stresses where ``has_stress`` is True and a
    stress is predicted. Where a mask is False the label may hold anything, NaN included.
    """

    tensor: Float[Tensor, "subsets quantities"]
    """float64; ranks are joined by adding their tensors. Columns as in `Quantity`."""

    def __init__(
        self,
        num_subsets: int,
        device: torch.device | str = "cpu",
        denoising: ArrayLike | None = None,
    ) -> None:
        """Start with zeros.

        Args:
            num_subsets: D.
            device: where the batches are.
            denoising: (D,) subsets whose force labels are noise in Å; none where not given.
        """
        self.tensor = torch.zeros((num_subsets, len(Quantity)), dtype=torch.float64, device=device)
        flags = [False] * num_subsets if denoising is None else denoising
        self.denoising = torch.as_tensor(flags, dtype=torch.bool).tolist()
        if len(self.denoising) != num_subsets:
            raise ValueError(
                f"{len(self.denoising)} denoising flags for {num_subsets} subsets; one each."
            )

    def update(
        self,
        energy: Float[Tensor, " structures"],
        forces: Float[Tensor, "atoms 3"],
        batch: GraphBatch,
        stress: Float[Tensor, "structures 6"] | None = None,
    ) -> None:
        """Add the errors of a batch, without waiting for the device.

        Args:
            energy: prediction in eV, in each structure's own column.
            forces: prediction in eV/Å (in Å where the label is noise), likewise.
            batch: labels, masks and ``subset_index``. It may be empty.
            stress: prediction in eV/Å³, where there is one.
        """
        subset, owner = batch.subset_index, batch.structure_index
        self._add(subset, Quantity.STRUCTURES, torch.ones_like(energy))

        error = _masked(batch.has_energy, energy.double() - batch.energy) / batch.num_atoms
        self._add(subset, Quantity.ENERGIES, batch.has_energy)
        self._add(subset, Quantity.ENERGY_ABS, error.abs())
        self._add(subset, Quantity.ENERGY_SQUARE, error.square())

        labelled = batch.free & batch.has_forces[owner]  # (N,)
        difference = _masked(labelled, forces.double() - batch.forces.double())  # (N, 3)
        subset_of_atom = subset[owner]
        self._add(subset_of_atom, Quantity.FORCE_ATOMS, labelled)
        self._add(subset_of_atom, Quantity.FORCE_ABS, difference.abs().sum(dim=1))
        self._add(subset_of_atom, Quantity.FORCE_SQUARE, difference.square().sum(dim=1))
        self._add(subset_of_atom, Quantity.FORCE_NORM, difference.norm(dim=1))
        if any(self.denoising):
            # The mean is linear: that of the difference is all that has to be removed.
            centred = without_mean(difference, labelled, batch)
            self._add(subset_of_atom, Quantity.CENTRED_ABS, centred.abs().sum(dim=1))

        if stress is not None:
            difference = _masked(batch.has_stress, stress.double() - batch.stress.double())
            self._add(subset, Quantity.STRESSES, batch.has_stress)
            self._add(subset, Quantity.STRESS_ABS, difference.abs().sum(dim=1))
            self._add(subset, Quantity.STRESS_SQUARE, difference.square().sum(dim=1))

    def _add(self, subset: Tensor, quantity: Quantity, values: Tensor) -> None:
        self.tensor[:, quantity].index_add_(0, subset, values.double())

    def result(self, subset_names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The errors of each subset; this waits for the device.

        Every mean is over labels: of energies over structures, of forces over all free atoms of the
        subset (and their components), so that a large structure weighs more than a small one.

        Args:
            subset_names: (D,) names in the order of the columns.

        Returns:
            Per subset, where it has such labels: ``structures`` (their number),
            ``energy_mae_mev_per_atom`` and ``energy_rmse_mev_per_atom`` (of the energy divided by
            the number of atoms); ``forces_mae_mev_per_ang`` and ``forces_rmse_mev_per_ang`` (over
            Cartesian components), ``force_norm_mae_mev_per_ang`` (mean length of the error vector);
            ``stress_mae_mev_per_ang3`` and ``stress_rmse_mev_per_ang3`` (over the six components).

            A denoising subset has, instead of forces, the two errors of Fig. 7, each the mean
            absolute error over Cartesian components of all its atoms, in Å.
            ``denoising_mae_own_ang`` compares with the subset's own labels, whether they were
            centred or not. ``denoising_mae_fair_ang`` removes each structure's mean from the labels
            and from the prediction first: it leaves out the translation, which no model that sees
            relative positions can know, and so is fair to both kinds of label.
        """
        if len(subset_names) != len(self.denoising):
            raise ValueError(f"{len(subset_names)} names for {len(self.denoising)} subsets")
        rows = self.tensor.tolist()
        return {
            name: _errors(row, is_noise)
            for name, row, is_noise in zip(subset_names, rows, self.denoising, strict=True)
        }


def without_mean(
    values: Float[Tensor, "atoms 3"], counted: Bool[Tensor, " atoms"], batch: GraphBatch
) -> Float[Tensor, "atoms 3"]:
    """Remove each structure's mean over its counted atoms; the other atoms become zero.

    Args:
        values: a vector per atom, zero where it doesn't count.
        counted: which atoms count.
        batch: which structure each atom belongs to.
    """
    owner = batch.structure_index
    total = values.new_zeros((batch.num_structures, 3)).index_add_(0, owner, values)
    count = values.new_zeros(batch.num_structures).index_add_(0, owner, counted.to(values))
    mean = total / count.clamp(min=1)[:, None]  # (B, 3)
    return _masked(counted, values - mean[owner])


def _masked(mask: Tensor, values: Tensor) -> Tensor:
    """Zero where the mask is False, whatever the value there."""
    shaped = mask.reshape(-1, *(1 for _ in values.shape[1:]))
    return torch.where(shaped, values, torch.zeros_like(values))


def _errors(row: Sequence[float], is_noise: bool) -> dict[str, Any]:
    def mean(quantity: Quantity, count: float, factor: float = MILLI) -> float:
        return factor * row[quantity] / count

    def root(quantity: Quantity, count: float) -> float:
        return float(MILLI * (row[quantity] / count) ** 0.5)

    errors: dict[str, Any] = {"structures": round(row[Quantity.STRUCTURES])}
    if energies := row[Quantity.ENERGIES]:
        errors["energy_mae_mev_per_atom"] = mean(Quantity.ENERGY_ABS, energies)
        errors["energy_rmse_mev_per_atom"] = root(Quantity.ENERGY_SQUARE, energies)
    atoms = row[Quantity.FORCE_ATOMS]
    if atoms and is_noise:
        errors["denoising_mae_own_ang"] = mean(Quantity.FORCE_ABS, 3 * atoms, 1.0)
        errors["denoising_mae_fair_ang"] = mean(Quantity.CENTRED_ABS, 3 * atoms, 1.0)
    elif atoms:
        errors["forces_mae_mev_per_ang"] = mean(Quantity.FORCE_ABS, 3 * atoms)
        errors["forces_rmse_mev_per_ang"] = root(Quantity.FORCE_SQUARE, 3 * atoms)
        errors["force_norm_mae_mev_per_ang"] = mean(Quantity.FORCE_NORM, atoms)
    if stresses := row[Quantity.STRESSES]:
        errors["stress_mae_mev_per_ang3"] = mean(Quantity.STRESS_ABS, 6 * stresses)
        errors["stress_rmse_mev_per_ang3"] = root(Quantity.STRESS_SQUARE, 6 * stresses)
    return errors
