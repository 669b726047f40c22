"""A budget of memory or cost turned into a batch size (Sec. 3.4)."""

from __future__ import annotations

import logging
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamm.balance.columns import as_array
from lamm.balance.cost import COST_UNIT, PEAK_MARGIN, fast_batch_size, largest_batch_size
from lamm.balance.plan import PlanIndex, epoch_windows
from lamm.balance.settings import AUTO, DEFAULT_BATCH_SIZE, BalanceConfig, parse_bytes
from lamm.balance.uses import Window, uses_of
from lamm.data.joint import JointDataset
from lamm.errors import ConfigError
from lamm.models.potential import Potential
from lamm.train.batches import most_neighbors
from lamm.train.costs import LinearCost, StepCosts, free_bytes, resident_bytes
from lamm.train.distributed import World

logger = logging.getLogger(__name__)

FREE_SHARE = 0.9
"""Of the memory that is free, what `auto` takes."""
FEWEST_STEPS = 100
"""Steps of an epoch that a batch size which is found leaves."""
WINDOWS_LOOKED_AT = 4
"""Windows of the first epoch from which a plan is judged."""


def with_costs(
    balance: BalanceConfig,
    model: Potential,
    joint: JointDataset,
    costs: StepCosts,
    world: World,
    seed: int,
) -> BalanceConfig:
    """The settings with the share of edges that was measured, and a batch size.

    Args:
        balance: as configured.
        model: whose steps were measured.
        joint: the data.
        costs: what was measured.
        world: the ranks.
        seed: of the plan.

    Raises:
        ConfigError: not one structure of mean size fits the budget.
    """
    limit = most_neighbors(joint, model.graph_config)
    balance = balance.model_copy(update={"edge_share": costs.edge_share(limit)})
    if not balance.has_budget:
        return balance
    index = joint.plan_index(limit, balance.edge_share)
    if balance.max_cost is not None:
        room, load_of = balance.max_cost, as_array(index.cost) / COST_UNIT
        mean = mean_of_uses(index, joint, load_of)
        size = largest_batch_size(room, mean)
        if not size:
            raise ConfigError(
                f"balance.max_cost is {room:g}, and a structure costs {mean:.4g} on average; "
                f"expected at least {PEAK_MARGIN * mean:.4g}."
            )
    else:
        memory = memory_of(balance, model, world)
        room = memory - costs.resident - costs.bytes.base
        load_of = structure_sums(index, joint, costs.bytes, limit)
        mean = mean_of_uses(index, joint, load_of)
        size = largest_batch_size(room, mean)
        if not size:
            raise ConfigError(
                f"a rank may have {_mib(memory)}, of which weights, optimizer and the process take "
                f"{_mib(memory - room)}, and a structure takes {_mib(mean)} on average.\n"
                "  Raise `balance.memory`, use a smaller model or a device with more memory, or "
                "leave the largest structures out with `max_atoms`."
            )
        _warn_of_large(index, joint, load_of, room, world)
        if balance.batch_size == AUTO:
            size = min(size, useful_size(index, joint, costs, limit, world))
    size = size_within(size, room, load_of, index, joint, balance.planner, world, seed)
    return balance.model_copy(update={"batch_size": size, "memory": None, "max_cost": None})


def size_within(
    size: int,
    room: float,
    load_of: NDArray[np.float64],
    index: PlanIndex,
    joint: JointDataset,
    planner: str,
    world: World,
    seed: int,
) -> int:
    """The largest number of structures per rank, up to `size`, whose planned loads have room.

    How far the largest load is above the mean depends on planner and batch size, so it is looked at
    in the first windows of the plan. One structure per rank is what is left where nothing has room.

    Args:
        size: where to start, B.
        room: what a rank's load may be.
        load_of: of each structure of the index.
        index: the training structures.
        joint: the data.
        planner: its name.
        world: the ranks.
        seed: of the plan.
    """
    while size > 1:
        epoch = epoch_windows(
            index,
            joint.config.sampling,
            seed=seed,
            epoch=0,
            ranks=world.size,
            batch_size=size,
            planner=planner,
        )
        peak = max(_peak_load(window, load_of) for window in islice(epoch, WINDOWS_LOOKED_AT))
        if peak <= room:
            break
        size = max(min(size - 1, int(size * room / peak)), 1)
    return size


def _peak_load(window: Window, load_of: NDArray[np.float64]) -> float:
    """The largest load of a rank in a step."""
    ends = np.concatenate([[0], np.cumsum(window.counts)])
    sums = np.concatenate([[0.0], np.cumsum(load_of[window.entries])])[ends]
    return float(np.diff(sums).max())


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def useful_size(
    index: PlanIndex, joint: JointDataset, costs: StepCosts, limit: int, world: World
) -> int:
    """Structures per rank beyond which a step isn't faster per structure, or an epoch too short."""
    seconds = structure_sums(index, joint, costs.seconds, limit)
    fast = fast_batch_size(costs.seconds.base, mean_of_uses(index, joint, seconds))
    of_epoch = int(uses_of(index, joint.config.sampling).sum()) // (world.size * FEWEST_STEPS)
    return max(min(max(fast, DEFAULT_BATCH_SIZE), of_epoch), 1)


def memory_of(balance: BalanceConfig, model: Potential, world: World) -> float:
    """Bytes that a rank may have; where none are given, most of what is free."""
    if balance.memory not in (None, AUTO):
        return float(parse_bytes(balance.memory))
    beside = world.local_size if world.device.type == "cpu" else 1  # a GPU is one rank's alone
    return resident_bytes(model, world.device) + FREE_SHARE * free_bytes(world.device) / beside


def structure_sums(
    index: PlanIndex, joint: JointDataset, cost: LinearCost, limit: int
) -> NDArray[np.float64]:
    """What each structure of the index adds to the time or the memory of a step."""
    ids = as_array(index.ids)
    atoms = joint.num_atoms[ids].astype(np.float64)
    edges = np.minimum(joint.num_edges[ids], limit * atoms)
    found: NDArray[np.float64] = cost.per_atom * atoms + cost.per_edge * edges
    return found


def mean_of_uses(index: PlanIndex, joint: JointDataset, values: NDArray[Any]) -> float:
    """Mean over the structures that an epoch uses, as often as it does."""
    uses = uses_of(index, joint.config.sampling)
    sums = np.add.reduceat(values.astype(np.float64), index.subset_offsets[:-1])
    sizes = np.diff(index.subset_offsets)
    return float((sums / sizes * uses).sum() / uses.sum())


def _warn_of_large(
    index: PlanIndex,
    joint: JointDataset,
    bytes_of: NDArray[np.float64],
    room: float,
    world: World,
) -> None:
    large = np.flatnonzero(bytes_of > room)
    if not len(large) or not world.is_main:
        return
    worst = large[[np.argmax(bytes_of[large])]]
    joint_id = int(index.ids[worst][0])
    logger.warning(
        "%d structures may not fit into the memory alone, the largest '%s' of subset '%s' with %d "
        "atoms. See `balance.oversized`, or leave them out with `max_atoms`.",
        len(large),
        joint.structure(joint_id).id,
        joint.names[int(index.subset[worst][0])],
        int(joint.num_atoms[index.ids[worst]][0]),
    )
