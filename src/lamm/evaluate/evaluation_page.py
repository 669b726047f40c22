"""The files of an evaluation: results, tables of structures and atoms, figures, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lamm.evaluate.breakdown import MIN_FORCE, Comparison
from lamm.evaluate.calibration_figure import calibration_figure, calibration_rows
from lamm.evaluate.error_figures import (
    MOST_ELEMENTS,
    breakdown_rows,
    distribution_rows,
    error_breakdown,
    error_distributions,
)
from lamm.evaluate.evaluation import MAX_POINTS, Evaluation
from lamm.evaluate.figures import parity_plot, parity_rows, save_figure
from lamm.evaluate.page import Page
from lamm.evaluate.rigidity import NORMAL_WITHIN, Calibration
from lamm.evaluate.uncertainty import errors_and_sigma
from lamm.files import replaced_file, write_csv, write_json

FIGURES = ("parity", "distributions", "breakdown", "calibration", "calibration_forces")
FILES = (
    *("results.json", "structures.csv", "atoms.parquet", "report.html"),
    *(f"{stem}.{suffix}" for stem in FIGURES for suffix in ("png", "svg", "csv")),
)
"""All that `write_evaluation` may leave in its folder."""

NAMES = {
    "energy_mae_mev_per_atom": ("energy MAE", "meV/atom"),
    "energy_rmse_mev_per_atom": ("energy RMSE", "meV/atom"),
    "energy_median_mev_per_atom": ("energy median error", "meV/atom"),
    "forces_mae_mev_per_ang": ("forces MAE", "meV/Å"),
    "forces_rmse_mev_per_ang": ("forces RMSE", "meV/Å"),
    "forces_median_mev_per_ang": ("forces median error", "meV/Å"),
    "force_norm_mae_mev_per_ang": ("force vector MAE", "meV/Å"),
    "force_norm_rmse_mev_per_ang": ("force vector RMSE", "meV/Å"),
    "force_norm_median_mev_per_ang": ("force vector median error", "meV/Å"),
    "force_magnitude_mae_mev_per_ang": ("force magnitude MAE", "meV/Å"),
    "force_cosine": ("cosine of forces", ""),
    "stress_mae_mev_per_ang3": ("stress MAE", "meV/Å³"),
    "stress_rmse_mev_per_ang3": ("stress RMSE", "meV/Å³"),
    "stress_median_mev_per_ang3": ("stress median error", "meV/Å³"),
    "denoising_mae_own_ang": ("noise MAE, own labels", "Å"),
    "denoising_mae_fair_ang": ("noise MAE, fair", "Å"),
}
"""What each error is called, and its unit, in the order of a table."""
_FACTS = (
    "energy_mae_mev_per_atom",
    "forces_mae_mev_per_ang",
    "force_cosine",
    "stress_mae_mev_per_ang3",
    "denoising_mae_own_ang",
    "denoising_mae_fair_ang",
)
_SUMMARY = [key for key in NAMES if not key.startswith(("force_norm", "force_magnitude"))]
"""Errors in a table of several subsets."""
_ERRORS_OF_ONE = (
    ("energy_error_mev_per_atom", "Energy error (meV/atom)"),
    ("forces_mae_mev_per_ang", "Forces MAE (meV/Å)"),
    ("force_norm_largest_mev_per_ang", "Largest force vector error (meV/Å)"),
    ("force_cosine", "Cosine"),
    ("denoising_mae_own_ang", "Noise MAE (Å)"),
)
_NOISE_EXPLANATION = (
    "Each structure has the same noise in every evaluation. The error is the mean absolute one "
    "over the components of all atoms: against the labels as they are and (fair) with each "
    "structure's mean removed from label and prediction (Fig. 7)."
)
_UNCERTAINTY_EXPLANATION = (
    "Sigma is the standard deviation of an energy by the rigidity of the last layer, with the "
    "covariance of its features over the training structures; its scale lets 68.3% of the "
    "errors of held-out structures be below it. In `structures.csv` it is `energy_uncertainty_ev`."
)
_FORCES_UNCERTAINTY_EXPLANATION = (
    "Sigma is the standard deviation of the components of an atom's force: how far what the last "
    "layer is given of the atom lies from what it was given of the training atoms, scaled so that "
    "68.3% of the errors of held-out structures are below it. `atoms.parquet` has it for each "
    "atom, `structures.csv` the largest of each structure."
)
_EXPLANATION = (
    "Energies are compared per atom, forces by Cartesian component over all free atoms, stresses "
    "by component. The force vector error is the length of the difference, the magnitude error the "
    "difference of the lengths. A median far below the MAE means that a few structures rule the "
    "mean. The cosine is that of the angle between both forces, meant over the atoms whose label "
    f"is at least {1000 * MIN_FORCE:g} meV/Å, since a shorter one has no direction to speak of."
)


def error_table(errors: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Name, unit and value of each error that is there."""
    return [(*NAMES[key], errors[key]) for key in NAMES if key in errors]


