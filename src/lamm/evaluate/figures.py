"""Figures of learning curves, sizes and parity: data in, `Figure` out.

======================  =========================================================================
`element_heatmap`       Fig. 2, elements of the subsets on the periodic table (`elements`)
`size_histograms`       Fig. 4, how many atoms the structures of each subset have (`sizes`)
`denoising_curves`      Fig. 7, both errors of the denoising task over the steps
`finetuning_curves`     Fig. 9, fine-tuning with and without pre-training
`pretraining_curves`    validation errors of every subset over the steps
`training_curves`       loss and learning rate; `speed_curves` throughput and memory
`parity_plot`           predictions against labels (`parity`)
======================  =========================================================================

Beside each figure stands a function that gives its data as rows, for `save_figure`'s CSV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lamm.errors import ConfigError
from lamm.evaluate.curves import LearningCurve, Series, moving_average
from lamm.evaluate.elements import element_heatmap, element_rows
from lamm.evaluate.parity import Parity, parity_plot, parity_rows
from lamm.evaluate.sizes import size_histograms, size_rows
from lamm.evaluate.style import (
    FAINT,
    INK,
    PALETTE,
    WIDTH,
    label_ends,
    log_axis,
    new_figure,
    plain_number,
    save_figure,
    step_axis,
    styled,
    subset_colours,
    subset_markers,
)

__all__ = [
    "Parity",
    "curve_rows",
    "denoising_curves",
    "denoising_rows",
    "element_heatmap",
    "element_rows",
    "finetuning_curves",
    "finetuning_rows",
    "parity_plot",
    "parity_rows",
    "pretraining_curves",
    "save_figure",
    "size_histograms",
    "size_rows",
    "speed_curves",
    "subset_colours",
    "training_curves",
]

_LETTERS_IN_A_ROW = 92
"""Of a legend above a figure of full width, with seven for each mark."""
_PANELS = (
    ("energy_mae_mev_per_atom", "Energy", "MAE (meV/atom)"),
    ("forces_mae_mev_per_ang", "Forces", "MAE (meV/Å)"),
    ("denoising_mae_fair_ang", "Denoising", "MAE (Å)"),
)


# ---- pre-training ------------------------------------------------------------------------------


@styled
def pretraining_curves(
    validation: Mapping[str, Mapping[str, Series]], colours: Mapping[str, str] | None = None
) -> Figure:
    """Validation errors of every subset over the steps, a panel per kind of label.

    Args:
        validation: per subset and key the curve, from `curves.validation_series`.
        colours: colour of each subset, from `subset_colours`.

    Raises:
        ConfigError: there is no curve at all.
    """
    chosen = colours or subset_colours(list(validation))
    markers = subset_markers(list(chosen))
    panels = [p for p in _PANELS if any(p[0] in errors for errors in validation.values())]
    if not panels:
        raise ConfigError("no validation errors to draw; the run hasn't validated yet.")
    height = 2.0
    figure, all_axes = new_figure(
        len(panels), height=0.45 + len(panels) * (height + 0.35), sharex=True
    )
    for axes, (key, title, unit) in zip(all_axes, panels, strict=True):
        ends = []
        for name, errors in validation.items():
            if key not in errors:
                continue
            steps, values = errors[key]
            axes.plot(
                steps,
                values,
                color=chosen[name],
                marker=markers[name],
                markevery=max(len(steps) // 8, 1),
                markeredgecolor="none",
                markersize=5.5,
            )
            ends.append((steps[-1], values[-1], name, chosen[name]))
        axes.set_title(title)
        axes.set_ylabel(f"validation {unit}")
        axes.margins(x=0.02)
        log_axis(axes, "y")
        label_ends(axes, ends, inches=height)
    step_axis(all_axes[-1])
    return figure


def curve_rows(validation: Mapping[str, Mapping[str, Series]]) -> list[dict[str, Any]]:
    """The data of `pretraining_curves`: subset, quantity, step and value."""
    return [
        {"subset": name, "quantity": key, "step": float(step), "value": float(value)}
        for name, errors in validation.items()
        for key, series in errors.items()
        for step, value in zip(*series, strict=True)
    ]


# ---- Fig. 7 -----------------------------------------------------------------------------------


@styled
def denoising_curves(
    runs: Mapping[str, Mapping[str, Series]], threshold: float | None = None
) -> Figure:
    """Errors of the denoising task over the steps, a colour per run (Fig. 7).

    Args:
        runs: per run its curves in Å: ``own`` against its own labels (dashed), ``fair`` against
            centred labels with the prediction's mean removed (solid). Either may be left out.
        threshold: an error in Å to draw a line at.
    """
    figure, (axes,) = new_figure(height=3.3)
    styles: dict[str, Any] = {"fair": "-", "own": (0, (4, 2))}
    labels = {"fair": "centred labels, mean removed (fair)", "own": "own labels"}
    kinds = [kind for kind in styles if any(kind in curves for curves in runs.values())]
    ends = []
    for (name, curves), colour in zip(runs.items(), _run_colours(len(runs)), strict=True):
        for kind in kinds:
            if kind in curves:
                axes.plot(*curves[kind], color=colour, linestyle=styles[kind])
        last = curves[next(kind for kind in kinds if kind in curves)]
        ends.append((last.steps[-1], last.values[-1], name, colour))
    if threshold is not None:
        _threshold_line(axes, threshold)
    handles = [
        Line2D([], [], color=INK, linestyle=styles[kind], label=labels[kind]) for kind in kinds
    ]
    axes.legend(handles=handles, loc="upper right", handlelength=2.6)
    axes.set_ylabel("validation MAE per component (Å)")
    axes.margins(x=0.02)
    log_axis(axes, "y")
    label_ends(axes, ends, inches=2.7)
    step_axis(axes)
    return figure


def denoising_rows(runs: Mapping[str, Mapping[str, Series]]) -> list[dict[str, Any]]:
    """The data of `denoising_curves`."""
    return [
        {"run": name, "labels": kind, "step": float(step), "mae_ang": float(value)}
        for name, curves in runs.items()
        for kind, series in curves.items()
        for step, value in zip(*series, strict=True)
    ]


# ---- Fig. 9 -----------------------------------------------------------------------------------


@styled
def finetuning_curves(
    curves: Sequence[LearningCurve],
    energy_threshold: float | None = None,
    forces_threshold: float | None = None,
    window: int = 31,
    step_label: str = "fine-tuning step",
) -> Figure:
    """Fine-tuning runs beside each other: energy and forces, training and validation (Fig. 9).

    Where no training errors are known, a panel below shows the training loss instead.

    Args:
        curves: the runs, such as from scratch and pre-trained.
        energy_threshold: meV/atom to draw a line at.
        forces_threshold: meV/Å likewise.
        window: points of the moving average of training curves; fewer where they are short.
        step_label: what the steps are.
    """
    panels = [
        ("Energy", "MAE (meV/atom)", "energy", "train_energy", energy_threshold),
        ("Forces", "MAE (meV/Å)", "forces", "train_forces", forces_threshold),
    ]
    panels = [p for p in panels if any(getattr(curve, p[2]) is not None for curve in curves)]
    known = any(getattr(curve, p[3]) is not None for curve in curves for p in panels)
    if not known and any(curve.loss is not None for curve in curves):
        panels.append(("Training loss", "loss of Eq. (5), no unit", "", "loss", None))
    if not panels:
        raise ConfigError("no learning curve to draw; the runs have no metrics yet.")
    figure, all_axes = new_figure(1, len(panels), height=3.1, width=WIDTH)
    colours = _run_colours(len(curves))
    shown = [series for p in panels for c in curves if (series := getattr(c, p[3])) is not None]
    window = _fitting(window, shown)
    for axes, (title, unit, validation, training, threshold) in zip(all_axes, panels, strict=True):
        for curve, colour in zip(curves, colours, strict=True):
            faint = getattr(curve, training)
            if faint is not None:
                smooth = moving_average(faint.values, window)
                axes.plot(faint.steps, smooth, color=colour, alpha=0.45, linewidth=1.1)
            series = getattr(curve, validation) if validation else None
            if series is not None:
                axes.plot(
                    *series,
                    color=colour,
                    marker="o",
                    markersize=3.5,
                    markeredgecolor="white",
                    markeredgewidth=0.4,
                )
        if threshold is not None:
            _threshold_line(axes, threshold)
        axes.set(title=title, ylabel=unit)
        log_axis(axes, "y")
        step_axis(axes, step_label, ticks=6 - len(panels))
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=curve.label)
        for curve, colour in zip(curves, colours, strict=True)
    ]
    if shown:
        note = _smoothed(window)
        handles.append(Line2D([], [], color=FAINT, alpha=0.6, linewidth=1.1, label=note))
    letters = sum(len(str(handle.get_label())) + 7 for handle in handles)
    rows = -(-letters // _LETTERS_IN_A_ROW)
    figure.legend(handles=handles, loc="outside upper left", ncols=-(-len(handles) // rows))
    return figure


def finetuning_rows(curves: Sequence[LearningCurve]) -> list[dict[str, Any]]:
    """The data of `finetuning_curves`, unsmoothed."""
    names = ("energy", "forces", "train_energy", "train_forces", "loss")
    return [
        {"run": curve.label, "curve": name, "step": float(step), "value": float(value)}
        for curve in curves
        for name in names
        if (series := getattr(curve, name)) is not None
        for step, value in zip(*series, strict=True)
    ]


def _fitting(window: int, curves: Sequence[Series]) -> int:
    """At most a tenth of the shortest curve: a mean over more would hide its course."""
    return max(min([window, *(len(curve.steps) // 10 for curve in curves)]), 1)


def _smoothed(window: int) -> str:
    return f"training, {window}-point mean" if window > 1 else "training"


def _threshold_line(axes: Axes, threshold: float) -> None:
    axes.axhline(threshold, color=FAINT, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.annotate(
        f"{threshold:g}",
        (1, threshold),
        xycoords=axes.get_yaxis_transform(),
        xytext=(-3, 2),
        textcoords="offset points",
        horizontalalignment="right",
        fontsize=7.5,
        color=FAINT,
    )


def _run_colours(count: int) -> list[str]:
    """Grey for the first of several runs, the baseline; then the palette's."""
    if count == 1:
        return [PALETTE[0]]
    return ["#777777", *(PALETTE[k % len(PALETTE)] for k in range(count - 1))]


