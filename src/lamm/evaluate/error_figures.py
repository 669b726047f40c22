"""Figures of errors: how they are distributed, and how they go with element and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from lamm.errors import ConfigError
from lamm.evaluate.parity import Parity, short_number
from lamm.evaluate.style import FAINT, PALETTE, WIDTH, log_axis, new_figure, plain_number, styled

_BINS_PER_DECADE = 8
_DECADES = 7
"""Errors below the largest one by more than this are counted with the smallest that is shown."""
_CROWDED = 4.2
"""Decades from which every other one has a label."""
MOST_ELEMENTS = 24
"""Elements that `error_breakdown` draws: the most frequent. Its data has all of them."""
_COLOURS = {"MAE": PALETTE[1], "median": PALETTE[2], "RMSE": PALETTE[3]}


@styled
def error_distributions(panels: Sequence[Parity]) -> Figure:
    """Absolute errors of each quantity on a logarithmic axis, with median, MAE and RMSE.

    Where a few structures rule the mean, the three lie far apart.
    """
    if not panels:
        raise ConfigError("no labels to compare predictions with.")
    width = WIDTH if len(panels) > 1 else 3.8
    figure, all_axes = new_figure(1, len(panels), height=2.5, width=width)
    for axes, panel in zip(all_axes, panels, strict=True):
        edges, share, error = _histogram(panel)
        axes.stairs(100 * share, edges, fill=True, color=PALETTE[0], alpha=0.3)
        axes.stairs(100 * share, edges, color=PALETTE[0], linewidth=1.2)
        marks = (
            ("median", float(np.median(error))),
            ("MAE", panel.mae if np.isfinite(panel.mae) else error.mean()),
            ("RMSE", panel.rmse if np.isfinite(panel.rmse) else np.sqrt(np.square(error).mean())),
        )
        for name, value in marks:
            if value > 0:
                colour, label = _COLOURS[name], f"{name} {short_number(value)}"
                axes.axvline(value, color=colour, linewidth=1.3, label=label)
        axes.set(ylim=(0, 135 * share.max()), title=panel.title)
        axes.set_xlabel(f"absolute error (m{panel.unit})")
        axes.set_ylabel("share of labels (%)")
        log_axis(axes, "x")
        if np.log10(edges[-1] / edges[0]) > _CROWDED:
            axes.xaxis.set_major_locator(LogLocator(base=100))
        if len(error) and error.max() > 0:
            axes.legend(loc="upper left", handlelength=1.0, fontsize=7)
    return figure


def distribution_rows(panels: Sequence[Parity]) -> list[dict[str, Any]]:
    """The data of `error_distributions`."""
    rows = []
    for panel in panels:
        edges, share, _ = _histogram(panel)
        rows += [
            {
                "quantity": panel.title.lower(),
                "unit": f"m{panel.unit}",
                "from": float(low),
                "to": float(high),
                "share": float(value),
            }
            for low, high, value in zip(edges[:-1], edges[1:], share, strict=True)
        ]
    return rows


def _histogram(
    panel: Parity,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Edges of bins (in thousandths of the unit), share of the errors in each, and the errors."""
    error = 1000 * np.abs(np.asarray(panel.predictions, float) - np.asarray(panel.labels, float))
    top = float(error.max()) or 1.0
    some = error[error > top * 10.0**-_DECADES]
    low = float(np.quantile(some, 0.001)) if len(some) else top / 10
    first = np.floor(np.log10(low) * _BINS_PER_DECADE)
    last = max(np.ceil(np.log10(top) * _BINS_PER_DECADE), first + 1)
    edges = 10.0 ** (np.arange(first, last + 1) / _BINS_PER_DECADE)
    count, _ = np.histogram(np.clip(error, edges[0], edges[-1]), edges)
    return edges, count / max(len(error), 1), error


@styled
def error_breakdown(
    by_element: Sequence[dict[str, Any]], by_size: Sequence[dict[str, Any]]
) -> Figure:
    """MAE and median of forces by element, and of energies and forces by number of atoms.

    Args:
        by_element: rows of `errors_by_element`.
        by_size: rows of `errors_by_size`.
    """
    shown = [row for row in by_element if "forces_mae_mev_per_ang" in row][:MOST_ELEMENTS]
    panels: list[tuple[str, str, str, list[dict[str, Any]]]] = []
    if shown:
        panels.append(("Forces by element", "element", "forces_{}_mev_per_ang", shown))
    for title, key in (
        ("Energy by size", "energy_{}_mev_per_atom"),
        ("Forces by size", "forces_{}_mev_per_ang"),
    ):
        rows = [row for row in by_size if key.format("mae") in row]
        if rows:
            panels.append((title, "atoms_per_structure", key, rows))
    if not panels:
        raise ConfigError("no labels to compare predictions with.")
    places = max(5, *(len(rows) for *_, rows in panels))
    width = WIDTH if len(panels) > 1 else 3.8
    figure, all_axes = new_figure(1, len(panels), height=0.9 + 0.19 * places, width=width)
    for axes, panel in zip(all_axes, panels, strict=True):
        _bars(axes, *panel, places)
    return figure


def breakdown_rows(
    by_element: Sequence[dict[str, Any]], by_size: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The data of `error_breakdown`, all elements and all kinds of error."""
    rows = [{"group": "element", "name": row["element"], **row} for row in by_element]
    rows += [{"group": "size", "name": row["atoms_per_structure"], **row} for row in by_size]
    keys = dict.fromkeys(key for row in rows for key in row)
    left_out = ("element", "atoms_per_structure")
    return [{key: row.get(key) for key in keys if key not in left_out} for row in rows]


def _bars(
    axes: Axes, title: str, name: str, key: str, rows: list[dict[str, Any]], room: int
) -> None:
    """Bars from the top down, with room for so many, so that all panels' bars are as thick."""
    places = room - 1 - np.arange(len(rows))
    mean = [row[key.format("mae")] for row in rows]
    median = [row[key.format("median")] for row in rows]
    axes.barh(places, mean, height=0.66, color=PALETTE[0], alpha=0.85)
    axes.plot(median, places, "D", color="white", markeredgecolor=FAINT, markersize=4)
    counts = [row["atoms" if name == "element" else "structures"] for row in rows]
    labels = [f"{row[name]}  ({count:,})" for row, count in zip(rows, counts, strict=True)]
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set(title=title, ylim=(-0.8, room - 0.2))
    unit = "meV/atom" if "energy" in key else "meV/Å"
    axes.set_xlabel(f"MAE (bar), median ({unit})", fontsize=8.5)
    axes.xaxis.set_major_formatter(plain_number)
