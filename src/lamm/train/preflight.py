"""Before a run: its batch size from a budget, and what its steps will cost (Sec. 3.4)."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lamm.balance.metrics import plan_metrics
from lamm.balance.plan import Plan, epoch_windows, join_windows, planner_advice
from lamm.balance.settings import BalanceConfig
from lamm.balance.uses import uses_of
from lamm.config import RunConfig, TrainingConfig
from lamm.data.joint import JointDataset
from lamm.errors import ConfigError
from lamm.files import replaced_file
from lamm.graph.batch import GraphBatch
from lamm.loss import LabelCounts
from lamm.models.potential import Potential, build, count_parameters
from lamm.runtime import tune_cpu
from lamm.train.batches import most_neighbors
from lamm.train.budget import WINDOWS_LOOKED_AT, memory_of, with_costs
from lamm.train.checkpoint import TrainState
from lamm.train.costs import (
    Prior,
    StepCosts,
    hold_here,
    measure,
    read_costs,
    save_costs,
)
from lamm.train.distributed import World
from lamm.train.step import loss_of

logger = logging.getLogger(__name__)


def check_run(model: Potential, joint: JointDataset) -> None:
    """Refuse what can't be trained, before anything is written.

    Raises:
        ConfigError: no structure is held out; or the model's forces are the gradient of its energy,
            and a denoising subset has displacements and an energy.
    """
    if len(joint.ids("val")) == 0:
        raise ConfigError(
            "no structure is left for validation. Raise `data.val_fraction`, or give splits."
        )
    if model.force_head is not None:
        return
    for subset in joint.subsets:
        noise = subset.denoising
        if noise is not None and noise.gives_energy and noise.gives_displacement:
            raise ConfigError(
                f"subset '{subset.name}': denoising.labels is '{noise.labels}', and this model's "
                "forces are the gradient of its energy, which displacements aren't.\n"
                "  Use `labels: displacement` or `elastic`, or `model.forces=direct`."
            )


def settle_balance(
    config: TrainingConfig,
    model: Potential,
    joint: JointDataset,
    world: World,
    *,
    kept: TrainState | None = None,
) -> BalanceConfig:
    """The run's settings of batches, a budget turned into a batch size by measured costs.

    Costs that the run folder keeps are used if they are every rank's device's; a budget without any
    has them measured by rank 0. A run that is resumed plans with what it began with, whatever costs
    are there now. Whatever fails on one rank, all end with it.

    Args:
        config: of the run.
        model: whose steps are measured.
        joint: the data.
        world: the ranks.
        kept: the state of a run that is resumed.

    Raises:
        ConfigError: the costs kept are another model's, or not one structure fits the budget.
        BadAnswerError: the steps that should be measured didn't fit into the memory.
    """
    balance = config.balance.on(world.device.type)
    if kept is not None and kept.plan is not None:
        return _as_planned(balance, kept.plan["edge_share"], kept.mini_batch_size, world)
    costs = world.from_main(lambda: read_costs(config.to, model))
    if costs is not None and kept is None:
        precision = config.train.precision
        holds = world.gather(hold_here(costs, world.device, precision, speaks=world.is_main))
        if holds[0] and not all(holds) and world.is_main:
            logger.warning("the costs in the run folder don't hold on rank %d", holds.index(False))
        costs = costs if all(holds) else None
    if costs is None and balance.has_budget:
        costs = world.from_main(lambda: _measured_and_kept(config, model, joint, world.device))
    if costs is None:
        return balance
    found: StepCosts = costs
    settled = world.together(lambda: with_costs(balance, model, joint, found, world, config.seed))
    if balance.has_budget:  # free memory differs among hosts
        least = min(world.gather(settled.structures_per_rank))
        settled = settled.model_copy(update={"batch_size": least})
    if world.is_main:
        logger.info(
            "costs of steps from %s: edges cause %.0f%% of a full atom's; %d structures per rank",
            config.to,
            100 * settled.edge_share,
            settled.structures_per_rank,
        )
    return settled


def _as_planned(
    balance: BalanceConfig, edge_share: float, mini_batch_size: int | None, world: World
) -> BalanceConfig:
    """The settings with the share of edges, and in place of a budget the size, of a run's plan."""
    changes: dict[str, Any] = {"edge_share": edge_share}
    if balance.has_budget:
        size = max(round((mini_batch_size or world.size) / world.size), 1)
        changes |= {"batch_size": size, "memory": None, "max_cost": None}
    return balance.model_copy(update=changes)


def _measured_and_kept(
    config: TrainingConfig, model: Potential, joint: JointDataset, device: torch.device
) -> StepCosts:
    costs = measured(config, model, joint, device)
    save_costs(costs, config.to)
    return costs


