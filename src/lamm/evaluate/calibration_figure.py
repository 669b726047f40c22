"""How well standard deviations tell the size of errors: coverage, and error against sigma."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lamm.evaluate.rigidity import NORMAL_WITHIN, Array, Calibration
from lamm.evaluate.style import FAINT, PALETTE, log_axis, new_figure, styled

GROUPS = 10
"""Groups of equal size, by sigma, at most; each has ten errors or more where it can."""
MOST_POINTS = 5000
"""Errors that are drawn; of more, every so many."""


@styled
def calibration_figure(
    calibration: Calibration, errors: Array, sigma: Array, unit: str = "meV/atom"
) -> Figure:
    """Expected against observed shares of errors, and absolute errors against sigma.

    Args:
        calibration: of these errors.
        errors: (n,) of structures or components.
        sigma: (n,)
        unit: of both.
    """
    figure, (left, right) = new_figure(1, 2, height=3.5)
    expected, observed = calibration.expected, calibration.observed
    left.plot((0, 1), (0, 1), color=FAINT, linewidth=0.8)
    left.fill_between(expected, expected, observed, color=PALETTE[0], alpha=0.2, linewidth=0)
    left.plot(expected, observed, color=PALETTE[0])
    left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title="Coverage")
    left.set_xlabel("expected share of errors")
    left.set_ylabel("observed share")
    left.annotate(
        f"miscalibration area {calibration.miscalibration_area:.3f}",
        (0.97, 0.05),
        xycoords="axes fraction",
        ha="right",
        fontsize=8,
    )
    _error_against_sigma(right, calibration, errors, sigma, unit)
    return figure


def _error_against_sigma(
    axes: Axes, calibration: Calibration, errors: Array, sigma: Array, unit: str
) -> None:
    shown = (np.abs(errors) > 0) & (sigma > 0)
    shown &= np.arange(len(errors)) % max(len(errors) // MOST_POINTS, 1) == 0
    size = 10 if len(errors) < 500 else 4
    axes.scatter(
        sigma[shown], np.abs(errors[shown]), s=size, color=PALETTE[0], alpha=0.4, linewidths=0
    )
    groups = _groups(errors, sigma)
    axes.plot(groups[:, 0], groups[:, 1], "o", color=PALETTE[1], label="68% of a group are below")
    axes.set_title("Error against sigma")
    axes.set_xlabel(f"sigma ({unit})")
    axes.set_ylabel(f"absolute error ({unit})")
    if shown.any():
        ends = np.array([sigma[shown].min(), sigma[shown].max()])
        axes.plot(ends, ends, color=FAINT, linewidth=0.8, label="equal")
        log_axis(axes, "x")
        log_axis(axes, "y")
    axes.legend(
        loc="lower right",
        frameon=True,
        framealpha=0.85,
        edgecolor="none",
        title=f"Spearman {calibration.spearman:.2f}",
        title_fontsize=8,
    )


def _groups(errors: Array, sigma: Array) -> Array:
    """(groups, 2) of errors in order of sigma: its median, and what 68.3% of errors are below.

    Both are equal where sigma is right.
    """
    count = max(1, min(GROUPS, len(errors) // 10))
    parts = np.array_split(np.argsort(sigma, kind="stable"), count)
    share = NORMAL_WITHIN[0]
    return np.array(
        [[np.median(sigma[part]), np.quantile(np.abs(errors[part]), share)] for part in parts]
    )


def calibration_rows(
    calibration: Calibration, errors: Array, sigma: Array, unit: str = "mev_per_atom"
) -> list[dict[str, Any]]:
    """The data of `calibration_figure`; of very many errors the part that it shows."""
    some = slice(None, None, max(len(errors) // MOST_POINTS, 1))
    pairs = [
        ("coverage", calibration.expected, calibration.observed),
        ("groups", *_groups(errors, sigma).T),
        ("errors", sigma[some], np.abs(errors[some])),
    ]
    return [
        {"series": name, f"expected_or_sigma_{unit}": float(x), "observed_or_error": float(y)}
        for name, xs, ys in pairs
        for x, y in zip(xs, ys, strict=True)
    ]
