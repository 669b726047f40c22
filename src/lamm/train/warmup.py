"""One step at the largest planned load before the first: memory that suffices for it, suffices.

A caching allocator then has blocks that are large enough for every later step, and what would run
out of memory in the middle of a run does so here, where nothing is lost: smaller parts are tried
until they fit (Sec. 3.4). The gradients are thrown away, and no weight, average or random number
of the run changes.
"""

from __future__ import annotations

import logging

import torch

from lamm.data.loader import PlannedBatches
from lamm.graph.batch import GraphBatch
from lamm.loss import LabelCounts
from lamm.train.batches import Schedule
from lamm.train.checkpoint import TrainState
from lamm.train.memory import if_memory_suffices
from lamm.train.parts import graph_size, split_batch
from lamm.train.step import Step

logger = logging.getLogger(__name__)

BACK_OFF = 0.8
"""The next trial's largest part, over that of the one that ran out of memory."""


def warm_up(step: Step, schedule: Schedule, state: TrainState) -> None:
    """Do the largest GPU batch of the coming window on every rank.

    Where a rank has no memory for it, all try again with smaller parts, down to single structures;
    `state.budget` keeps the size that was enough.

    Args:
        step: of the run; its weights stay as they are.
        schedule: the plan.
        state: where the run is.
    """
    world = step.world
    prepared = PlannedBatches(schedule.joint, schedule.graph_config)
    batch = prepared[schedule.largest_part(state.step)].to(world.device)
    aside = {one["joint_id"] for one in state.set_aside}
    while True:
        part = max(split_batch(batch, state.budget, aside), key=graph_size)
        size = graph_size(part)
        if not world.largest(int(not _fits(step, part))):
            break
        if part.num_structures <= 1:
            logger.warning(
                "warm-up: out of memory with a structure alone, %d atoms and edges", size
            )
            break
        state.budget = max(int(BACK_OFF * size), 1)
        if world.is_main:
            logger.warning(
                "warm-up: out of memory with %d atoms and edges, the largest planned load; GPU "
                "batches of more than %d are split from now on",
                size,
                state.budget,
            )


def _fits(step: Step, part: GraphBatch) -> bool:
    """Whether forward and backward of a batch have memory enough on this rank."""
    counts = LabelCounts(part.num_structures, part.num_structures)

    def gradients() -> tuple[torch.Tensor | None, ...]:
        parameters = step.gradients.parameters
        return torch.autograd.grad(step.loss(part, counts).total, parameters, allow_unused=True)

    return if_memory_suffices(gradients, step.world.device) is not None
