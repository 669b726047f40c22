"""Fig. 2: which elements the subsets have, on the periodic table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ase.data import atomic_numbers, chemical_symbols
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lamm.errors import ConfigError
from lamm.evaluate.style import (
    FAINT,
    INK,
    WIDTH,
    styled,
    subset_colours,
    subset_markers,
)
from lamm.structure import MAX_ATOMIC_NUMBER

_F_BLOCK_TOP = 7.45
"""Row at which the lanthanides are drawn, below the table and a gap."""
_LEGEND_WIDTH = 9.6
"""Columns between Mg and Al, where the names of the subsets stand."""
_EMPTY = "#f4f4f4"


def table_place(atomic_number: int) -> tuple[float, float]:
    """Column and row of an element in the 18-column table, from 0; the f block is below.

    La and Ac stand with the f block, Lu and Lr in group 3.
    """
    if atomic_number == 1:
        return 0, 0
    if atomic_number == 2:
        return 17, 0
    first = (3, 11, 19, 37, 55, 87, 119)  # first element of periods 2 to 8
    period = next(p for p in range(6) if first[p] <= atomic_number < first[p + 1])
    place = atomic_number - first[period]
    if period < 2:
        return place if place < 2 else place + 10, period + 1
    if period < 4:
        return place, period + 1
    if place < 2:
        return place, period + 1
    if place < 16:
        return place, _F_BLOCK_TOP + period - 4
    return place - 14, period + 1


@styled
def element_heatmap(
    elements: Mapping[str, Collection[str]], colours: Mapping[str, str] | None = None
) -> Figure:
    """The number of subsets that have each element, and markers for which ones (Fig. 2).

    Args:
        elements: chemical symbols of each subset.
        colours: colour of each subset, from `subset_colours`.

    Raises:
        ConfigError: a symbol isn't one of an element.
    """
    _check(elements)
    chosen = colours or subset_colours(list(elements))
    markers = subset_markers(list(chosen))
    lines = _marker_lines(len(elements))
    figure = Figure(figsize=(WIDTH, 4.15 if lines < 3 else 4.55))
    axes = figure.add_axes((0.005, 0.01, 0.99, 0.98))
    axes.set(xlim=(-0.05, 18.05), ylim=(_F_BLOCK_TOP + 2.05, -0.1))
    axes.axis("off")
    tint = LinearSegmentedColormap.from_list("count", ["#e8f0f8", "#8db7de", "#3f7fb8"])
    for number in range(1, MAX_ATOMIC_NUMBER + 1):
        symbol = chemical_symbols[number]
        having = [name for name, symbols in elements.items() if symbol in symbols]
        shade = _EMPTY if not having else tint((len(having) - 1) / max(len(elements) - 1, 1))
        _cell(axes, number, shade, bool(having), lines)
        column, row = table_place(number)
        for k, name in enumerate(elements):
            if name in having:
                _marker(axes, column, row, k, len(elements), markers[name], chosen[name])
    _legend(axes, list(elements), markers, chosen)
    _scale(axes, len(elements), tint)
    return figure


def element_rows(elements: Mapping[str, Collection[str]]) -> list[dict[str, Any]]:
    """The data of `element_heatmap`: a row per element that some subset has."""
    return [
        {
            "atomic_number": number,
            "symbol": (symbol := chemical_symbols[number]),
            "subsets": sum(symbol in symbols for symbols in elements.values()),
            **{name: int(symbol in symbols) for name, symbols in elements.items()},
        }
        for number in range(1, MAX_ATOMIC_NUMBER + 1)
        if any(chemical_symbols[number] in symbols for symbols in elements.values())
    ]


def _check(elements: Mapping[str, Collection[str]]) -> None:
    for name, symbols in elements.items():
        for symbol in symbols:
            if symbol not in atomic_numbers or symbol == "X":
                raise ConfigError(
                    f"subset '{name}' lists '{symbol}', which is no chemical element. "
                    "Give symbols such as 'Fe'."
                )


def _marker_lines(count: int) -> int:
    """Lines of markers in a cell: five markers are a line, unless that makes more than three."""
    return min(-(-count // 5), 3)


def _cell(axes: Axes, number: int, shade: Any, present: bool, lines: int) -> None:
    column, row = table_place(number)
    axes.add_patch(
        Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, facecolor=shade, edgecolor="none")
    )
    axes.text(
        column + 0.5,
        row + (0.29 if lines < 3 else 0.2),
        chemical_symbols[number],
        ha="center",
        va="center",
        fontsize=8.5 if lines < 3 else 7.5,
        fontweight="bold" if present else "normal",
        color=INK if present else "#9a9a9a",
    )
    if present:  # a light ground, so that every marker stands out on every shade
        top = _ground_top(lines)
        axes.add_patch(
            Rectangle((column + 0.06, row + top), 0.88, 0.94 - top, facecolor="white", alpha=0.88)
        )


def _ground_top(lines: int) -> float:
    """Where in a cell the ground of the markers begins."""
    return 0.5 if lines < 3 else 0.37


def _marker(
    axes: Axes, column: float, row: float, k: int, count: int, marker: str, colour: str
) -> None:
    """Marker number `k` of a cell: each subset always has the same place."""
    lines = _marker_lines(count)
    per_line = -(-count // lines)
    line, place = divmod(k, per_line)
    step = min(0.2, 0.87 / per_line)
    top = _ground_top(lines)
    x = column + 0.5 + step * (place - (per_line - 1) / 2)
    y = row + top + (0.94 - top) * (line + 0.5) / lines
    size = 4.0 if per_line < 5 else min(3.6, 18 / per_line)
    axes.plot(
        x,
        y,
        marker=marker,
        markersize=size,
        color=colour,
        markeredgecolor="none",
        linestyle="none",
    )


def _legend(
    axes: Axes, names: list[str], markers: Mapping[str, str], colours: Mapping[str, str]
) -> None:
    """Names of the subsets in the gap above the transition metals."""
    handles = [
        Line2D([], [], linestyle="none", marker=markers[name], color=colours[name], markersize=6)
        for name in names
    ]
    columns = 1 if len(names) <= 5 else 2 if len(names) <= 16 else 3
    # A letter is about 0.6 of the font's size wide, and a marker with its gaps 26 points.
    room = _LEGEND_WIDTH * 72 * WIDTH / 18.1 / columns - 26
    longest = max(len(name) for name in names)
    axes.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(2.1, 2.95),
        bbox_transform=axes.transData,
        ncols=columns,
        fontsize=min(8.0, max(room / (0.6 * longest), 4.0)),
        handletextpad=0.3,
        columnspacing=1.2,
        labelspacing=0.4,
        borderaxespad=0,
        borderpad=0,
    )


def _scale(axes: Axes, count: int, tint: Colormap) -> None:
    """What the shades mean, in the empty corner left of the f block."""
    axes.text(0.0, _F_BLOCK_TOP + 0.25, "number", fontsize=7.5, color=FAINT, va="center", ha="left")
    axes.text(
        0.0, _F_BLOCK_TOP + 0.6, "of subsets", fontsize=7.5, color=FAINT, va="center", ha="left"
    )
    shown = sorted({0, 1, (count + 1) // 2, count})
    width = 1.9 / len(shown)
    for k, value in enumerate(shown):
        shade = _EMPTY if value == 0 else tint((value - 1) / max(count - 1, 1))
        axes.add_patch(
            Rectangle((k * width, _F_BLOCK_TOP + 0.95), width * 0.94, 0.42, facecolor=shade)
        )
        axes.text(
            (k + 0.47) * width,
            _F_BLOCK_TOP + 1.62,
            str(value),
            ha="center",
            va="center",
            fontsize=7.5,
            color=FAINT,
        )
