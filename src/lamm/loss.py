r"""Eq. (5): one loss for every combination of labels.

.. math::

    \mathcal L = \frac{\lambda_E}{\sum_i m_E^{(i)}} \sum_i m_E^{(i)} |\hat E_i - (E_i)_{d_i}|
               + \frac{\lambda_F}{\sum_i m_F^{(i)}} \sum_i \frac{m_F^{(i)}}{N_i}
                 \sum_j \|\hat F_i^{(j)} - (F_i^{(j)})_{d_i}\|_2

Both sums run over the whole mini-batch, all ranks together, and so do the label counts that divide
them: the plan of the epoch knows every label mask, so the counts are known before the step.

Beyond the paper, a third term compares what the forces or displacements of neighbours differ by.
With :math:`\Delta^{(j)} = \hat F_i^{(j)} - (F_i^{(j)})_{d_i}`, and sums over the edges (j, k):

.. math::

    \frac{\lambda_R}{\sum_i m_F^{(i)}} \sum_i m_F^{(i)}
        \frac{\sum_{jk} r_{jk}^{-2} \|\Delta^{(j)} - \Delta^{(k)}\|_2}{\sum_{jk} r_{jk}^{-2}}

An error that all atoms share leaves it at zero. It is about how atoms move against each other,
which is the part of a displacement that the displaced structure shows.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import NonNegativeFloat
from torch import Tensor

from lamm.graph.batch import GraphBatch, edge_vectors
from lamm.schema import Frozen

_SHORTEST = 0.5
"""Å, below which a short distance weighs no more."""


class LossConfig(Frozen):
    """The coefficients of Eq. (5), on normalised energies and forces, and of what goes beyond."""

    energy: NonNegativeFloat = 1.0
    """lambda_E."""
    forces: NonNegativeFloat = 10.0
    """lambda_F."""
    energy_per: Literal["structure", "atom"] = "structure"
    """``structure``: Eq. (5). ``atom``: the energy's error divided by the structure's number of
    atoms, so that large structures don't rule."""
    relative: NonNegativeFloat = 0.0
    """lambda_R: what neighbours' forces or displacements differ by. Helps denoising."""


class LabelCounts(NamedTuple):
    """How many structures of the whole mini-batch have each label: the denominators of Eq. (5)."""

    energy: int
    forces: int


class Normalised(NamedTuple):
    """Energies and forces as the loss compares them: references removed, divided by the scales."""

    energy: Float[Tensor, " structures"]
    forces: Float[Tensor, "atoms 3"]


class LossTerms(NamedTuple):
    """This rank's share of Eq. (5): summed over the ranks it is the loss of the mini-batch."""

    total: Float[Tensor, ""]
    """With all coefficients, lambda_R's term included."""
    energy: Float[Tensor, ""]
    forces: Float[Tensor, ""]


def normalise(
    energy: Float[Tensor, " structures"],
    forces: Float[Tensor, "atoms 3"],
    batch: GraphBatch,
    reference_energies: Float[Tensor, "subsets elements"],
    energy_scale: Float[Tensor, " subsets"],
    force_scale: Float[Tensor, " subsets"],
) -> Normalised:
    """Remove each subset's linear reference energies and divide by its scales (Sec. 3.2).

    The subtraction is in float64, since a total energy can be 1e5 times what is learnt; the result
    has the precision of the positions.

    Args:
        energy: (B,) labels or predictions in eV, float64.
        forces: (N, 3) labels or predictions in eV/Å.
        batch: which atoms and which subset they belong to.
        reference_energies: per subset and atomic number, in eV.
        energy_scale: per subset, in eV.
        force_scale: per subset, in eV/Å.
    """
    subset = batch.subset_index  # (B,)
    per_atom = reference_energies[subset[batch.structure_index], batch.atomic_numbers]  # (N,)
    reference = per_atom.new_zeros(batch.num_structures).index_add_(
        0, batch.structure_index, per_atom
    )
    scaled = (energy - reference) / energy_scale[subset]  # (B,)
    force_factor = 1 / force_scale[subset][batch.structure_index][:, None]  # (N, 1)
    return Normalised(scaled.to(batch.positions.dtype), forces * force_factor.to(forces))


