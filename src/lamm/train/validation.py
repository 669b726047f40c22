"""Validation: the loss of Eq. (5) and the errors of each subset, over all ranks."""

from __future__ import annotations

from typing import Any

import torch

from lamm.data.joint import JointDataset
from lamm.data.loader import PlannedBatches, load_batches, split_parts
from lamm.evaluate.metrics import ErrorSums
from lamm.loss import LabelCounts, LossConfig, normalise, universal_loss
from lamm.models.potential import Potential
from lamm.train.distributed import World


def validate(
    model: Potential,
    joint: JointDataset,
    loss_config: LossConfig,
    world: World,
    *,
    split: str = "val",
    atoms_per_batch: int = 1024,
    workers: int = 0,
) -> dict[str, Any]:
    """Errors of a model on a split of the joint data set.

    The noise of a denoising subset is the fixed one, so that two calls see the same structures.

    Args:
        model: the potential with the weights to judge.
        joint: the data.
        loss_config: lambda_E and lambda_F of the loss that is reported.
        world: the ranks, which share the work.
        split: 'train', 'val' or 'test'.
        atoms_per_batch: size of a batch.
        workers: processes that prepare batches.

    Returns:
        ``loss``, ``energy_loss`` and ``force_loss`` (Eq. 5 over the whole split), and per subset
        the errors in meV/atom and meV/Å.
    """
    ids = joint.ids(split)
    counts = LabelCounts(int(joint.has_energy[ids].sum()), int(joint.has_forces[ids].sum()))
    sums = ErrorSums(len(joint.names), device=world.device, denoising=joint.is_denoising)
    terms = torch.zeros(3, dtype=torch.float64, device=world.device)
    parts = split_parts(joint, ids, atoms_per_batch, world.rank, world.size)
    batches = PlannedBatches(joint, model.graph_config)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in load_batches(batches, parts, workers=workers, device=world.device):
            prediction = model(batch, subset_index=batch.subset_index)
            energy, forces = prediction.energy.squeeze(-1), prediction.forces.squeeze(1)
            sums.update(energy, forces, batch)
            scales = (model.reference_energies, model.energy_scale, model.force_scale)
            predicted = normalise(energy, forces, batch, *scales)
            target = normalise(batch.energy, batch.forces, batch, *scales)
            loss = universal_loss(predicted, target, batch, counts, loss_config)
            terms += torch.stack(loss).to(terms)
    model.train(was_training)
    world.sum(terms)
    world.sum(sums.tensor)
    total, energy_loss, force_loss = terms.tolist()
    return {
        "loss": total,
        "energy_loss": energy_loss,
        "force_loss": force_loss,
        "subsets": sums.result(joint.names),
    }
