"""Numbers of several seeds: mean and spread, and what is said of seeds that have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lamm.evaluate.curves import Series, steps_to_threshold


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, extremes and values of several seeds.

    Args:
        values: one per seed, None where a seed has none, such as a threshold that it never met.

    Returns:
        ``mean``, ``min`` and ``max`` over the seeds that have one, None where none has;
        ``missing``, how many have none; ``values``.
    """
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "missing": len(values) - len(known),
        "values": list(values),
    }


def spread_text(found: dict[str, Any], suffix: str = "") -> str | None:
    """``mean (min–max)`` for a table; says how many seeds are missing."""
    if found["mean"] is None:
        return "never" if found["missing"] else None
    text = _short(found["mean"]) + suffix
    if len(found["values"]) - found["missing"] > 1:
        text += f" ({_short(found['min'])}–{_short(found['max'])})"
    if found["missing"]:
        text += f", {found['missing']} of {len(found['values'])} never"
    return text


def _short(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return (
        f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    )


def speed_up(baseline: Series, other: Series, threshold: float) -> dict[str, float | None]:
    """Steps of two curves to a threshold, and how many times fewer the other takes.

    A threshold that is met before the first step counts as met after one in the ratio.

    Args:
        baseline: a curve of errors over the steps.
        other: likewise.
        threshold: in the unit of the errors.

    Returns:
        ``threshold``; ``steps`` of the other; ``speedup``; None where the threshold is never met.
    """
    slow, fast = (steps_to_threshold(*curve, threshold) for curve in (baseline, other))
    met = None if slow is None or fast is None else max(slow, 1.0) / max(fast, 1.0)
    return {"threshold": threshold, "steps": fast, "speedup": met}


def seeds_text(seeds: Sequence[int]) -> str:
    """How many seeds, in words: '1 seed', '3 seeds'."""
    return f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