def split_words(split: str) -> str:
    """How a page calls a split."""
    return "all structures" if split == "all" else f"{split} split"


def write_evaluation(to: Path, result: Mapping[str, Any], evaluation: Evaluation) -> None:
    """Results, tables, figures and page of one head on one set; each file whole or not there.

    Args:
        to: folder; it is made where it isn't there.
        result: ``checkpoint``, ``data``, ``head``, ``split`` and the errors, as JSON can hold them.
        evaluation: what was found.
    """
    write_json(to / "results.json", result)
    write_csv(to / "structures.csv", evaluation.rows)
    if len(evaluation.comparison.atom_row):
        _write_atoms(to / "atoms.parquet", evaluation.comparison)
    words = split_words(result["split"])
    errors = evaluation.errors
    page = Page(
        f"Evaluation of head '{result['head']}'",
        f"{result['checkpoint']} on {result['data']}, {words}",
    )
    facts = [(NAMES[key][0], errors[key], NAMES[key][1]) for key in _FACTS if key in errors]
    page.facts([("structures", errors["structures"], words), *facts])
    if evaluation.warning:
        page.text(f"Note: {evaluation.warning}")
    is_noise = "denoising_mae_own_ang" in errors
    page.section("Errors", _NOISE_EXPLANATION if is_noise else _EXPLANATION)
    page.table(
        ["Quantity", "Error", "Unit"],
        [(name, value, unit or "–") for name, unit, value in error_table(errors)],
        f"Errors over {errors['structures']:,} structures.",
    )
    if evaluation.is_finite:
        _figures(page, to, evaluation)
        if evaluation.calibration is not None:
            _energy_uncertainty(page, to, evaluation, evaluation.calibration)
        if evaluation.force_calibration is not None:
            _force_uncertainty(page, to, evaluation.comparison, evaluation.force_calibration)
    _worst(page, evaluation)
    page.write(to / "report.html")


def _write_atoms(path: Path, comparison: Comparison) -> None:
    """A row per atom with a force label: line of its structure in the table from 0, and forces."""
    predicted = comparison.force_label + comparison.force_error
    columns = {"structure": comparison.atom_row, "atomic_number": comparison.element}
    for k, axis in enumerate("xyz"):
        columns[f"force_label_{axis}"] = comparison.force_label[:, k]
    for k, axis in enumerate("xyz"):
        columns[f"force_{axis}"] = predicted[:, k]
    if len(comparison.force_sigma):
        columns["force_uncertainty"] = comparison.force_sigma
    table = pa.table({name: np.ascontiguousarray(values) for name, values in columns.items()})
    with replaced_file(path) as temporary:
        pq.write_table(table, temporary)


def _figures(page: Page, to: Path, evaluation: Evaluation) -> None:
    panels, by_element, by_size = evaluation.panels, evaluation.by_element, evaluation.by_size
    caption = "Predictions against labels."
    if evaluation.num_points > MAX_POINTS:
        caption += f" At most {MAX_POINTS:,} labels of each are drawn; the errors are over all."
    figure = parity_plot(panels)
    save_figure(figure, to / "parity", parity_rows(panels))
    page.figure(figure, caption)
    figure = error_distributions(panels)
    save_figure(figure, to / "distributions", distribution_rows(panels))
    page.figure(
        figure, "How the absolute errors are distributed; the first bin also has all smaller ones."
    )
    if not by_size:
        return
    page.section("By element and size")
    figure = error_breakdown(by_element, by_size)
    save_figure(figure, to / "breakdown", breakdown_rows(by_element, by_size))
    caption = "Mean (bars) and median (diamonds) of absolute errors; numbers of atoms by element, "
    caption += "and of structures by atoms in them, stand in brackets."
    if len(by_element) > MOST_ELEMENTS:
        caption += f" The {MOST_ELEMENTS} most frequent elements; `breakdown.csv` has all."
    page.figure(figure, caption)


def _energy_uncertainty(
    page: Page, to: Path, evaluation: Evaluation, calibration: Calibration
) -> None:
    """The section on how well energies' uncertainties tell their errors."""
    page.section("Uncertainty of energies", _UNCERTAINTY_EXPLANATION)
    _calibration_table(
        page,
        calibration,
        f"Errors per atom of {calibration.size:,} structures against their sigma.",
    )
    errors, sigma = errors_and_sigma(evaluation.rows)
    figure = calibration_figure(calibration, errors, sigma)
    save_figure(figure, to / "calibration", calibration_rows(calibration, errors, sigma))
    page.figure(figure, _CALIBRATION_CAPTION.format("structure"))


