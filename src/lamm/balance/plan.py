"""The plan of an epoch: which structures, for each step and each rank (Sec. 3.4).

A plan is arrays, a pure function of (index, sampling, seed, epoch, mini-batch size, ranks), so a
run resumes from these few numbers and the step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from lamm.balance.balanced import balanced
from lamm.balance.columns import Column, spread_places
from lamm.balance.planners import Planner, greedy, paper, paper_shuffled, random_order
from lamm.balance.uses import BatchShape, EpochUses, PlanIndex, Window
from lamm.balance.windows import EpochWindows
from lamm.data.sampling import SamplingConfig
from lamm.errors import ConfigError, nearest_names
from lamm.typing import PathLike

__all__ = [
    "PLANNERS",
    "Plan",
    "PlanIndex",
    "Planner",
    "epoch_windows",
    "join_windows",
    "plan_epoch",
    "planner_advice",
    "windows",
]

PLANNERS: dict[str, Planner] = {
    "random": random_order,
    "greedy": greedy,
    "paper": paper,
    "paper_shuffled": paper_shuffled,
    "balanced": balanced,
}
PLAN_VERSION = 2
"""Raised with every change after which a planner gives other mini-batches."""
FEW_STRUCTURES = 4.5
"""Structures per rank (B) below which no assignment evens mini-batches of mixed sizes."""
DEAR_IN_MINI_BATCH = 0.5
"""Structures of a mini-batch that cost more than a rank's share, on average, from which on it shows
in the time of an epoch."""
COSTS_LOOKED_AT = 100_000


@dataclass(frozen=True, eq=False)
class Plan:
    """Which structures each rank gets in each step."""

    ids: Int64[np.ndarray, " uses"]
    """Joint id of each use, in order of (step, rank)."""
    passes: Int32[np.ndarray, " uses"]
    """Pass of its subset's stream that each use belongs to; noise is drawn from it."""
    step_rank_offsets: Int64[np.ndarray, " offsets"]
    """Where the uses of (step, rank) start, at step * num_ranks + rank; their number at the end."""
    num_ranks: int
    num_energy: Int64[np.ndarray, " steps"]
    """Energy labels in the whole mini-batch of each step: a denominator of Eq. (5)."""
    num_forces: Int64[np.ndarray, " steps"]
    """Structures with force labels in the whole mini-batch of each step: the other one."""

    @property
    def num_steps(self) -> int:
        """Mini-batches in the epoch."""
        return len(self.num_energy)

    def part(self, step: int, rank: int) -> slice:
        """Where in `ids` and `passes` the GPU batch of a step and rank is."""
        cell = step * self.num_ranks + rank
        return slice(int(self.step_rank_offsets[cell]), int(self.step_rank_offsets[cell + 1]))

    def rank_load(self, cost: Integer[np.ndarray, " uses"]) -> Int64[np.ndarray, "steps ranks"]:
        """Sum of a cost over each GPU batch.

        Args:
            cost: cost of each use, in the order of `ids`.
        """
        sums = np.concatenate([[0], np.cumsum(cost, dtype=np.int64)])[self.step_rank_offsets]
        load: Int64[np.ndarray, "steps ranks"] = np.diff(sums).reshape(-1, self.num_ranks)
        return load

    def save(self, path: PathLike) -> None:
        """Write the plan as an npz file with one row per use: `step`, `rank`, `sample`."""
        cells = np.repeat(np.arange(self.num_steps * self.num_ranks), self._cell_sizes())
        step, rank = np.divmod(cells.astype(np.int32), np.int32(self.num_ranks))
        with Path(path).open("wb") as file:
            np.savez(file, step=step, rank=rank, sample=self.ids)

    def _cell_sizes(self) -> Int64[np.ndarray, " cells"]:
        return np.diff(self.step_rank_offsets)


def _batch_shape(
    ranks: int, batch_size: int | None, mini_batch_size: int | None, segments: int | None
) -> BatchShape:
    if (batch_size is None) == (mini_batch_size is None):
        raise ConfigError(
            f"plan with batch_size={batch_size} and mini_batch_size={mini_batch_size}; expected "
            "exactly one: structures per rank, or structures in a mini-batch."
        )
    size = ranks * batch_size if batch_size is not None else mini_batch_size
    assert size is not None
    return BatchShape(ranks=ranks, mini_batch_size=size, segments=segments)


def epoch_windows(
    index: PlanIndex,
    sampling: SamplingConfig,
    *,
    seed: int,
    epoch: int,
    ranks: int,
    batch_size: int | None = None,
    mini_batch_size: int | None = None,
    planner: str = "balanced",
    segments: int | None = None,
) -> EpochWindows:
    """The windows that `plan_epoch` puts together, each planned when it is asked for.

    See `plan_epoch` for the arguments. Any window can be had without those before it; their number
    and their steps are known from arithmetic alone. Memory is that of one window.
    """
    if planner not in PLANNERS:
        raise ConfigError(f"unknown planner '{planner}'. {nearest_names(planner, PLANNERS)}")
    shape = _batch_shape(ranks, batch_size, mini_batch_size, segments)
    if epoch < 0:
        raise ConfigError(f"plan of epoch {epoch}; epochs are counted from 0.")
    return PLANNERS[planner](EpochUses(index, sampling, seed=seed, epoch=epoch), shape)