def measured(
    config: TrainingConfig, model: Potential, joint: JointDataset, device: torch.device
) -> StepCosts:
    """Measure the steps of a run on a device; the model is left as it was."""
    model.to(device).train()

    def step(batch: GraphBatch) -> None:
        counts = LabelCounts(batch.num_structures, batch.num_structures)
        loss_of(model, batch, counts, config.recipe()).total.backward()

    prior = Prior(config.balance.edge_share, most_neighbors(joint, model.graph_config))
    return measure(model, joint, step, device, config.train.precision, prior, seed=config.seed)


def look_ahead(
    config: RunConfig,
    *,
    ranks: int,
    ranks_per_host: int | None = None,
    device: torch.device,
    measures: bool,
    to: Path | None,
) -> dict[str, Any]:
    """What a run would be, without training: data, batch size, steps, balance, memory, time.

    Args:
        config: of the run.
        ranks: W.
        ranks_per_host: how many of them share the memory of a host; all where left out.
        device: the kind that each rank would have.
        measures: do some steps and keep their costs in the run folder, unless there are any.
        to: write the plan of the first epoch.

    Returns:
        What `lamm plan` says, as JSON can hold it.

    Raises:
        LaMMError: whatever would stop the run before its first step.
    """
    tune_cpu()
    world = World(0, ranks, device, min(ranks_per_host or ranks, ranks))
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=config.seed).start_at_references()
    check_run(model, joint)
    costs = read_costs(config.to, model)
    if costs is not None and not hold_here(costs, device, config.train.precision):
        costs = None
    balance = config.balance.on(device.type)
    if costs is None and balance.has_budget and not measures:
        raise ConfigError(
            f"{config.to}: no measured costs that hold here, and a batch size that follows from "
            "memory or cost needs them. Leave out --no-measure, or give `balance.batch_size`."
        )
    if costs is None and measures:
        costs = measured(config, model, joint, device)
        save_costs(costs, config.to)
    if costs is not None:
        balance = with_costs(balance, model, joint, costs, world, config.seed)
    limit = most_neighbors(joint, model.graph_config)
    index = joint.plan_index(limit, balance.edge_share)
    size = ranks * balance.structures_per_rank
    epoch = epoch_windows(
        index,
        joint.config.sampling,
        seed=config.seed,
        epoch=0,
        ranks=ranks,
        mini_batch_size=size,
        planner=balance.planner,
    )
    part = join_windows(list(islice(epoch, None if to else WINDOWS_LOOKED_AT)), index)
    if to is not None:
        with replaced_file(to) as temporary:
            part.save(temporary)
    steps = config.train.num_steps(epoch.num_steps)
    uses = uses_of(index, joint.config.sampling)
    result: dict[str, Any] = {
        "subsets": {
            name: {"structures": int(count), "uses": int(used)}
            for name, count, used in zip(
                joint.names, np.diff(index.subset_offsets), uses, strict=True
            )
        },
        "parameters": count_parameters(config.model, len(joint.names)),
        "ranks": ranks,
        "ranks_per_host": world.local_size,
        "planner": balance.planner,
        "structures_per_rank": balance.structures_per_rank,
        "mini_batch": size,
        "steps_per_epoch": epoch.num_steps,
        "steps": steps,
        "edge_share": balance.edge_share,
        "balance": plan_metrics(part, index),
        "advice": planner_advice(balance.planner, ranks, size, index),
        "costs": None if costs is None else costs.model_dump(mode="json"),
    }
    if costs is not None:
        result |= _expected(part, joint, costs, limit, epoch.num_steps, steps)
        result["r_squared"] = {
            "seconds": costs.r_squared("seconds"),
            "bytes": costs.r_squared("bytes"),
        }
        if config.balance.on(device.type).has_budget and config.balance.max_cost is None:
            result["budget_gib"] = memory_of(config.balance, model, world) / 2**30
    return result


def rank_sizes(
    plan: Plan, joint: JointDataset, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Atoms and edges of each rank in each step, (steps, ranks) each.

    Args:
        plan: whose uses are joint ids.
        joint: the data.
        limit: the most neighbours of an atom.
    """
    atoms = joint.num_atoms[plan.ids].astype(np.int64)
    edges = np.minimum(joint.num_edges[plan.ids], limit * atoms)
    return plan.rank_load(atoms), plan.rank_load(edges)


def _expected(
    part: Plan,
    joint: JointDataset,
    costs: StepCosts,
    limit: int,
    steps_per_epoch: int,
    steps: int,
) -> dict[str, Any]:
    """Time and memory of the planned steps."""
    of_ranks = rank_sizes(part, joint, limit)
    seconds = costs.seconds.of(*of_ranks)
    memory = costs.resident + costs.bytes.of(*of_ranks)
    step = float(seconds.max(axis=1).mean())
    return {
        "seconds_per_step": step,
        "hours_per_epoch": step * steps_per_epoch / 3600,
        "hours": step * steps / 3600,
        "waiting_share": float(1 - seconds.mean() / seconds.max(axis=1).mean()),
        "peak_memory_gib": float(memory.max() / 2**30),
        "mean_memory_gib": float(memory.mean() / 2**30),
    }
