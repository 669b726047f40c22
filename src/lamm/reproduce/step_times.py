"""Fig. 6: simulated step times of the planners, on OC20 alone and on the joint data set."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from lamm.balance.plan import PlanIndex
from lamm.balance.population import TABLE_2, population
from lamm.bench.balance import COST_MODELS, bench_balance, index_of
from lamm.data.sampling import SamplingConfig
from lamm.evaluate.balance_figure import balance_figure, balance_rows
from lamm.reproduce.outcome import Outcome, Picture, Table
from lamm.reproduce.settings import Experiment, paper_values
from lamm.schema import Frozen

OC20 = next(number for number, row in enumerate(TABLE_2) if row.name == "OC20")
PAPER, OURS = "paper", "balanced"


class Case(Frozen):
    """One panel of the figure."""

    model: Literal["S", "L"]
    ranks: PositiveInt
    batch_size: PositiveInt
    """B' of `random`; the paper doesn't say its own."""


class StepTimesExperiment(Experiment):
    """What is planned."""

    structures: PositiveInt
    """Of the joint data set's population, scaled down."""
    cases: list[Case]


def only_subset(index: PlanIndex, subset: int) -> PlanIndex:
    """The structures of one subset as a data set of their own."""
    kept = np.flatnonzero(np.asarray(index.subset) == subset)
    return PlanIndex(
        ids=np.asarray(index.ids)[kept],
        subset=np.zeros(len(kept), dtype=np.int64),
        cost=np.asarray(index.cost)[kept],
        has_energy=np.asarray(index.has_energy)[kept],
        has_forces=np.asarray(index.has_forces)[kept],
        num_atoms=None if index.num_atoms is None else np.asarray(index.num_atoms)[kept],
    )


def compare_step_times(settings: StepTimesExperiment) -> Outcome:
    """Throughput of the planners beside `random`, with equal batches and with equal memory."""
    counts = population(settings.structures, settings.seed)
    found, rows, pictures = [], [], []
    paper = paper_values("fig6")
    for case in settings.cases:
        model = COST_MODELS[case.model]
        index = index_of(counts, model)
        shape: dict[str, Any] = {
            "ranks": case.ranks,
            "batch_size": case.batch_size,
            "seed": settings.seed,
            "model": model,
        }
        joint = bench_balance(
            index,
            SamplingConfig(),
            planners=[PAPER, OURS],
            equal_memory=True,
            source="joint",
            **shape,
        )
        alone = bench_balance(
            only_subset(index, OC20), SamplingConfig(temperature=1), planners=[PAPER], **shape
        )
        baseline = joint["planners"]["random"]
        slower = baseline["step_time"]["mean"] / alone["planners"]["random"]["step_time"]["mean"]
        gains: dict[str, Any] = {}
        for planner in (PAPER, OURS):
            larger = joint["planners"][planner]["equal_memory"]
            gains[planner] = {
                "same_batch": joint["planners"][planner]["beside_random"],
                "equal_memory": None if larger is None else larger["beside_random"],
                "batch_size_at_equal_memory": None
                if larger is None
                else larger["structures_per_rank"],
                "imbalance": joint["planners"][planner]["imbalance"],
            }
            rows.append(
                (
                    f"LaMM-{case.model}, {case.ranks} ranks, B' = {case.batch_size}",
                    planner,
                    gains[planner]["same_batch"],
                    _same_batch(paper, case, planner),
                    gains[planner]["equal_memory"],
                    _larger_batch(paper, case, planner),
                    slower,
                    _slower(paper, case, planner),
                )
            )
        found.append(
            {
                **case.model_dump(),
                "random_imbalance": baseline["imbalance"],
                "joint_over_oc20_step_time": slower,
                "throughput_beside_random": gains,
            }
        )
        pictures.append(
            Picture(
                f"fig6_{case.model.lower()}_{case.ranks}",
                balance_figure(joint),
                balance_rows(joint),
                f"Simulated step times, LaMM-{case.model} on {case.ranks} ranks (as Fig. 6): the "
                "joint data set with temperature sampling.",
            )
        )
    table = Table(
        (
            "case",
            "planner",
            "throughput, same batch",
            "paper",
            "throughput, equal memory",
            "paper, larger batch",
            "step time, joint / OC20, random",
            "paper",
        ),
        rows,
        "Throughput beside random batches. Equal memory: the largest batches whose peak load on "
        "any rank is no higher than with random ones. `paper` is the planner of Sec. 3.4, "
        "`balanced` the default here. The paper's numbers were measured on V100 GPUs; these are "
        "simulated with a cost model that was fitted to them, so they test the planners and not "
        "the model of time.",
    )
    return Outcome({"cases": found}, [table], pictures)


def _same_batch(paper: dict[str, Any], case: Case, planner: str) -> float | None:
    if (case.model, case.ranks, planner) == ("S", 4, PAPER):
        return float(paper["throughput_same_batch_lamm_s_4_gpus"])
    return None


def _larger_batch(paper: dict[str, Any], case: Case, planner: str) -> float | None:
    if case.ranks == 16 and planner == PAPER:
        return float(paper["throughput_larger_batch_16_gpus"][case.model])
    return None


def _slower(paper: dict[str, Any], case: Case, planner: str) -> float | None:
    if (case.model, case.ranks, planner) == ("L", 16, PAPER):
        return float(paper["step_time_joint_over_oc20_lamm_l_16_gpus"])
    return None
