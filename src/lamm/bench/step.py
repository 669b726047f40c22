"""Planners with real processes: how long ranks wait for each other, and for their data.

Every turn is a run of its own: W ranks under ``torchrun`` with gloo on CPU, one thread each, which
do the same number of steps by the plan of one planner. What a rank takes until its own gradients
are there is measured, beside what the costs say that were fitted to a few steps of the model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lamm.balance.cost import COST_UNIT
from lamm.balance.plan import PLANNERS, plan_epoch
from lamm.bench.timing import provenance, spread
from lamm.config import RunConfig, to_yaml
from lamm.data.joint import JointDataset
from lamm.errors import BadAnswerError, ConfigError, nearest_names
from lamm.models.potential import Potential, build
from lamm.train.batches import most_neighbors
from lamm.train.budget import with_costs
from lamm.train.costs import StepCosts, hold_here, read_costs
from lamm.train.distributed import World
from lamm.train.preflight import measured, rank_sizes
from lamm.typing import JSONDict

DEFAULT_PLANNERS = ("random", "greedy", "paper", "balanced")
CPU = torch.device("cpu")


def bench_step(
    config: RunConfig,
    *,
    ranks: int = 2,
    steps: int = 40,
    rounds: int = 3,
    planners: Sequence[str] = DEFAULT_PLANNERS,
    progress: Callable[[str], None] = lambda _: None,
) -> JSONDict:
    """Do the first steps of a run with each planner.

    Args:
        config: data, model and batch size of the run; its folder isn't touched.
        ranks: W, processes of this machine.
        steps: steps of a turn, after a tenth more that warm up.
        rounds: how often everybody's turn comes.
        planners: names in `PLANNERS`.
        progress: told about each turn.

    Returns:
        Settings with the fitted costs; for each planner the imbalance of the planned loads, that of
        the simulated times and the measured one, the shares of the time that ranks wait for each
        other (simulated and measured) and for data, and speeds; as JSON can hold it.

    Raises:
        ConfigError: an unknown planner, or a budget in which no structure fits.
        BadAnswerError: a process failed.
    """
    for name in planners:
        if name not in PLANNERS:
            raise ConfigError(f"unknown planner '{name}'. {nearest_names(name, PLANNERS)}")
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=config.seed)
    costs = fitted_costs(config, model, joint, progress)
    world = World(0, ranks, CPU, ranks)
    balance = with_costs(config.balance, model, joint, costs, world, config.seed)
    config = config.model_copy(update={"balance": balance})
    limit = most_neighbors(joint, model.graph_config)
    turns: dict[str, list[dict[str, NDArray[np.float64]]]] = {name: [] for name in planners}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name in planners if number % 2 == 0 else planners[::-1]:
                progress(f"round {number + 1} of {rounds}: {name}")
                turns[name].append(_turn(config, name, ranks, steps, Path(folder)))
    return {
        "settings": {
            "ranks": ranks,
            "structures_per_rank": config.balance.structures_per_rank,
            "steps": steps,
            "rounds": rounds,
            "workers": config.train.workers,
            "subsets": list(config.data.subsets),
            "edge_share": balance.edge_share,
            "seconds": {**costs.seconds.model_dump(), "r_squared": costs.r_squared("seconds")},
        },
        "planners": {
            name: simulated(config, joint, costs, limit, name, ranks, steps) | _summary(found)
            for name, found in turns.items()
        },
        "provenance": provenance(config.seed),
    }


def warm_up_steps(steps: int) -> int:
    """Steps before those that count."""
    return max(steps // 10, 2)


def fitted_costs(
    config: RunConfig, model: Potential, joint: JointDataset, progress: Callable[[str], None]
) -> StepCosts:
    """The costs that the run folder keeps for this processor, else measured on one thread."""
    kept = read_costs(config.to, model)
    if kept is not None and hold_here(kept, CPU, config.train.precision):
        return kept
    progress("costs of a step")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measured(config, model, joint, CPU)
    finally:
        torch.set_num_threads(threads)


def simulated(
    config: RunConfig,
    joint: JointDataset,
    costs: StepCosts,
    limit: int,
    planner: str,
    ranks: int,
    steps: int,
) -> dict[str, float]:
    """What the costs say of the steps that are measured.

    Args:
        config: with the batch size and the share of edges of the plan.
        joint: the data.
        costs: time by atoms and edges.
        limit: the most neighbours of an atom.
        planner: its name.
        ranks: W.
        steps: how many are measured.

    Returns:
        ``planned_imbalance``, slowest rank over the mean one by the plan's loads;
        ``simulated_imbalance``, the same by the fitted times; ``simulated_waiting``, the share of
        the time that the mean rank waits then.
    """
    index = joint.plan_index(limit, config.balance.edge_share)
    first = warm_up_steps(steps)
    loads: list[NDArray[np.float64]] = []
    times: list[NDArray[np.float64]] = []
    epoch = done = 0
    while done < first + steps:
        plan = plan_epoch(
            index,
            config.data.sampling,
            seed=config.seed,
            epoch=epoch,
            ranks=ranks,
            batch_size=config.balance.structures_per_rank,
            planner=planner,
        )
        times.append(costs.seconds.of(*rank_sizes(plan, joint, limit)))
        loads.append(plan.rank_load(index.cost[index.find(plan.ids)].astype(np.int64)) / COST_UNIT)
        done, epoch = done + plan.num_steps, epoch + 1
    load, seconds = (np.concatenate(one)[first : first + steps] for one in (loads, times))
    return {
        "planned_imbalance": _imbalance(load),
        "simulated_imbalance": _imbalance(seconds),
        "simulated_waiting": 1 - 1 / _imbalance(seconds),
    }


def _turn(
    config: RunConfig, planner: str, ranks: int, steps: int, folder: Path
) -> dict[str, NDArray[np.float64]]:
    """One run; arrays (steps, ranks) of what was measured."""
    balance = config.balance.model_copy(update={"planner": planner})
    file, answer = folder / "run.yaml", folder / "answer.json"
    file.write_text(to_yaml(config.model_copy(update={"balance": balance})), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    worker = ["-m", "lamm.bench.step_worker", str(file), str(steps), str(answer)]
    done = subprocess.run(
        [sys.executable, *launcher, *worker],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BadAnswerError(
            f"planner {planner}: a rank ended with status {done.returncode}:\n"
            f"{done.stderr.strip()[-2000:]}"
        )
    found = json.loads(answer.read_text(encoding="utf-8"))
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def _summary(turns: Sequence[dict[str, NDArray[np.float64]]]) -> JSONDict:
    """Figures of each turn; the spread is over turns."""

    def each(figure: Callable[[dict[str, NDArray[np.float64]]], float]) -> dict[str, float]:
        return spread([figure(turn) for turn in turns])

    return {
        "measured_imbalance": each(lambda turn: _imbalance(turn["own"])),
        "measured_imbalance_cpu": each(lambda turn: _imbalance(turn["own_cpu"])),
        "waiting_for_ranks": each(lambda turn: _share(turn, "others")),
        "waiting_for_data": each(lambda turn: _share(turn, "data")),
        "step_ms": each(lambda turn: 1e3 * _seconds(turn) / len(turn["step"])),
        "atoms_per_s": each(lambda turn: float(turn["atoms"].sum()) / _seconds(turn)),
    }


def _seconds(turn: dict[str, NDArray[np.float64]]) -> float:
    return float(turn["step"].max(axis=1).sum())


def _share(turn: dict[str, NDArray[np.float64]], column: str) -> float:
    """What the mean rank spent on something, of all the time."""
    return float(turn[column].mean(axis=1).sum()) / _seconds(turn)


def _imbalance(seconds: NDArray[np.float64]) -> float:
    return float(seconds.max(axis=1).sum() / seconds.mean(axis=1).sum())


def table(result: dict[str, Any]) -> list[str]:
    """The result of `bench_step` for a person."""
    settings = result["settings"]
    lines = [
        f"{settings['ranks']} ranks, {settings['structures_per_rank']} structures on each, "
        f"{settings['steps']} steps; medians over {settings['rounds']} rounds; edges cause "
        f"{settings['edge_share']:.0%} of a full atom's time",
        f"{'':16}{'imbalance':>10}{'simu-':>9}{'measured':>10}{'by CPU':>9}{'waiting for':>13}"
        f"{'':>9}{'ms':>9}{'atoms':>9}",
        f"{'':16}{'planned':>10}{'lated':>9}{'':>10}{'time':>9}{'ranks':>13}{'data':>9}"
        f"{'a step':>9}{'a s':>9}",
    ]
    for name, one in result["planners"].items():
        lines.append(
            f"{name:16}{one['planned_imbalance']:>10.3f}{one['simulated_imbalance']:>9.3f}"
            f"{one['measured_imbalance']['median']:>10.3f}"
            f"{one['measured_imbalance_cpu']['median']:>9.3f}"
            f"{one['waiting_for_ranks']['median']:>13.1%}"
            f"{one['waiting_for_data']['median']:>9.1%}"
            f"{one['step_ms']['median']:>9.0f}{one['atoms_per_s']['median']:>9.0f}"
        )
    return lines
