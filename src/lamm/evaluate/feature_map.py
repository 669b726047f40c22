"""Fig. 8: a map of atoms' representations, coloured by subset, element and group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from ase.data.colors import jmol_colors
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke

from lamm.evaluate.elements import table_place
from lamm.evaluate.features import AtomFeatures
from lamm.evaluate.style import FAINT, INK, WIDTH, new_figure, styled, subset_colours

ORGANIC = tuple(atomic_numbers[symbol] for symbol in ("H", "C", "N", "O"))
SIGMAS = 1.5
"""Half-axes of the ellipses in standard deviations."""
FEWEST_FOR_ELLIPSE = 5
MOST_NAMED = 20
"""Elements that are named where none are chosen: the most frequent ones."""
_PALE = "#dcdcdc"
_GROUPS = (  # rings of hue and lightness, neighbours in the table unlike each other
    *("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#222255", "#EE7733"),
    *("#009988", "#882255", "#999933", "#0077BB", "#CC3311", "#DDAA33", "#332288", "#117733"),
    *("#EE3377", "#661100", "#777777"),
)


def group_of(atomic_number: int) -> int:
    """Group of the periodic table, 1 to 18; 19 stands for the f block (La to Yb, Ac to No)."""
    column, row = table_place(atomic_number)
    return 19 if row > 7 else int(column) + 1


def group_name(group: int) -> str:
    """How a legend names a group."""
    return "f block" if group == 19 else str(group)


def confidence_ellipse(
    points: Float[np.ndarray, "n 2"], sigmas: float = SIGMAS
) -> tuple[np.ndarray, float, float, float]:
    """The ellipse of so many standard deviations of a normal distribution with these moments.

    Its axes are the eigenvectors of the covariance, whose off-diagonal element is Pearson's
    correlation coefficient times both standard deviations.

    Args:
        points: at least two.
        sigmas: half-axes in standard deviations along them.

    Returns:
        Centre (2,), full width along the first axis, full height, and the first axis's angle in
        degrees.
    """
    variance, axes = np.linalg.eigh(np.cov(points.T))
    minor, major = 2 * sigmas * np.sqrt(np.maximum(variance, 0))
    angle = float(np.degrees(np.arctan2(axes[1, 1], axes[0, 1])))
    return points.mean(axis=0), float(major), float(minor), angle


def named_elements(element: Int[np.ndarray, " n"], chosen: Sequence[str] | None) -> list[int]:
    """Atomic numbers that panel (d) names: those chosen, or the most frequent ones."""
    numbers, count = np.unique(element, return_counts=True)
    if chosen is not None:
        return [atomic_numbers[symbol] for symbol in chosen if atomic_numbers[symbol] in numbers]
    enough = count >= FEWEST_FOR_ELLIPSE
    numbers, count = numbers[enough], count[enough]
    return [int(z) for z in numbers[np.argsort(-count, kind="stable")][:MOST_NAMED]]


@styled
def feature_map(
    points: Float[np.ndarray, "n 2"],
    atoms: AtomFeatures,
    axis_names: tuple[str, str],
    *,
    colours: Mapping[str, str] | None = None,
    elements: Sequence[str] | None = None,
) -> Figure:
    """The four panels of Fig. 8.

    Args:
        points: place of each atom in the map.
        atoms: which atoms they are.
        axis_names: what the two axes are.
        colours: colour of each subset, from `subset_colours`.
        elements: symbols that panel (d) names; the most frequent where left out.
    """
    figure, axes = new_figure(2, 2, height=8.1, width=WIDTH, sharex=True, sharey=True)
    element = atoms.element
    size = float(np.clip(2.5e4 / max(len(points), 1) / 4, 2.0, 14.0))
    order = np.argsort(np.argsort(atoms.atom * 7919 % 1009, kind="stable"), kind="stable")
    _by_subset(axes[0], points, atoms, order, size, colours or subset_colours(atoms.subsets))
    _by_element(axes[1], points, element, order, size)
    _by_group(axes[2], points, element, order, size)
    margin = 0.05 * (np.ptp(points, axis=0) + 1e-9)
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    axes[0].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    _by_name(axes[3], points, element, order, size, named_elements(element, elements))
    for panel, title in zip(
        axes,
        ("(a) subset", "(b) element", "(c) other than H, C, N, O: group", "(d) element, 1.5 σ"),
        strict=True,
    ):
        panel.set_title(title)
        panel.grid(visible=False)
    for panel in axes[2:]:
        panel.set_xlabel(axis_names[0])
    for panel in axes[::2]:
        panel.set_ylabel(axis_names[1])
    figure.draw_without_rendering()
    return figure


def map_rows(
    atoms: AtomFeatures, projections: Mapping[str, Float[np.ndarray, "n 2"]]
) -> list[dict[str, Any]]:
    """The data of `feature_map`: a row per atom, with its place in every projection."""
    rows = []
    for k, number in enumerate(atoms.element.tolist()):
        structure = atoms.structures[atoms.structure[k]]
        error = float(atoms.energy_error[k])
        rows.append(
            {
                "subset": atoms.subsets[atoms.subset[k]],
                "structure": structure.id or structure.origin,
                "atom": int(atoms.atom[k]),
                "element": chemical_symbols[number],
                "group": group_name(group_of(number)),
                "energy_error_mev_per_atom": "" if np.isnan(error) else f"{error:.6g}",
                **{
                    f"{name}_{axis + 1}": f"{points[k, axis]:.6g}"
                    for name, points in projections.items()
                    for axis in range(2)
                },
            }
        )
    return rows


def _scatter(axes: Axes, points: np.ndarray, colours: Any, size: float, **style: Any) -> None:
    keywords = {"linewidths": 0.0, "alpha": 0.75, "rasterized": True} | style
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colours, **keywords)


def _legend(axes: Axes, entries: Sequence[tuple[str, Any]], columns: int, title: str = "") -> None:
    """Colours and what they stand for, below the panel."""
    handles = [
        Line2D([], [], linestyle="none", marker="o", color=colour, markeredgecolor="#8a8a8a",
               markeredgewidth=0.4, markersize=5)
        for _, colour in entries
    ]  # fmt: skip
    axes.legend(
        handles,
        [name for name, _ in entries],
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.02 if not axes.get_subplotspec().is_last_row() else -0.14),  # type: ignore[union-attr]
        ncols=columns,
        fontsize=7,
        title=title or None,
        title_fontsize=7,
        handletextpad=0.1,
        columnspacing=0.8,
        borderaxespad=0.2,
    )


def _by_subset(
    axes: Axes,
    points: np.ndarray,
    atoms: AtomFeatures,
    order: np.ndarray,
    size: float,
    colours: Mapping[str, str],
) -> None:
    shades = np.array([colours[name] for name in atoms.subsets])
    _scatter(axes, points[order], shades[atoms.subset][order], size)
    longest = max(len(name) for name in atoms.subsets)
    _legend(axes, [(n, colours[n]) for n in atoms.subsets], 2 if longest > 12 else 3)


def _by_element(
    axes: Axes, points: np.ndarray, element: np.ndarray, order: np.ndarray, size: float
) -> None:
    # Hydrogen is white in Jmol's colours: a thin rim makes it visible on white.
    _scatter(axes, points[order], jmol_colors[element[order]], size, alpha=0.9,
             linewidths=0.25, edgecolors="#9a9a9a")  # fmt: skip
    numbers, count = np.unique(element, return_counts=True)
    common = np.sort(numbers[np.argsort(-count, kind="stable")][:18])
    _legend(axes, [(chemical_symbols[z], jmol_colors[z]) for z in common], 6)


def _by_group(
    axes: Axes, points: np.ndarray, element: np.ndarray, order: np.ndarray, size: float
) -> None:
    organic = np.isin(element, ORGANIC)
    _scatter(axes, points[organic], _PALE, size, alpha=0.4)
    others = order[~organic[order]]
    if len(others) == 0:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, color=FAINT, ha="center")
        return
    group = np.array([group_of(int(z)) for z in element])
    _scatter(axes, points[others], np.array(_GROUPS)[group[others] - 1], size * 1.3)
    present = np.unique(group[others]).tolist()
    entries = [(group_name(g), _GROUPS[g - 1]) for g in present]
    _legend(axes, [*entries, ("H, C, N, O", _PALE)], 5)


def _by_name(
    axes: Axes,
    points: np.ndarray,
    element: np.ndarray,
    order: np.ndarray,
    size: float,
    named: Sequence[int],
) -> None:
    _scatter(axes, points[order], jmol_colors[element[order]], size, alpha=0.45,
             linewidths=0.25, edgecolors="#9a9a9a")  # fmt: skip
    anchors = []
    for number in named:
        own = points[element == number]
        anchors.append(own.mean(axis=0))
        if len(own) >= FEWEST_FOR_ELLIPSE:
            centre, width, height, angle = confidence_ellipse(own)
            shade = np.clip(jmol_colors[number] * 0.6, 0, 1)
            axes.add_patch(
                Ellipse((centre[0], centre[1]), width, height, angle=angle, fill=False,
                        edgecolor=tuple(shade), linestyle="--", linewidth=0.8)
            )  # fmt: skip
    _write_names(axes, np.array(anchors).reshape(-1, 2), [chemical_symbols[z] for z in named])


def _write_names(axes: Axes, anchors: np.ndarray, names: Sequence[str]) -> None:
    """Names at their anchors, moved apart where they would overlap and then tied by a line."""
    if not names:
        return
    limits = np.array([axes.get_xlim(), axes.get_ylim()])
    span = limits[:, 1] - limits[:, 0]
    wanted = (anchors - limits[:, 0]) / span
    places = apart(wanted, np.array([0.062, 0.052]))
    for name, anchor, want, place in zip(names, anchors, wanted, places, strict=True):
        moved = np.abs(place - want).max() > 0.02
        axes.annotate(
            name,
            xy=(anchor[0], anchor[1]),
            xytext=(place[0], place[1]),
            textcoords="axes fraction",
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            color=INK,
            zorder=6,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
            arrowprops=(
                {"arrowstyle": "-", "color": INK, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
                if moved
                else None
            ),
        )


def apart(
    places: Float[np.ndarray, "n 2"], box: Float[np.ndarray, " 2"], rounds: int = 400
) -> Float[np.ndarray, "n 2"]:
    """Push boxes of one size apart until no two overlap, or the rounds are over.

    Two that overlap are moved by half the overlap each, along the direction in which it is smaller;
    all stay within the unit square.

    Args:
        places: centres of the boxes.
        box: width and height.
        rounds: at most.
    """
    result = places.astype(float).copy()
    for _ in range(rounds):
        moved = False
        for i in range(len(result)):
            for j in range(i + 1, len(result)):
                between = result[j] - result[i]
                overlap = box - np.abs(between)
                if (overlap <= 1e-9).any():
                    continue
                axis = int(np.argmin(overlap / box))
                step = 0.51 * overlap[axis] * (1.0 if between[axis] >= 0 else -1.0)
                result[i, axis] -= step
                result[j, axis] += step
                moved = True
        result = np.clip(result, box / 2, 1 - box / 2)
        if not moved:
            break
    return result
