"""Validation: the loss of Eq. (5) and the errors of each subset, over all ranks."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lamm.data.joint import JointDataset
from lamm.data.loader import PlannedBatches, load_batches, split_parts
from lamm.errors import DataError
from lamm.evaluate.metrics import ErrorSums
from lamm.graph.batch import GraphBatch
from lamm.loss import LabelCounts, LossConfig, normalise, universal_loss
from lamm.models.potential import Potential, Prediction
from lamm.train.distributed import World
from lamm.train.memory import if_memory_suffices
from lamm.train.parts import select

logger = logging.getLogger(__name__)


def predicted_in_parts(
    model: Potential, batches: Iterable[GraphBatch], joint: JointDataset
) -> Iterator[tuple[GraphBatch, Prediction]]:
    """Batches and what a model says of them; a batch without memory enough goes in halves.

    Raises:
        DataError: one structure alone doesn't fit.
    """
    for batch in batches:
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            prediction = if_memory_suffices(
                partial(model, part, subset_index=part.subset_index), part.positions.device
            )
            if prediction is None:
                waiting += _halves(part, joint)
            else:
                yield part, prediction


def _halves(batch: GraphBatch, joint: JointDataset) -> list[GraphBatch]:
    size = batch.num_structures
    if size == 1:
        name = joint.structure(int(batch.ids[0])).id
        subset = joint.names[int(batch.subset_index[0])]
        raise DataError(
            f"validation: subset '{subset}', structure '{name}' of {int(batch.num_atoms[0])} atoms "
            "doesn't fit into the memory alone.\n"
            "  Leave such structures out with `max_atoms` of the subset, or use a smaller model or "
            "a larger device."
        )
    logger.info(
        "validation: out of memory with %d structures, which are done in halves; "
        "`train.val_atoms_per_batch` makes such batches smaller",
        size,
    )
    return [select(batch, range(size // 2, size)), select(batch, range(size // 2))]


def validate(
    model: Potential,
    joint: JointDataset,
    loss_config: LossConfig,
    world: World,
    *,
    split: str = "val",
    atoms_per_batch: int = 1024,
    workers: int = 0,
    unjudged: Collection[str] = (),
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
        unjudged: subsets that the loss leaves out.

    Returns:
        ``loss``, ``energy_loss`` and ``force_loss`` (Eq. 5 over the whole split, but for what is
        unjudged), and per subset the errors in meV/atom and meV/Å.

    Raises:
        DataError: a structure of any rank doesn't fit into the memory alone.
    """
    ids = joint.ids(split)
    judged = np.array([name not in unjudged for name in joint.names])
    of_loss = ids[judged[joint.subset_of(ids)]]
    counts = LabelCounts(int(joint.has_energy[of_loss].sum()), int(joint.has_forces[of_loss].sum()))
    on_device = torch.from_numpy(judged).to(world.device)
    sums = ErrorSums(len(joint.names), device=world.device, denoising=joint.is_denoising)
    terms = torch.zeros(3, dtype=torch.float64, device=world.device)
    parts = split_parts(joint, ids, atoms_per_batch, world.rank, world.size)
    batches = PlannedBatches(joint, model.graph_config)
    was_training = model.training
    model.eval()

    def add_all() -> None:
        loaded = load_batches(batches, parts, workers=workers, device=world.device)
        for batch, prediction in predicted_in_parts(model, loaded, joint):
            energy, forces = prediction.energy.squeeze(-1), prediction.forces.squeeze(1)
            sums.update(energy, forces, batch)
            scales = (model.reference_energies, model.energy_scale, model.force_scale)
            predicted = normalise(energy, forces, batch, *scales)
            target = normalise(batch.energy, batch.forces, batch, *scales)
            counted = on_device[batch.subset_index]  # (B,)
            masked = replace(
                batch,
                has_energy=batch.has_energy & counted,
                has_forces=batch.has_forces & counted,
            )
            loss = universal_loss(predicted, target, masked, counts, loss_config)
            terms.add_(torch.stack(loss).to(terms))

    with torch.no_grad():
        world.together(add_all)
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
