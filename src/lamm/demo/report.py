"""The demonstration's report: one page with the paper's figures and tables, in miniature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lamm.config import to_yaml
from lamm.data.joint import JointDataset
from lamm.demo.config import DemoConfig
from lamm.demo.run import ENERGY, FAIR, FORCES, OWN
from lamm.evaluate import figures
from lamm.evaluate.curves import learning_curve, read_metrics, validation_series
from lamm.evaluate.page import Page
from lamm.evaluate.style import PALETTE, new_figure, step_axis, styled

SCRATCH, PRETRAINED = "from scratch", "pre-trained"


@styled
def relaxation_figure(relaxation: dict[str, Any]) -> Figure:
    """Energy and largest force along the relaxation, a panel each."""
    figure, (left, right) = new_figure(1, 2, height=2.6)
    energy = np.array(relaxation["energy_ev"])
    left.plot(energy - energy[0], color=PALETTE[0])
    left.set(title="Energy", ylabel="change (eV)")
    right.plot(relaxation["largest_force_ev_per_ang"], color=PALETTE[1])
    right.axhline(relaxation["fmax_ev_per_ang"], color="#777777", linewidth=0.9, linestyle=":")
    right.set(title="Largest force", ylabel="eV/Å", yscale="log")
    for axes in (left, right):
        step_axis(axes, "relaxation step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def write_report(
    config: DemoConfig,
    joint: JointDataset,
    downstream: JointDataset,
    folders: dict[str, Path],
    results: dict[str, Any],
    path: Path,
) -> None:
    """Write the page; its figures also go into ``figures/`` beside it, with their data as CSV.

    Args:
        config: what was run.
        joint: the pre-training data.
        downstream: the fine-tuning data.
        folders: run folder of each training.
        results: what ``results.json`` holds.
        path: of the page.
    """
    page = Page(
        "LaMM in miniature",
        f"One {config_name(config)} model, {len(joint.names)} data sets, "
        f"{results['seconds']:.0f} seconds: every number on this page comes from that run.",
    )
    comparison = results["downstream"]
    _key_numbers(page, comparison)
    _data_section(page, joint, downstream, results["subsets"], path.parent)
    if config.base is None:
        _pretraining_section(page, joint, folders, path.parent)
    else:
        page.section("Pre-training", f"The model was pre-trained before: {config.base}.")
    _finetuning_section(page, config, folders, comparison, path.parent)
    if results["denoising"] is not None:
        _denoising_section(page, folders, results["denoising"], path.parent)
    _relaxation_section(page, results["relaxation"])
    page.section("Provenance")
    page.details("Configuration of this demonstration", to_yaml(config))
    for name, folder in folders.items():
        if (folder / "environment.json").exists():
            text = (folder / "environment.json").read_text(encoding="utf-8")
            page.details(f"Environment of the run `{name}`", text)
    page.write(path)


def config_name(config: DemoConfig) -> str:
    """The model in words: encoder, channels, layers."""
    encoder = config.model.encoder
    return f"{encoder.name} ({encoder.channels} channels, {encoder.num_layers} layers)"


def _key_numbers(page: Page, comparison: dict[str, Any]) -> None:
    scratch, pretrained = comparison["scratch"], comparison["pretrained"]
    facts: list[tuple[str, Any, str]] = []
    for quantity, key, unit, kind in (
        ("Energy", ENERGY, "meV/atom", "energy"),
        ("Force", FORCES, "meV/Å", "forces"),
    ):
        label = f"{quantity} error, pre-trained ({unit})"
        facts.append((label, f"{pretrained[key]:.0f}", f"from scratch {scratch[key]:.0f}"))
        speedup = comparison["speedup"][kind]
        facts.append(
            (
                f"Speed-up, {kind}",
                "–" if speedup is None else f"{speedup:.1f}×",
                "fewer steps to the same validation error",
            )
        )
    page.facts(facts)


def _data_section(
    page: Page,
    joint: JointDataset,
    downstream: JointDataset,
    rows: list[dict[str, Any]],
    folder: Path,
) -> None:
    page.section(
        "Data",
        "The pre-training data are a miniature of the paper's joint data set: structures with "
        "energies and forces, with energies alone, and without labels (there the model learns to "
        "undo random displacements), each computed by a method of its own and each with an output "
        "of its own in the heads. With temperature sampling (T = 2) the largest subset is used "
        "once per epoch, the others more often.",
    )
    page.table(
        [
            "Subset",
            "Domain",
            "Task",
            "Method",
            "PBC",
            "Labels",
            "Atoms",
            "El.",
            "Size",
            "Per epoch",
        ],
        [
            [
                row["name"],
                row["domain"],
                row["task"],
                row["functional"].split(",")[0] + ("*" if row["is_dft"] is False else ""),
                row["periodic"],
                row["labels"],
                round(row["average_atoms"]),
                row["elements"],
                row["structures"],
                row["training_structures_with_sampling"],
            ]
            for row in rows
        ],
        "The subsets, as Table 2 of the paper has them. Labels: E energy, F forces, N "
        "pseudo-forces of the denoising task. Atoms: mean per structure. El.: elements. Per "
        "epoch: uses by temperature sampling. *: not DFT; the store's card says what. The "
        "downstream data are in none of the subsets.",
    )
    colours = figures.subset_colours([*joint.names, *downstream.names])
    subsets = [*joint.subsets, *downstream.subsets]
    elements = {subset.name: subset.store.card.elements for subset in subsets}
    _figure(
        page,
        figures.element_heatmap(elements, colours),
        figures.element_rows(elements),
        folder / "figures" / "elements",
        "Elements of the data sets (as Fig. 2): shade, how many have the element; markers, which.",
    )
    sizes = {subset.name: subset.store.index.num_atoms for subset in subsets}
    _figure(
        page,
        figures.size_histograms(sizes, colours),
        figures.size_rows(sizes),
        folder / "figures" / "sizes",
        "Number of atoms per structure (as Fig. 4).",
    )


def _pretraining_section(
    page: Page, joint: JointDataset, folders: dict[str, Path], folder: Path
) -> None:
    curves = validation_series(read_metrics(folders["pretrain"]))
    page.section(
        "Pre-training",
        "One model learns all subsets at once by the loss of Eq. (5), energies counted per atom. "
        "The curves are errors on each subset's validation structures, by the averaged weights.",
    )
    _figure(
        page,
        figures.pretraining_curves(curves, figures.subset_colours(joint.names)),
        figures.curve_rows(curves),
        folder / "figures" / "pretraining",
        "Validation errors of each subset during pre-training.",
    )


def _finetuning_section(
    page: Page,
    config: DemoConfig,
    folders: dict[str, Path],
    comparison: dict[str, Any],
    folder: Path,
) -> None:
    page.section(
        "Fine-tuning",
        "The same architecture is trained twice on a small data set that no subset contains: from "
        "random weights, and from the pre-trained encoder with new heads and refitted reference "
        "energies (Sec. 4.4). Everything else is the same: data, steps, learning rate, seed.",
    )
    name = comparison["name"]
    curves = [
        learning_curve(label, read_metrics(folders[run]), name)
        for label, run in ((SCRATCH, "scratch"), (PRETRAINED, "finetune"))
    ]
    thresholds = comparison["thresholds"]
    _figure(
        page,
        figures.finetuning_curves(
            curves, round(thresholds[ENERGY], 1), round(thresholds[FORCES], 1), window=5
        ),
        figures.finetuning_rows(curves),
        folder / "figures" / "finetuning",
        f"Fine-tuning on {name} (as Fig. 9). Dotted: the thresholds of the table below.",
    )
    scratch, pretrained = comparison["scratch"], comparison["pretrained"]
    speedup = comparison["speedup"]
    page.table(
        ["", SCRATCH, PRETRAINED, "ratio"],
        [
            [label, scratch[key], pretrained[key], scratch[key] / pretrained[key]]
            for label, key in (
                ("Energy MAE, test (meV/atom)", ENERGY),
                ("Energy RMSE, test (meV/atom)", "energy_rmse_mev_per_atom"),
                ("Forces MAE, test (meV/Å)", FORCES),
                ("Forces RMSE, test (meV/Å)", "forces_rmse_mev_per_ang"),
            )
        ]
        + [
            [
                f"Steps to {thresholds[key]:.3g} {unit}, validation",
                scratch["steps_to_threshold"][kind],
                pretrained["steps_to_threshold"][kind],
                speedup[kind],
            ]
            for kind, key, unit in (("energy", ENERGY, "meV/atom"), ("forces", FORCES, "meV/Å"))
        ],
        f"Fine-tuning of {config_name(config)}, as Table 3 has it. A threshold is the best "
        "validation error of training from scratch plus 5 %; steps between two validations are "
        f"interpolated. The errors are on {scratch['structures']} test structures.",
    )


def _denoising_section(
    page: Page, folders: dict[str, Path], denoising: dict[str, Any], folder: Path
) -> None:
    runs = {}
    for label, run in (("baseline", "denoising-baseline"), ("centred", "denoising-centred")):
        errors = validation_series(read_metrics(folders[run]))[denoising["subset"]]
        runs[label] = {"own": errors[OWN], "fair": errors[FAIR]}
    page.section(
        "Denoising",
        "A small model learns to undo random displacements, with the noise as it is drawn "
        "(baseline, Fig. 3a) and with its mean removed from every structure (centred, Fig. 3b). "
        "Each is judged twice: against its own labels, as Fig. 7 does, and by the fair definition, "
        "in which labels and predictions are centred first. The first also counts the translation "
        "of the baseline's labels, which no model that sees relative positions can predict.",
    )
    _figure(
        page,
        figures.denoising_curves(runs),
        figures.denoising_rows(runs),
        folder / "figures" / "denoising",
        f"Validation error of denoising on {denoising['subset']} (as Fig. 7).",
    )
    page.table(
        ["Error", "baseline (Å)", "centred (Å)", "Speed-up to the baseline's best error"],
        [
            [
                label,
                denoising[key]["baseline_ang"],
                denoising[key]["centred_ang"],
                denoising[key]["speedup"],
            ]
            for label, key in (("own labels", "own_labels"), ("fair", "fair"))
        ],
        "Lowest validation errors, one seed each.",
    )


def _relaxation_section(page: Page, relaxation: dict[str, Any]) -> None:
    steps = relaxation["steps"]
    how = (
        f"converged after {steps} steps"
        if relaxation["converged"]
        else f"had not converged after {steps} steps"
    )
    page.section(
        "Relaxation",
        f"The fine-tuned model relaxes {relaxation['formula']} (`{relaxation['id']}`), the "
        f"structure of the test split with the smallest forces, with FIRE. It {how} to a force of "
        f"{relaxation['largest_force_ev_per_ang'][-1]:.3f} eV/Å "
        f"(asked for: {relaxation['fmax_ev_per_ang']:g} eV/Å).",
    )
    page.figure(
        relaxation_figure(relaxation),
        "Energy and largest force along the relaxation.",
    )


def _figure(
    page: Page, figure: Figure, rows: list[dict[str, Any]], stem: Path, caption: str
) -> None:
    figures.save_figure(figure, stem, rows)
    page.figure(figure, caption)