def windows(
    index: PlanIndex,
    sampling: SamplingConfig,
    *,
    seed: int,
    epoch: int,
    ranks: int,
    batch_size: int | None = None,
    mini_batch_size: int | None = None,
    planner: str = "balanced",
    segments: int | None = None,
    processes: int = 1,
) -> Iterator[Window]:
    """Plan an epoch piece by piece, from its first step to its last.

    See `plan_epoch` for the arguments. So many `processes` plan at once; the plan doesn't depend on
    their number.
    """
    return epoch_windows(
        index,
        sampling,
        seed=seed,
        epoch=epoch,
        ranks=ranks,
        batch_size=batch_size,
        mini_batch_size=mini_batch_size,
        planner=planner,
        segments=segments,
    ).in_parallel(processes)


def plan_epoch(
    index: PlanIndex,
    sampling: SamplingConfig,
    *,
    seed: int,
    epoch: int,
    ranks: int,
    batch_size: int | None = None,
    mini_batch_size: int | None = None,
    planner: str = "balanced",
    segments: int | None = None,
) -> Plan:
    """Plan an epoch: every use that temperature sampling asks for, each in one GPU batch.

    Where G doesn't divide the epoch the last mini-batch is incomplete; `balanced` has the last
    window's mini-batches share what is missing. A rank is without a structure only in a mini-batch
    of fewer structures than ranks.

    Args:
        index: the training structures.
        sampling: how often each subset is used.
        seed: of the run.
        epoch: counted from 0; streams go on where the epoch before stopped.
        ranks: W.
        batch_size: B, structures per rank on average; a mini-batch has G = W B.
        mini_batch_size: G itself, in place of `batch_size`. With the same G all planners but the
            two `paper` ones put together the same mini-batches for any number of ranks.
        planner: a name in `PLANNERS`.
        segments: S, the segments that the `paper` planners cut the epoch into; chosen by the
            length of the epoch where left out.

    Returns:
        The plan, with the label counts of each mini-batch.

    Raises:
        ConfigError: an unknown planner or a number out of range.
    """
    parts = list(
        epoch_windows(
            index,
            sampling,
            seed=seed,
            epoch=epoch,
            ranks=ranks,
            batch_size=batch_size,
            mini_batch_size=mini_batch_size,
            planner=planner,
            segments=segments,
        )
    )
    return join_windows(parts, index)


def join_windows(parts: Sequence[Window], index: PlanIndex) -> Plan:
    """Windows that follow one another as one plan; steps are counted from the first of them."""
    entries = np.concatenate([part.entries for part in parts])
    counts = np.concatenate([part.counts for part in parts])
    offsets = np.concatenate([[0], np.cumsum(counts.ravel(), dtype=np.int64)])
    step_offsets = offsets[:: counts.shape[1]]

    def labels_per_step(
        mask: Bool[np.ndarray, " structures"] | Column,
    ) -> Int64[np.ndarray, " steps"]:
        return np.diff(np.concatenate([[0], np.cumsum(mask[entries])])[step_offsets])

    return Plan(
        ids=index.ids[entries].astype(np.int64),
        passes=np.concatenate([part.passes for part in parts]),
        step_rank_offsets=offsets,
        num_ranks=counts.shape[1],
        num_energy=labels_per_step(index.has_energy),
        num_forces=labels_per_step(index.has_forces),
    )


def planner_advice(planner: str, ranks: int, mini_batch_size: int, index: PlanIndex) -> str | None:
    """What a run should be told about its planner before it starts, if anything.

    Mini-batches of mixed sizes can't be even where ranks get few structures, or where every other
    mini-batch has a structure that costs more than a rank's share.

    Args:
        planner: its name.
        ranks: W.
        mini_batch_size: G.
        index: the training structures, whose costs are looked at in a sample.
    """
    per_rank = mini_batch_size / ranks
    if planner != "balanced" or ranks == 1:
        return None
    some = spread_places(len(index), COSTS_LOOKED_AT)
    cost = index.cost[some] / index.cost[some].mean()
    if per_rank < FEW_STRUCTURES:
        found = f"{per_rank:.3g} structures per rank are too few"
    elif (cost > per_rank).mean() * mini_batch_size > DEAR_IN_MINI_BATCH:
        found = (
            f"{per_rank:.3g} structures per rank are too few, of which some cost up to "
            f"{cost.max():.2g} times the mean,"
        )
    else:
        return None
    return (
        f"{found} to even mini-batches of mixed sizes. The planner 'paper_shuffled' makes "
        "mini-batches of like sizes and leaves ranks idle for less time, at the price of "
        "composition; more structures per rank help too."
    )