# ---- one run's course --------------------------------------------------------------------------


@styled
def training_curves(
    loss: Series, validation_loss: Series, learning_rate: Series, window: int = 31
) -> Figure:
    """Training loss, as reported and smoothed, and validation loss; below, the learning rate."""
    figure, (top, bottom) = new_figure(
        2, height=4.0, sharex=True, gridspec_kw={"height_ratios": [3, 1.1]}
    )
    window = _fitting(window, [loss])
    if window > 1:
        top.plot(*loss, color=PALETTE[0], alpha=0.25, linewidth=0.9)
    smooth = moving_average(loss.values, window)
    top.plot(loss.steps, smooth, color=PALETTE[0], label=_smoothed(window))
    top.plot(*validation_loss, "o-", color=PALETTE[1], markersize=3.5, label="validation")
    top.legend(loc="upper right")
    top.set(title="Loss of Eq. (5)", ylabel="loss (no unit)")
    log_axis(top, "y")
    bottom.plot(*learning_rate, color=FAINT)
    bottom.set(title="Learning rate", ylim=(0, None))
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    step_axis(bottom)
    return figure


@styled
def speed_curves(series: Sequence[tuple[str, Series]]) -> Figure:
    """Throughput, waiting, memory and the like over the steps, a small panel each.

    Args:
        series: the title of each panel, with its unit, and its curve.
    """
    figure, all_axes = new_figure(len(series), height=0.5 + 1.15 * len(series), sharex=True)
    for axes, (title, curve) in zip(all_axes, series, strict=True):
        axes.plot(*curve, color=PALETTE[0], linewidth=1.2)
        axes.set_title(title)
        axes.set_ylim(0, None)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(plain_number)
    step_axis(all_axes[-1])
    return figure
