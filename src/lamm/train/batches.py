"""The mini-batches of a run, step after step and epoch after epoch, with their label counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lamm.balance.metrics import step_imbalance
from lamm.balance.plan import Plan, PlanIndex, plan_epoch, planner_advice
from lamm.balance.settings import BalanceConfig
from lamm.data.joint import JointDataset
from lamm.data.loader import PlannedBatches, load_batches, plan_parts
from lamm.graph.batch import GraphBatch
from lamm.graph.neighbors import GraphConfig
from lamm.loss import LabelCounts
from lamm.train.distributed import World

logger = logging.getLogger(__name__)


class PlannedStep(NamedTuple):
    """One step as this rank sees it."""

    step: int
    batch: GraphBatch
    counts: LabelCounts
    """Labels in the whole mini-batch, all ranks together."""
    structures: int
    """Structures in the whole mini-batch."""
    imbalance: float
    """Planned cost of the busiest rank over the mean rank's."""
    wait: float
    """Seconds that the model waited for this batch."""


class Schedule:
    """Plans of all epochs: which step is where, and how many steps there are."""

    def __init__(
        self,
        joint: JointDataset,
        balance: BalanceConfig,
        graph_config: GraphConfig,
        world: World,
        seed: int,
    ) -> None:
        self.joint, self.balance, self.graph_config = joint, balance, graph_config
        self.world, self.seed = world, seed
        limit = graph_config.max_neighbors or int(joint.num_edges.max(initial=1))
        self.index: PlanIndex = joint.plan_index(limit, balance.edge_share)
        self._cost = np.zeros(len(joint), dtype=np.int64)
        self._cost[self.index.ids] = self.index.cost
        self.steps_per_epoch = self.plan(0).num_steps
        advice = planner_advice(balance.planner, world.size, world.size * balance.batch_size)
        if advice is not None and world.is_main:
            logger.warning(advice)

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch; every epoch has the same number of steps."""
        return plan_epoch(
            self.index,
            self.joint.config.sampling,
            seed=self.seed,
            epoch=epoch,
            ranks=self.world.size,
            batch_size=self.balance.batch_size,
            planner=self.balance.planner,
        )

    def steps(self, first: int, last: int, workers: int) -> Iterator[PlannedStep]:
        """Steps `first` to `last` - 1, through as many epochs as that takes."""
        step = first
        while step < last:
            epoch, offset = divmod(step, self.steps_per_epoch)
            plan = self.plan(epoch)
            parts = plan_parts(plan, self.world.rank, offset)[: last - step]
            batches = load_batches(
                PlannedBatches(self.joint, parts, self.graph_config),
                workers=workers,
                device=self.world.device,
            )
            imbalance = step_imbalance(plan.rank_load(self._cost[plan.ids]))
            structures = np.diff(plan.step_rank_offsets[:: plan.num_ranks])
            asked = time.perf_counter()
            for batch in batches:
                counts = LabelCounts(int(plan.num_energy[offset]), int(plan.num_forces[offset]))
                wait = time.perf_counter() - asked
                yield PlannedStep(
                    step, batch, counts, int(structures[offset]), float(imbalance[offset]), wait
                )
                step, offset = step + 1, offset + 1
                asked = time.perf_counter()
