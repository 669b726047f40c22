"""The mini-batches of a run, step after step and epoch after epoch, with their label counts."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lamm.balance.columns import spread_places
from lamm.balance.metrics import step_imbalance
from lamm.balance.plan import (
    PLAN_VERSION,
    Plan,
    PlanIndex,
    epoch_windows,
    join_windows,
    planner_advice,
)
from lamm.balance.settings import BalanceConfig
from lamm.balance.windows import EpochWindows
from lamm.data.joint import JointDataset
from lamm.data.loader import Part, PlannedBatches, load_batches, plan_parts
from lamm.errors import DataError
from lamm.graph.batch import GraphBatch
from lamm.graph.neighbors import GraphConfig
from lamm.loss import LabelCounts
from lamm.train.distributed import World
from lamm.typing import JSONDict

_TOLD_BY = 10_000
"""Structures whose ids and costs stand for all in `Schedule.basis`."""


def most_neighbors(joint: JointDataset, graph_config: GraphConfig) -> int:
    """The most neighbours that an atom is counted with: the model's limit, if it has one."""
    return graph_config.max_neighbors or joint.most_neighbors


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
    fault: str | None = None
    """Why this rank's structures can't be read; the batch is empty then."""


class _KnownStep(NamedTuple):
    """What is known of a step before its batch is there."""

    part: Part
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

    def advice(self) -> str | None:
        """What should be said of the planner before the run starts, if anything."""
        planner = self.balance.planner
        return planner_advice(planner, self.world.size, self.mini_batch_size, self.index)

    def basis(self) -> JSONDict:
        """What the mini-batches depend on beside their size and the ranks, for a run's state.

        The structures are told from others by the subsets' names and sizes and by the ids and costs
        of some of them.
        """
        some = spread_places(len(self.index), _TOLD_BY)
        text = hashlib.blake2b(digest_size=16)
        text.update("\n".join(self.joint.names).encode())
        for array in (self.index.subset_offsets, self.index.ids[some], self.index.cost[some]):
            text.update(array.astype("<i8").tobytes())
        weights = self.joint.sampling_weights
        if set(weights) != {1.0}:
            text.update(repr(weights).encode())
        return {
            "version": PLAN_VERSION,
            "planner": self.balance.planner,
            "edge_share": self.balance.edge_share,
            "temperature": self.joint.config.sampling.temperature,
            "seed": self.seed,
            "structures": text.hexdigest(),
        }

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

    def _window_of(self, step: int) -> tuple[int, Plan, NDArray[np.int64]]:
        """Where in its window a step of the run is, the window's plan, and loads (steps, ranks)."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        some = self.windows(epoch)
        number = some.at_step(in_epoch)
        window = some[number]
        plan = join_windows([window], self.index)
        load = plan.rank_load(self.index.cost[window.entries])
        return in_epoch - int(some.first_steps[number]), plan, load

    def largest_part(self, step: int) -> Part:
        """The GPU batch of the largest planned load, any rank's, in the window of a step."""
        _, plan, load = self._window_of(step)
        where = plan.part(*divmod(int(load.argmax()), plan.num_ranks))
        return plan.ids[where], plan.passes[where]

    def _known_from(self, step: int) -> list[_KnownStep]:
        """What the plan says of a step of the run and of those after it in its window."""
        first, plan, load = self._window_of(step)
        imbalance = step_imbalance(load)
        structures = np.diff(plan.step_rank_offsets[:: plan.num_ranks])
        known = [
            _KnownStep(
                part,
                LabelCounts(int(plan.num_energy[place]), int(plan.num_forces[place])),
                int(structures[place]),
                float(imbalance[place]),
            )
            for place, part in enumerate(plan_parts(plan, self.world.rank))
        ]
        return known[first:]

    def _known_steps(self, first: int, last: int) -> Iterator[_KnownStep]:
        """What the plan says of steps `first` to `last` - 1; a thread plans one window ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="planner") as planner:
            known = self._known_from(first)
            while known:
                after = first + len(known)
                following = planner.submit(self._known_from, after) if after < last else None
                yield from known[: last - first]
                first, known = after, [] if following is None else following.result()

    def steps(self, first: int, last: int, workers: int) -> Iterator[PlannedStep]:
        """Steps `first` to `last` - 1, through as many epochs as that takes."""
        if first >= last:
            return
        ahead: deque[_KnownStep] = deque()  # given to the workers, their batch not yet taken

        def parts() -> Iterator[Part]:
            for known in self._known_steps(first, last):
                ahead.append(known)
                yield known.part

        batches = load_batches(
            PlannedBatches(self.joint, self.graph_config),
            parts(),
            workers=workers,
            device=self.world.device,
        )
        step, asked = first, time.perf_counter()
        try:
            for batch in batches:
                wait, one = time.perf_counter() - asked, ahead.popleft()
                yield PlannedStep(step, batch, one.counts, one.structures, one.imbalance, wait)
                step, asked = step + 1, time.perf_counter()
        except DataError as error:
            # The other ranks are at this step, too: they hear of it there, or one step later.
            nothing = self._empty_batch()
            for number in range(step, last):
                yield PlannedStep(number, nothing, LabelCounts(1, 1), 0, 1.0, 0.0, str(error))

    def _empty_batch(self) -> GraphBatch:
        none: Part = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32))
        return PlannedBatches(self.joint, self.graph_config)[none].to(self.world.device)
