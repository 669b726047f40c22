"""Step times with each planner, as Fig. 6 shows them, from the result of ``lamm bench balance``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lamm.evaluate.style import FAINT, PALETTE, new_figure, step_axis, styled

MOVING_STEPS = 5
"""Steps that Fig. 6(c) averages over."""


@styled
def balance_figure(result: Mapping[str, Any]) -> Figure:
    """Distribution of the simulated step time with each planner, and its course over some steps.

    Left, as Fig. 6(a) and (b): least to largest (thin), 5th to 95th percentile (thick), median
    (tick) and mean (dot). Right, as Fig. 6(c): the moving average over five steps.

    Args:
        result: what `lamm.bench.balance.bench_balance` gives.
    """
    figure, (left, right) = new_figure(1, 2, height=3.1, width_ratios=(1, 1.25))
    planners = result["planners"]
    colours = dict(zip(planners, PALETTE, strict=False))
    ideal = [one["ideal_step_time"] for one in planners.values()]
    for place, (name, one) in enumerate(planners.items()):
        times, colour = one["step_time"], colours[name]
        left.vlines(place, times["min"], times["max"], color=colour, linewidth=1)
        left.vlines(place, times["p5"], times["p95"], color=colour, linewidth=7, alpha=0.45)
        left.hlines(times["median"], place - 0.22, place + 0.22, color=colour, linewidth=1.6)
        left.plot(place, times["mean"], "o", color=colour, markersize=4.5)
        course = moving_average(np.array(one["series"]["time"]), MOVING_STEPS)
        right.plot(np.arange(len(course)), course, color=colour, label=name, linewidth=1.3)
    left.axhline(float(np.mean(ideal)), color=FAINT, linewidth=1, linestyle="--")
    left.set_xticks(range(len(planners)), [name.replace("_", "\n") for name in planners])
    left.tick_params(axis="x", labelsize=7)
    left.grid(visible=False, axis="x")
    left.set_ylabel("simulated step time (atoms)")
    settings = result["settings"]
    left.set_title(f"{settings['ranks']} ranks, B = {settings['batch_size']}; dashed: ideal")
    right.set_title(f"mean of {MOVING_STEPS} steps")
    step_axis(right)
    right.set_ylim(bottom=0)
    left.set_ylim(bottom=0)
    right.legend(loc="lower left", ncols=3)
    return figure


def balance_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data of the figure's left part: a row per planner."""
    return [
        {"planner": name, "imbalance": one["imbalance"], **one["step_time"]}
        for name, one in result["planners"].items()
    ]


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Means of `width` values in a row; of all, where there are fewer."""
    width = min(width, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid")
