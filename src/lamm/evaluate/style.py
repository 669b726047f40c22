"""How every figure looks: palette, fonts, axes, direct labels, and how a figure is saved.

Figures are drawn on `matplotlib.figure.Figure` without pyplot: no window, no global state. The
colours are those of Okabe and Ito, then four dark or grey ones; any two can be told apart with
protanopia and deuteranopia (simulated difference of at least 11 in CIELAB), and a marker per subset
goes with them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lamm.files import replaced_file, write_csv
from lamm.typing import PathLike

PALETTE = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # bluish green
    "#CC79A7",  # reddish purple
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#332288",  # indigo
    "#661100",  # dark red
    "#222222",  # black
    "#777777",  # grey
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
INK, FAINT, GRID = "#1c1c1c", "#6b6b6b", "#e4e4e4"
WIDTH = 7.2
"""Inches: the text width of the report."""

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a8a8a",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#8a8a8a",
    "ytick.color": "#8a8a8a",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "lamm",
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function with the settings of this module and no others."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(cast(Any, _RC))
            return draw(*args, **kwargs)

    return inner


def subset_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour per subset, by its place among all subsets of the model.

    Make it once from all names and give it to every figure, so that a figure of some of the subsets
    has the same colours. Beyond ten they repeat; markers then repeat with another step.
    """
    return {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(names)}


def subset_markers(names: Sequence[str]) -> dict[str, str]:
    """A marker per subset, likewise."""
    count = len(MARKERS)
    return {
        name: MARKERS[(place + place // len(PALETTE)) % count] for place, name in enumerate(names)
    }


def new_figure(
    rows: int = 1, columns: int = 1, *, height: float, width: float = WIDTH, **keywords: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of axes, row by row; `keywords` go to `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **keywords)
    return figure, list(axes.flat)


def plain_number(value: float, _position: object = None) -> str:
    """A tick label: 0.05, 20, 1,000, and powers of ten as 10⁶."""
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e5:
        return f"{value:,.6g}"
    exponent = int(np.floor(np.log10(size) + 1e-9))
    mantissa = value / 10.0**exponent
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if np.isclose(mantissa, 1) else f"{mantissa:.3g}·{power}"


def log_axis(axes: Axes, which: str) -> None:
    """Make an axis logarithmic, with readable ticks however many decades it spans.

    Call it after drawing: the limits decide about the ticks.
    """
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    low, high = sorted(getattr(axes, f"get_{which}lim")())
    decades = np.log10(high / low) if low > 0 else 9.0
    subs = (1, 2, 3, 5, 7) if decades < 0.7 else (1, 2, 5) if decades < 2.6 else (1,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(plain_number))
    axis.set_minor_formatter(NullFormatter())
    axis.grid(visible=True, which="major")


def step_axis(axes: Axes, label: str = "training step", ticks: int = 6) -> None:
    """Label a linear axis of steps, its ticks with thousands separators."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, inches: float, size: float = 8
) -> None:
    """Write each curve's name beside its end, moved up or down where two would overlap.

    Call it after drawing, when the limits are final.

    Args:
        axes: where the curves are.
        ends: x and y of each curve's end, its name and its colour.
        inches: height of the axes, for how many labels fit.
        size: font size in points.
    """
    if not ends:
        return
    to_fraction = axes.transScale + axes.transLimits
    wanted = [float(to_fraction.transform((x, y))[1]) for x, y, _, _ in ends]
    gap = 1.35 * size / 72 / inches
    for (x, y, name, colour), place in zip(ends, spread(wanted, gap), strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.03, place),
            textcoords=axes.transAxes,
            color=colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.7,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Move numbers between 0 and 1 until any two are at least `gap` apart, their order kept."""
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    groups: list[tuple[list[int], float]] = []  # members and centre of labels that touch
    for k in order:
        members, centre = [k], wanted[k]
        while groups:
            before, middle = groups[-1]
            if centre - middle >= gap * (len(before) + len(members)) / 2:
                break
            groups.pop()
            members = before + members
            centre = sum(wanted[m] for m in members) / len(members)
        groups.append((members, centre))
    places = [0.0] * len(wanted)
    for members, middle in groups:
        room = gap * (len(members) - 1) / 2
        centre = min(max(middle, room), max(1 - room, room))  # inside the axes where they fit
        for rank, member in enumerate(members):
            places[member] = centre + gap * (rank - (len(members) - 1) / 2)
    return places


_NUMBER = re.compile(r"\d+\.\d{3,}")


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}"


@styled
def svg_text(figure: Figure) -> str:
    """A figure as an ``<svg>`` element for an HTML page: no prologue, no metadata, text as text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\b(?:d|x|y)="[^"]*"', lambda found: _NUMBER.sub(_rounded, found[0]), text)
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


@styled
def save_figure(
    figure: Figure, path_stem: PathLike, rows: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write a figure as PNG and SVG, and its data as CSV beside them.

    Args:
        figure: the figure.
        path_stem: path without suffix; its folder is made where it isn't there.
        rows: one mapping per line of the CSV; all of them have the keys of the first.

    Returns:
        The three paths.
    """
    stem = Path(path_stem)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "svg", "csv")]
    for path in paths[:2]:
        with replaced_file(path) as temporary:
            kind = path.suffix[1:]
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(temporary, format=kind, dpi=200, metadata=metadata)
    write_csv(paths[2], rows)
    return paths
