"""How good a plan is: idle ranks, peak memory, and composition of the mini-batches (Sec. 4.1)."""

from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from lamm.balance.plan import Plan
from lamm.balance.uses import PlanIndex


def step_imbalance(load: Integer[np.ndarray, "steps ranks"]) -> Float[np.ndarray, " steps"]:
    """The slowest rank's load over the mean rank's, for each step; 1 is perfect.

    Args:
        load: load of each step and rank, as `Plan.rank_load` gives it.
    """
    ratio: Float[np.ndarray, " steps"] = load.max(axis=1) / load.mean(axis=1)
    return ratio


def composition_chi2(count: Integer[np.ndarray, "steps subsets"]) -> float:
    r"""Chi-square per degree of freedom of the subsets' shares in each step, averaged over steps.

    .. math:: \frac{1}{T (D - 1)} \sum_{t, i} \frac{(n_{ti} - G_t p_i)^2}{G_t p_i}

    Args:
        count: structures of each step and subset.

    Returns:
        About 1 for random mini-batches, less for stratified ones, more for sorted ones.
    """
    used = count[:, count.sum(axis=0) > 0]
    share = used.sum(axis=0) / used.sum()
    expected = used.sum(axis=1, keepdims=True) * share
    chi2 = ((used - expected) ** 2 / expected).sum(axis=1) / max(1, used.shape[1] - 1)
    return float(chi2.mean())


def plan_metrics(plan: Plan, index: PlanIndex, seconds: float | None = None) -> dict[str, Any]:
    """Measure a plan.

    Args:
        plan: the plan of an epoch.
        index: the index that it was made from.
        seconds: how long planning took, where it was timed.

    Returns:
        ``imbalance``: sum over steps of the slowest rank's load, over that of the mean rank's;
        ``imbalance_worst``: the same of the worst step; ``idle_fraction``: share of all ranks' time
        spent waiting for the slowest; ``peak_over_mean``: largest load of a rank over the mean;
        ``growth_over_mean``: how much the load of some rank rises from a step to the next, over the
        mean load, averaged over steps (it costs memory reallocation); ``chi2_per_dof`` as
        `composition_chi2`; ``idle_ranks``: GPU batches without a structure; numbers of structures
        per rank and per mini-batch; and ``planning_seconds``, ``planning_ms_per_step`` where
        `seconds` was given.
    """
    entries = index.find(plan.ids)
    load = plan.rank_load(index.cost[entries])
    count = np.diff(plan.step_rank_offsets).reshape(load.shape)
    mini_batch = count.sum(axis=1)
    num_subsets = index.num_subsets
    step = np.repeat(np.arange(plan.num_steps), mini_batch)
    composition = np.bincount(
        step * num_subsets + index.subset[entries], minlength=plan.num_steps * num_subsets
    ).reshape(-1, num_subsets)
    slowest, mean = load.max(axis=1).sum(), load.mean(axis=1).sum()
    growth = np.diff(load, axis=0).max(axis=1).clip(min=0)
    result: dict[str, Any] = {
        "ranks": plan.num_ranks,
        "steps": plan.num_steps,
        "structures": len(plan.ids),
        "imbalance": float(slowest / mean),
        "imbalance_worst": float(step_imbalance(load).max()),
        "idle_fraction": float(1 - mean / slowest),
        "peak_over_mean": float(load.max() / load.mean()),
        "growth_over_mean": float(growth.sum() / plan.num_steps / load.mean()),
        "chi2_per_dof": composition_chi2(composition),
        "idle_ranks": int((count == 0).sum()),
        "structures_per_rank": _range(count),
        "mini_batch": _range(mini_batch),
    }
    if seconds is not None:
        result["planning_seconds"] = seconds
        result["planning_ms_per_step"] = 1e3 * seconds / plan.num_steps
    return result


def _range(values: Integer[np.ndarray, "*shape"]) -> dict[str, int | float]:
    return {"min": int(values.min()), "mean": float(values.mean()), "max": int(values.max())}
