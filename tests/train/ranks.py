"""Loss and gradients of the first mini-batches, in float64, as the ranks of one run see them.

Run by torchrun, or alone: ``ranks.py FOLDER OUT.pt BATCH_SIZE MODEL``. Rank 0 writes what it has.
"""

import sys
from pathlib import Path

import torch

from lamm.data.joint import JointDataset
from lamm.models.potential import build
from lamm.train.batches import Schedule
from lamm.train.distributed import join, leave
from lamm.train.optim import build_optimizer
from lamm.train.run import set_normalisation
from lamm.train.step import Step
from small import SMALL_MODELS, small_config, without_dropout


def main(folder: Path, out: Path, batch_size: int, model_name: str) -> None:
    model_config = without_dropout(SMALL_MODELS[model_name])
    config = small_config(folder, balance={"batch_size": batch_size}, model=model_config)
    world = join("cpu")
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=3)
    set_normalisation(model, [subset.normalisation() for subset in joint.subsets])
    model.double().train()
    optimizer = build_optimizer(model, model.encoder, config.optim)
    step = Step(model, optimizer, None, config.recipe(), world)
    schedule = Schedule(joint, config.balance, model.graph_config, world, config.seed)
    results = []
    last = schedule.steps_per_epoch  # the mini-batch that may be incomplete
    for first in (0, 1, last - 1):
        for planned in schedule.steps(first, first + 1, workers=0):
            batch = planned.batch.to(dtype=torch.float64)
            loss, failed_part = step.compute(planned.step, [batch], planned.counts)
            assert failed_part is None
            results.append(
                {
                    "loss": world.sum(loss.total.clone()),
                    "structures": planned.structures,
                    "mine": batch.num_structures,
                    "gradients": [
                        parameter.grad.clone()
                        for parameter in model.parameters()
                        if parameter.requires_grad
                    ],
                }
            )
    if world.is_main:
        torch.save(results, out)
    leave(world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
