"""Predictions against labels: one panel per quantity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lamm.errors import ConfigError
from lamm.evaluate.style import FAINT, PALETTE, WIDTH, new_figure, styled

_MANY_POINTS = 4000
"""Above this a panel shows densities instead of points."""


@dataclass(frozen=True)
class Parity:
    """Labels and predictions of one quantity."""

    title: str
    """What it is: 'Energy', 'Forces', 'Stress'."""
    unit: str
    """Unit of both arrays, such as 'eV/atom'; errors are given in thousandths of it."""
    labels: NDArray[np.floating[Any]]
    predictions: NDArray[np.floating[Any]]
    mae: float = math.nan
    """Mean absolute error in thousandths of the unit, where these points are a part of it all."""
    rmse: float = math.nan
    """Root mean square error, likewise; both are of the points where left out."""


@styled
def parity_plot(panels: Sequence[Parity], colour: str = PALETTE[0]) -> Figure:
    """Predictions against labels with mean absolute and root mean square error, a panel each.

    Few points are drawn one by one, many as a density.
    """
    if not panels:
        raise ConfigError("no labels to compare predictions with.")
    width = WIDTH if len(panels) > 1 else 3.8
    figure, all_axes = new_figure(
        1, len(panels), height=width / max(len(panels), 1) + 0.2, width=width
    )
    for axes, panel in zip(all_axes, panels, strict=True):
        _parity_panel(axes, panel, colour)
    return figure


def parity_rows(panels: Sequence[Parity]) -> list[dict[str, Any]]:
    """The data of `parity_plot`."""
    return [
        {
            "quantity": panel.title.lower(),
            "unit": panel.unit,
            "label": float(label),
            "prediction": float(prediction),
        }
        for panel in panels
        for label, prediction in zip(panel.labels, panel.predictions, strict=True)
    ]


def _parity_panel(axes: Axes, panel: Parity, colour: str) -> None:
    x, y = np.asarray(panel.labels, float).ravel(), np.asarray(panel.predictions, float).ravel()
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = 0.04 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=FAINT, linewidth=0.8, zorder=1)
    if len(x) > _MANY_POINTS:
        tint = LinearSegmentedColormap.from_list("density", ["#d8e4ee", colour, "#0b1a26"])
        axes.hexbin(
            x,
            y,
            gridsize=70,
            bins="log",
            cmap=tint,
            mincnt=1,
            extent=(*limits, *limits),
            linewidths=0,
            rasterized=True,
            zorder=2,
        )
    else:
        size = 14 if len(x) < 200 else 6
        axes.scatter(x, y, s=size, color=colour, alpha=0.45, linewidths=0, zorder=2)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_title(panel.title, pad=16)
    axes.set_xlabel(f"label ({panel.unit})")
    axes.set_ylabel(f"prediction ({panel.unit})")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    error = 1000 * (y - x)
    mae = panel.mae if math.isfinite(panel.mae) else np.abs(error).mean()
    rmse = panel.rmse if math.isfinite(panel.rmse) else np.sqrt(np.square(error).mean())
    axes.annotate(
        f"MAE {short_number(mae)}, RMSE {short_number(rmse)} m{panel.unit}",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=7.5,
    )


def short_number(value: float) -> str:
    """Three digits, or a whole number with separators of thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
