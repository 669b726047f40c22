"""The mini-batches of a run, step after step and epoch after epoch, with their label counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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

STEPS_PER_LOADER = 1000
"""Steps that the same worker processes prepare, at least, where the run is that long."""


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


class _KnownStep(NamedTuple):
    """What is known of a step before its batch is there."""

    part: tuple[NDArray[np.int64], NDArray[np.int32]]
    """Joint ids and noise draws of this rank."""
    counts: LabelCounts
    structures: int
    imbalance: float


class Schedule:
    """Plans of all epochs: which step is where, and how many steps there are."""

    def __init__(
        self,
        joint: JointDataset,
        balance: BalanceConfig,
        graph_config: GraphConfig,
        world: World,
        seed: int,
        mini_batch_size: int | None = None,
    ) -> None:
        self.joint, self.balance, self.graph_config = joint, balance, graph_config
        self.world, self.seed = world, seed
        limit = graph_config.max_neighbors or int(joint.num_edges.max(initial=1))
        self.index: PlanIndex = joint.plan_index(limit, balance.edge_share)
        self._cost = np.zeros(len(joint), dtype=np.int64)
        self._cost[self.index.ids] = self.index.cost
        self.mini_batch_size = mini_batch_size or world.size * balance.batch_size
        self._latest: tuple[int, Plan] | None = None
        self.steps_per_epoch = self.plan(0).num_steps
        advice = planner_advice(balance.planner, world.size, self.mini_batch_size)
        if advice is not None and world.is_main:
            logger.warning(advice)

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch, the latest of which is kept; all have the same number of steps."""
        if self._latest is None or self._latest[0] != epoch:
            self._latest = (epoch, self._make_plan(epoch))
        return self._latest[1]

    def _make_plan(self, epoch: int) -> Plan:
        return plan_epoch(
            self.index,
            self.joint.config.sampling,
            seed=self.seed,
            epoch=epoch,
            ranks=self.world.size,
            mini_batch_size=self.mini_batch_size,
            planner=self.balance.planner,
        )

    def _known(self, epoch: int) -> list[_KnownStep]:
        """What the plan of an epoch says of each step."""
        plan = self.plan(epoch)
        imbalance = step_imbalance(plan.rank_load(self._cost[plan.ids]))
        structures = np.diff(plan.step_rank_offsets[:: plan.num_ranks])
        return [
            _KnownStep(
                part,
                LabelCounts(int(plan.num_energy[step]), int(plan.num_forces[step])),
                int(structures[step]),
                float(imbalance[step]),
            )
            for step, part in enumerate(plan_parts(plan, self.world.rank))
        ]

    def steps(self, first: int, last: int, workers: int) -> Iterator[PlannedStep]:
        """Steps `first` to `last` - 1, through as many epochs as that takes.

        Starting the worker processes costs as much as some steps, so short epochs share them.
        """
        step = first
        while step < last:
            known: list[_KnownStep] = []
            while len(known) < min(STEPS_PER_LOADER, last - step):
                epoch, offset = divmod(step + len(known), self.steps_per_epoch)
                known += self._known(epoch)[offset:]
            del known[last - step :]
            batches = load_batches(
                PlannedBatches(self.joint, [one.part for one in known], self.graph_config),
                workers=workers,
                device=self.world.device,
            )
            asked = time.perf_counter()
            for one, batch in zip(known, batches, strict=True):
                wait = time.perf_counter() - asked
                yield PlannedStep(step, batch, one.counts, one.structures, one.imbalance, wait)
                step += 1
                asked = time.perf_counter()
