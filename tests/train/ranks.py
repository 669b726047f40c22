"""Loss and gradients of some mini-batches, in float64, as the ranks of one run see them.

Run by torchrun, or alone: ``ranks.py FOLDER OUT.pt BATCH_SIZE MODEL``. Rank 0 writes what it has.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lamm.data.joint import JointDataset
from lamm.data.loader import PlannedBatches
from lamm.graph.batch import GraphBatch
from lamm.loss import LabelCounts
from lamm.models.potential import Potential, build
from lamm.train import gradients
from lamm.train.batches import Schedule
from lamm.train.distributed import World, join, leave
from lamm.train.ending import run_to_the_end
from lamm.train.optim import build_optimizer
from lamm.train.start import set_normalisation
from lamm.train.step import Step
from small import SMALL_MODELS, small_config, without_dropout


def planned(schedule: Schedule) -> Iterator[tuple[str, GraphBatch, LabelCounts]]:
    """Two mini-batches of the plan, and its last one, which may be incomplete."""
    last = schedule.steps_per_epoch
    for first in (0, 1, last - 1):
        for one in schedule.steps(first, first + 1, workers=0):
            yield f"step {first}", one.batch, one.counts


def contrived(
    joint: JointDataset, model: Potential, world: World
) -> Iterator[tuple[str, GraphBatch, LabelCounts]]:
    """Mini-batches whose ranks lack labels of one kind, or structures."""
    ids, subset = joint.ids("train"), joint.subset_of(joint.ids("train"))
    both, energies, noise = (ids[subset == number][:4] for number in range(3))
    cases = {
        "labels of one kind": np.array_split(np.concatenate([energies, noise]), world.size),
        "all on the last rank": [ids[:0]] * (world.size - 1) + [np.concatenate([both, noise])],
        "one structure": [both[:1]] + [ids[:0]] * (world.size - 1),
        "no energy at all": np.array_split(noise[:3], world.size),
        "no force at all": np.array_split(energies[:3], world.size),
    }
    for name, shares in cases.items():
        everyone = np.concatenate(shares)
        counts = LabelCounts(
            int(joint.has_energy[everyone].sum()), int(joint.has_forces[everyone].sum())
        )
        part = (shares[world.rank], np.zeros(len(shares[world.rank]), dtype=np.int32))
        yield name, PlannedBatches(joint, model.graph_config)[part], counts


def count_early_pieces(shared: gradients.SharedGradients) -> list[int]:
    """How many pieces were on their way when backward ended, step after step."""
    counts: list[int] = []
    real = shared.finish

    def finish() -> None:
        counts.append(len(getattr(shared, "_works", [])))
        real()

    shared.finish = finish  # type: ignore[method-assign]
    return counts


def main(folder: Path, out: Path, batch_size: int, model_name: str) -> None:
    model_config = without_dropout(SMALL_MODELS[model_name])
    config = small_config(folder, balance={"batch_size": batch_size}, model=model_config)
    world = join("cpu")
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=3)
    set_normalisation(model, [subset.normalisation() for subset in joint.subsets])
    model.double().train()
    optimizer = build_optimizer(model, model.encoder, config.optim)
    gradients.PIECE_BYTES = 4096  # the small model's gradients travel in several pieces, too
    step = Step(model, optimizer, None, config.recipe(), world)
    sent_early = count_early_pieces(step.gradients)
    schedule = Schedule(joint, config.balance, model.graph_config, world, config.seed)
    results = []
    for name, batch, counts in [*planned(schedule), *contrived(joint, model, world)]:
        loss, failed_part = step.compute(0, [batch.to(dtype=torch.float64)], counts)
        assert failed_part is None
        labels = (batch.num_structures, int(batch.has_energy.sum()), int(batch.has_forces.sum()))
        results.append(
            {
                "name": name,
                "loss": world.sum(loss.total.clone()),
                "labels": world.gather(labels),
                "pieces": sent_early[-1] if sent_early else 0,
                "gradients": [one.grad.clone() for one in step.gradients.parameters],
            }
        )
    if world.is_main:
        torch.save(results, out)
    leave(world)


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    run_to_the_end(lambda: main(folder, out, int(sys.argv[3]), sys.argv[4]))
