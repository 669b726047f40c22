"""The mini-batches of a run, step after step and epoch after epoch, with their label counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lamm.balance.metrics import step_imbalance
from lamm.balance.plan import PlanIndex, epoch_windows, join_windows, planner_advice
from lamm.balance.settings import BalanceConfig
from lamm.balance.windows import EpochWindows
from lamm.data.joint import JointDataset
from lamm.data.loader import PlannedBatches, load_batches, plan_parts
from lamm.graph.batch import GraphBatch
from lamm.graph.neighbors import GraphConfig
from lamm.loss import LabelCounts
from lamm.train.distributed import World

logger = logging.getLogger(__name__)

STEPS_PER_LOADER = 1000
"""Steps that the same worker processes prepare, at least, where the run is that long."""


def most_neighbors(joint: JointDataset, graph_config: GraphConfig) -> int:
    """The most neighbours that an atom is counted with: the model's limit, if it has one."""
    return graph_config.max_neighbors or joint.most_edges


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
    """The mini-batches of all epochs, planned window by window while the run goes on.

    Nothing is planned before it is needed: the number of steps is arithmetic, a resumed run starts
    with the window that its step is in, and a thread plans the next window while one trains.
    """

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
        limit = most_neighbors(joint, graph_config)
        self.index: PlanIndex = joint.plan_index(limit, balance.edge_share)
        self.mini_batch_size = mini_batch_size or world.size * balance.structures_per_rank
        self._latest = (0, self._make_windows(0))
        self.steps_per_epoch = self._latest[1].num_steps
        advice = planner_advice(balance.planner, world.size, self.mini_batch_size)
        if advice is not None and world.is_main:
            logger.warning(advice)

    def windows(self, epoch: int) -> EpochWindows:
        """The windows of an epoch; all epochs have the same number of steps."""
        if self._latest[0] != epoch:
            self._latest = (epoch, self._make_windows(epoch))
        return self._latest[1]

    def _make_windows(self, epoch: int) -> EpochWindows:
        return epoch_windows(
            self.index,
            self.joint.config.sampling,
            seed=self.seed,
            epoch=epoch,
            ranks=self.world.size,
            mini_batch_size=self.mini_batch_size,
            planner=self.balance.planner,
        )

    def _known_from(self, step: int) -> list[_KnownStep]:
        """What the plan says of a step of the run and of those after it in its window."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        some = self.windows(epoch)
        number = some.at_step(in_epoch)
        window = some[number]
        plan = join_windows([window], self.index)
        imbalance = step_imbalance(plan.rank_load(self.index.cost[window.entries]))
        structures = window.counts.sum(axis=1)
        known = [
            _KnownStep(
                part,
                LabelCounts(int(plan.num_energy[place]), int(plan.num_forces[place])),
                int(structures[place]),
                float(imbalance[place]),
            )
            for place, part in enumerate(plan_parts(plan, self.world.rank))
        ]
        return known[in_epoch - int(some.first_steps[number]) :]

    def _known(self, first: int, last: int) -> list[_KnownStep]:
        """Steps from `first` on: whole windows, `STEPS_PER_LOADER` or more, none beyond `last`."""
        known: list[_KnownStep] = []
        while len(known) < min(STEPS_PER_LOADER, last - first):
            known += self._known_from(first + len(known))
        return known[: last - first]

    def steps(self, first: int, last: int, workers: int) -> Iterator[PlannedStep]:
        """Steps `first` to `last` - 1, through as many epochs as that takes.

        Starting the worker processes costs as much as some steps, so windows and short epochs share
        them. The first of them get the window of step `first` alone, so that it starts at once.
        """
        if first >= last:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="planner") as planner:
            known = self._known_from(first)[: last - first]
            step = first
            while known:
                after, following = step + len(known), None
                for one in self._load(step, known, workers):
                    if following is None:  # the workers were forked while no thread was at work
                        following = planner.submit(self._known, after, last)
                    yield one
                assert following is not None
                step, known = after, following.result()

    def _load(self, step: int, known: list[_KnownStep], workers: int) -> Iterator[PlannedStep]:
        """The batches of some steps, of which the first has the number `step`."""
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