def universal_loss(
    predicted: Normalised,
    target: Normalised,
    batch: GraphBatch,
    counts: LabelCounts,
    config: LossConfig,
) -> LossTerms:
    """This rank's share of Eq. (5).

    Energies are compared by absolute error; forces by the 2-norm, averaged over the free atoms of
    each structure, so that a large structure weighs no more than a small one (the "system
    size-balanced" loss of JMP). Where a mask is False the label may hold anything. A rank without
    any label of a kind still gets a zero that is connected to its prediction.

    The relative term (lambda_R, see above) takes the edges of the batch whose two atoms both have a
    force label; an atom and its own image don't differ and are left out.

    # Paper: N_i atoms. Here: the atoms that the source didn't hold still, because the forces on
    # the others are no label.

    Args:
        predicted: what the model says in each structure's own column d_i.
        target: the labels.
        batch: the masks and which atom belongs where; for lambda_R its edges too.
        counts: labels in the whole mini-batch, over all ranks.
        config: the coefficients.
    """
    dtype = torch.promote_types(predicted.energy.dtype, torch.float32)  # bfloat16 sums are coarse
    energy_difference = predicted.energy.to(dtype) - target.energy.to(dtype)  # (B,)
    zero = energy_difference.new_zeros(())
    energy_error = torch.where(batch.has_energy, energy_difference, zero).abs()
    if config.energy_per == "atom":
        energy_error = energy_error / batch.num_atoms.to(dtype)

    labelled = batch.free & batch.has_forces[batch.structure_index]  # (N,)
    difference = predicted.forces.to(dtype) - target.forces.to(dtype)  # (N, 3)
    difference = torch.where(labelled[:, None], difference, zero)
    norm = torch.linalg.vector_norm(difference, dim=-1)  # (N,), its gradient at zero is zero
    num_free = norm.new_zeros(batch.num_structures).index_add_(
        0, batch.structure_index, labelled.to(dtype)
    )
    force_error = norm.new_zeros(batch.num_structures).index_add_(0, batch.structure_index, norm)
    force_error = force_error / num_free.clamp(min=1)  # (B,)

    energy_term = energy_error.sum() / max(counts.energy, 1)
    force_term = force_error.sum() / max(counts.forces, 1)
    total = config.energy * energy_term + config.forces * force_term
    if config.relative:
        relative_error = _relative_error(difference, labelled, batch)
        total = total + config.relative * relative_error.sum() / max(counts.forces, 1)
    return LossTerms(total, energy_term, force_term)


def _relative_error(
    difference: Float[Tensor, "atoms 3"], labelled: Bool[Tensor, " atoms"], batch: GraphBatch
) -> Float[Tensor, " structures"]:
    """Each structure's mean of what its edges' two errors differ by, short edges weighing most.

    Zero where a structure has no edge between labelled atoms.

    Raises:
        ValueError: no edges were looked for yet.
    """
    if batch.edge_kind == "absent":
        raise ValueError("the relative term of the loss needs a batch with edges")
    source, target = batch.edge_index[0], batch.edge_index[1]
    square = edge_vectors(batch).detach().to(difference.dtype).square().sum(dim=1)  # (E,) Å²
    counted = labelled[source] & labelled[target] & (source != target)
    weight = counted / square.clamp(min=_SHORTEST**2)  # (E,)
    change = difference.index_select(0, source) - difference.index_select(0, target)
    norm = torch.linalg.vector_norm(change, dim=1)  # (E,)
    structure = batch.structure_index.index_select(0, target)
    sums = torch.stack([norm * weight, weight], dim=1)  # (E, 2)
    sums = sums.new_zeros(batch.num_structures, 2).index_add_(0, structure, sums)
    return sums[:, 0] / torch.where(sums[:, 1] > 0, sums[:, 1], 1)
