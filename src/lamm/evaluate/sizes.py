"""Fig. 4: how many atoms the structures of each subset have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator
from numpy.typing import ArrayLike, NDArray

from lamm.errors import ConfigError
from lamm.evaluate.style import INK, log_axis, new_figure, styled, subset_colours, subset_markers

MOST_SAMPLED = 100_000
"""Structures that a density is estimated from at most, as in the paper."""
FEW_SIZES = 8
"""Up to this many different sizes are drawn one by one: between them is nothing to estimate."""
_LEAST_WIDTH = 0.6
"""Atoms; a narrower kernel would show that sizes are whole numbers, and no more."""
_LEAST_SHARE = 0.015
"""Of the size; narrower than that, a kernel could fall between two points of the grid."""
_GRID_STEP = 0.005
"""Decades between two points of the grid."""
_PEAK = 1.2
"""Height of a curve's maximum in rows: a little into the row above."""


@dataclass(frozen=True)
class SizeDistribution:
    """Sizes of one subset, as a density or size by size."""

    num_atoms: NDArray[np.float64]
    """(P,) where the values are."""
    values: NDArray[np.float64]
    """(P,) density per atom, or each size's share of the structures."""
    is_density: bool
    relative_width: float | None
    """Width of the kernel as a share of the size; None without a kernel."""
    num_sampled: int
    """Structures that it was estimated from."""

    @property
    def peak(self) -> float:
        """Number of atoms at the maximum."""
        return float(self.num_atoms[self.values.argmax()])

    @property
    def seen(self) -> slice:
        """The part that can be told from zero in a figure."""
        high = np.flatnonzero(self.values > 0.002 * self.values.max())
        return slice(int(high[0]), int(high[-1]) + 1)


def size_distribution(
    sizes: ArrayLike, most: int = MOST_SAMPLED, seed: int = 0
) -> SizeDistribution:
    r"""How the number of atoms is distributed over structures (Fig. 4).

    With n sampled structures of :math:`N_i` atoms the density at x atoms is

    .. math:: \frac{1}{n} \sum_i \mathcal{N}(x; N_i, \sigma_i), \qquad
        \sigma_i = \max(0.6, b N_i), \quad b = \max(0.015, n^{-1/5} s)

    where s is the standard deviation of :math:`\ln N_i` (Scott's rule on the logarithm), so that a
    curve is as smooth at ten atoms as at three hundred.

    # Paper: Gaussian kernels of a width that it doesn't state. Here: a width that grows with the
    # size, because the axis is logarithmic. A few different sizes are shares and no density.

    Args:
        sizes: numbers of atoms of a subset's structures.
        most: structures that are sampled at most, without replacement.
        seed: of the sampling.

    Raises:
        ConfigError: there is no structure.
    """
    numbers = np.asarray(sizes)
    if numbers.size == 0:
        raise ConfigError("there is no structure to show the size of.")
    tally = np.bincount(numbers)  # no sort: there may be a hundred million
    values = np.flatnonzero(tally)
    counts = tally[values]
    if numbers.size > most:
        # Drawing how many there are of each size is drawing structures, at no cost in memory.
        rng = np.random.default_rng(seed)
        counts = rng.multivariate_hypergeometric(counts, most, method="marginals")
        values, counts = values[counts > 0], counts[counts > 0]
    sampled = int(counts.sum())
    shares = counts / sampled
    if len(values) <= FEW_SIZES:
        return SizeDistribution(values.astype(np.float64), shares, False, None, sampled)
    logs = np.log(values)
    spread = float(np.sqrt(shares @ (logs - shares @ logs) ** 2))
    relative = max(sampled**-0.2 * spread, _LEAST_SHARE)
    width = np.maximum(relative * values, _LEAST_WIDTH)
    low, high = max(values[0] - 4 * width[0], values[0] / 2), values[-1] + 4 * width[-1]
    steps = int(np.log10(high / low) / _GRID_STEP) + 2
    grid = np.geomspace(low, high, steps)
    kernel = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return SizeDistribution(grid, kernel @ shares, True, relative, sampled)


