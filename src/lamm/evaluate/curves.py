"""Learning curves: read from a run folder, smoothed, and the steps that a threshold takes.

A curve is a `Series`: the steps and the values at them, ascending in step.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lamm.errors import ConfigError, DataError
from lamm.typing import PathLike

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class Series(NamedTuple):
    """One curve."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, steps: ArrayLike, values: ArrayLike) -> Series:
        """A curve from any two sequences of equal length, sorted by step."""
        x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
        if x.shape != y.shape or x.ndim != 1:
            raise ValueError(f"a curve of {x.shape} steps and {y.shape} values; one value each.")
        order = np.argsort(x, kind="stable")
        return cls(x[order], y[order])


@dataclass(frozen=True)
class LearningCurve:
    """One run as Fig. 9 shows it: validation errors, and what is known of the training ones."""

    label: str
    energy: Series | None = None
    """Validation MAE in meV/atom."""
    forces: Series | None = None
    """Validation MAE in meV/Å."""
    train_energy: Series | None = None
    """Training MAE in meV/atom, a value per reported step."""
    train_forces: Series | None = None
    """Training MAE in meV/Å."""
    loss: Series | None = None
    """Training loss of Eq. (5), normalised."""


def read_metrics(run_dir: PathLike) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; one at the end that a kill cut short is left out.

    Raises:
        ConfigError: there is no such run, or it has no metrics.
        DataError: a line before the last isn't a JSON object.
    """
    folder = Path(run_dir).expanduser()
    path = folder / METRICS
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such run folder. Name the folder that `to` of the run is.")
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no {METRICS}, so this is no run folder or the run hasn't started.\n"
            f"  It holds: {', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}."
        )
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or "kind" not in line or "step" not in line:
                raise ValueError("expected an object with 'kind' and 'step'")
        except ValueError as error:
            if number == len(texts):
                logger.warning("%s: left out line %d, which was cut short", path, number)
                break
            raise DataError(
                f"{path}, line {number}: {error}. Restore the file, or remove the line."
            ) from error
        lines.append(line)
    return lines


def _series(lines: Iterable[Mapping[str, Any]], key: str) -> Series:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return Series.of([step for step, _ in points], [value for _, value in points])


def train_series(lines: Iterable[Mapping[str, Any]], key: str) -> Series:
    """One number of the training lines, such as ``loss`` or ``lr``."""
    return _series((line for line in lines if line["kind"] == "train"), key)


def validation_series(
    lines: Iterable[Mapping[str, Any]],
) -> dict[str, dict[str, Series]]:
    """Per subset and key, the validation errors over the steps.

    Keys are those of `ErrorSums.result`; a subset has only those of its labels.
    """
    collected: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        if line["kind"] != "validation":
            continue
        for subset, errors in line["subsets"].items():
            keys = collected.setdefault(subset, {})
            for key, value in errors.items():
                if key != "structures" and value is not None:
                    keys.setdefault(key, []).append((line["step"], value))
    return {
        subset: {key: Series.of(*zip(*points, strict=True)) for key, points in keys.items()}
        for subset, keys in collected.items()
    }


def validation_loss(lines: Iterable[Mapping[str, Any]]) -> Series:
    """The loss of Eq. (5) over the whole validation split."""
    return _series((line for line in lines if line["kind"] == "validation"), "loss")


def learning_curve(
    label: str, lines: Sequence[Mapping[str, Any]], subset: str | None = None
) -> LearningCurve:
    """A run's learning curve on one subset.

    Args:
        label: how the run is called in figures.
        lines: its metrics.
        subset: which subset; may be left out where there is one.

    Raises:
        ConfigError: there are several subsets and none was named, or none of that name.
    """
    validation = validation_series(lines)
    names = list(validation)
    if subset is None and len(names) == 1:
        subset = names[0]
    if subset not in validation:
        raise ConfigError(f"no validation of subset {subset!r}; the metrics have {names}.")
    errors = validation[subset]
    loss = train_series(lines, "loss")
    return LearningCurve(
        label,
        energy=errors.get("energy_mae_mev_per_atom"),
        forces=errors.get("forces_mae_mev_per_ang"),
        loss=loss if len(loss.steps) else None,
    )


def running_minimum(values: ArrayLike) -> NDArray[np.float64]:
    """The best value so far; NaN counts as no value."""
    return np.fmin.accumulate(np.asarray(values, dtype=np.float64))


def moving_average(values: ArrayLike, window: int = 31) -> NDArray[np.float64]:
    """Mean over `window` points around each one (31 in Fig. 9), over fewer near the ends."""
    y = np.asarray(values, dtype=np.float64)
    if window < 1:
        raise ValueError(f"a window of {window} points; at least 1.")
    half = window // 2
    total = np.concatenate(([0.0], np.cumsum(y)))
    position = np.arange(len(y))
    first, stop = np.maximum(position - half, 0), np.minimum(position + half + 1, len(y))
    mean: NDArray[np.float64] = (total[stop] - total[first]) / (stop - first)
    return mean


def steps_to_threshold(steps: ArrayLike, values: ArrayLike, threshold: float) -> float | None:
    """After how many steps a curve first is at or below a threshold (the speed-ups of Table 3).

    Between the last point above and the first one at or below, the curve is a straight line.

    Args:
        steps: ascending.
        values: one per step; NaN counts as no point.
        threshold: in the unit of the values.

    Returns:
        The step, or None where the curve never gets there.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    below = np.flatnonzero(y <= threshold)
    if len(below) == 0:
        return None
    first = int(below[0])
    if first == 0:
        return float(x[0])
    above = first - 1
    if not np.isfinite(y[above]):
        return float(x[first])
    share = (y[above] - threshold) / (y[above] - y[first])
    return float(x[above] + share * (x[first] - x[above]))


def mean_curve(curves: Sequence[Series]) -> Series:
    """The mean of curves over the steps that all of them have, such as those of several seeds."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    values = [curve.values[np.searchsorted(curve.steps, steps)] for curve in curves]
    return Series(steps, np.mean(values, axis=0))


def ratio(ours: float | None, other: float | None) -> float | None:
    """One number over another; None where one is missing or the other is zero."""
    return ours / other if ours is not None and other else None