def _force_uncertainty(
    page: Page, to: Path, comparison: Comparison, calibration: Calibration
) -> None:
    """The section on how well the uncertainties of forces tell their errors."""
    page.section("Uncertainty of forces", _FORCES_UNCERTAINTY_EXPLANATION)
    _calibration_table(
        page,
        calibration,
        f"Errors of the force components of {calibration.size:,} atoms against their sigma; the "
        "correlation is that of the components' root mean square.",
    )
    errors = 1000 * comparison.force_error.astype(np.float64).reshape(-1)
    sigma = 1000 * np.repeat(comparison.force_sigma.astype(np.float64), 3)
    figure = calibration_figure(calibration, errors, sigma, "meV/Å")
    rows = calibration_rows(calibration, errors, sigma, "mev_per_ang")
    save_figure(figure, to / "calibration_forces", rows)
    page.figure(figure, _CALIBRATION_CAPTION.format("component"))


def _calibration_table(page: Page, calibration: Calibration, caption: str) -> None:
    page.table(
        ["Measure", "Found", "Perfect"],
        [
            ("Spearman correlation of error and sigma", calibration.spearman, "–"),
            ("miscalibration area", calibration.miscalibration_area, 0.0),
            ("share of errors within sigma", calibration.within_one_sigma, NORMAL_WITHIN[0]),
            ("share of errors within two sigma", calibration.within_two_sigma, NORMAL_WITHIN[1]),
        ],
        caption,
    )


_CALIBRATION_CAPTION = (
    "Left: share of errors within an interval, expected if they were normal and observed; the area "
    "between the curves is the miscalibration area. Right: error of each {} against its sigma, and "
    "what 68.3% of the errors are below, in groups of equal size; where sigma is right, that is "
    "the line."
)


def _worst(page: Page, evaluation: Evaluation) -> None:
    worst = evaluation.worst()
    if not worst:
        return
    columns = [(key, title) for key, title in _ERRORS_OF_ONE if worst[0].get(key) is not None]
    page.section("Largest errors", "All structures are in `structures.csv`.")
    page.table(
        ["Structure", "Formula", "Atoms", *(title for _, title in columns)],
        [
            (
                row["id"] or row["origin"] or "–",
                row["formula"],
                row["num_atoms"],
                *(row[key] for key, _ in columns),
            )
            for row in worst
        ],
        "The structures that are predicted worst.",
    )


def write_summary(to: Path, result: Mapping[str, Any]) -> None:
    """Results and a page of several sets, each of which has a folder of its name beside it.

    Args:
        to: folder.
        result: ``checkpoint`` and, for each set, ``subsets.NAME`` with ``head``, ``split`` and
            ``errors``.
    """
    write_json(to / "results.json", result)
    subsets = result["subsets"]
    page = Page("Evaluation by subset", str(result["checkpoint"]))
    for name, one in subsets.items():
        if one["unknown_elements"]:
            page.text(
                f"Note: {name} has elements that head '{one['head']}' wasn't trained on: "
                f"{', '.join(one['unknown_elements'])}."
            )
    page.section("Errors", "Each subset has its own page, `SUBSET/report.html`. " + _EXPLANATION)
    for title, keys in summary_columns(subsets):
        page.table(
            ["Subset", "Structures", *(_heading(key) for key in keys)],
            [
                (_subset(name, one), one["errors"]["structures"], *map(one["errors"].get, keys))
                for name, one in subsets.items()
                if any(key in one["errors"] for key in keys)
            ],
            f"{title} of each subset.",
        )
    page.write(to / "report.html")


def summary_columns(subsets: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Errors that any of the subsets has, in groups: title and keys."""
    present = {key for one in subsets.values() for key in one["errors"]}
    groups = []
    for title, start in (
        ("Energy errors", "energy"),
        ("Force errors", "force"),
        ("Stress errors", "stress"),
        ("Noise errors", "denoising"),
    ):
        keys = [key for key in _SUMMARY if key.startswith(start) and key in present]
        if keys:
            groups.append((title, keys))
    return groups


def _subset(name: str, one: Mapping[str, Any]) -> str:
    return name if one["head"] == name else f"{name} (head '{one['head']}')"


def _heading(key: str) -> str:
    name, unit = NAMES[key]
    return f"{name} ({unit})" if unit else name