@styled
def size_histograms(
    sizes: Mapping[str, ArrayLike], colours: Mapping[str, str] | None = None, seed: int = 0
) -> Figure:
    """Density of the number of atoms per structure, a row per subset, marked at its peak (Fig. 4).

    Every curve is as high as the others; a subset of few sizes has a line for each, as high as its
    share. The peak has the subset's marker and colour of Fig. 2.

    # Paper: all densities on one axis. Here: a row each, on a logarithmic axis, because ten
    # overlapping curves can't be told apart.

    Args:
        sizes: numbers of atoms of each subset's structures.
        colours: colour of each subset, from `subset_colours`.
        seed: of the sampling.

    Raises:
        ConfigError: a subset has no structure.
    """
    chosen = colours or subset_colours(list(sizes))
    markers = subset_markers(list(chosen))
    distributions = _distributions(sizes, seed)
    rows = len(distributions)
    figure, (axes,) = new_figure(height=0.85 + 0.42 * max(rows, 2))
    axes.set_xscale("log")
    for row, (name, one) in enumerate(reversed(distributions.items())):
        _draw(axes, row, 3 + 4 * (rows - row), one, chosen[name], markers[name])
    axes.set_yticks(range(rows), list(reversed(distributions)))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(xlabel="atoms per structure", ylim=(-0.06, rows + 0.62))
    low = min(float(one.num_atoms[one.seen][0]) for one in distributions.values())
    high = max(float(one.num_atoms[one.seen][-1]) for one in distributions.values())
    room = max(1.06, 1.5 * (low / high) ** 0.5)  # a single size isn't alone on its axis
    axes.set_xlim(low / room, high * room)
    log_axis(axes, "x")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5), numticks=20))
    axes.grid(visible=False, axis="y")
    return figure


def _draw(
    axes: Axes, row: int, order: int, one: SizeDistribution, colour: str, marker: str
) -> None:
    """One row, from its base line up; rows further down lie over those above them."""
    height = _PEAK * one.values / one.values.max()
    axes.axhline(row, color=colour, linewidth=0.8, alpha=0.55, zorder=order)
    if one.is_density:
        x, y = one.num_atoms[one.seen], row + height[one.seen]
        axes.fill_between(x, row, y, color=colour, alpha=0.25, linewidth=0, zorder=order)
        axes.plot(x, y, color=colour, linewidth=1.3, zorder=order + 1)
    else:
        axes.vlines(one.num_atoms, row, row + height, color=colour, linewidth=1.8, zorder=order + 1)
    axes.plot(
        one.peak,
        row + _PEAK,
        marker=marker,
        color=colour,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=order + 2,
    )
    axes.annotate(
        f"{one.peak:.0f}",
        (one.peak, row + _PEAK),
        xytext=(5.5, 1),
        textcoords="offset points",
        fontsize=7.5,
        color=INK,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=order + 3,
    )


def size_rows(sizes: Mapping[str, ArrayLike], seed: int = 0) -> list[dict[str, Any]]:
    """The data of `size_histograms`: the points of every curve, and the width of its kernel."""
    return [
        {
            "subset": name,
            "num_atoms": round(float(x), 4),
            "value": float(f"{value:.6g}"),
            "quantity": "density per atom" if one.is_density else "share of structures",
            "is_peak": int(k == one.values.argmax()),
            "relative_kernel_width": one.relative_width,
            "least_kernel_width_atoms": _LEAST_WIDTH if one.is_density else None,
            "structures_sampled": one.num_sampled,
        }
        for name, one in _distributions(sizes, seed).items()
        for k, (x, value) in enumerate(zip(one.num_atoms, one.values, strict=True))
    ]


def _distributions(sizes: Mapping[str, ArrayLike], seed: int) -> dict[str, SizeDistribution]:
    found = {}
    for name, numbers in sizes.items():
        try:
            found[name] = size_distribution(numbers, seed=seed)
        except ConfigError as error:
            raise ConfigError(f"subset '{name}': {error}") from None
    return found
