"""Table 2 and Figs. 2 and 4: the subsets, their elements and their sizes, beside the paper's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamm.data.joint import JointDataset
from lamm.data.overview import (
    LETTERS,
    Overview,
    SubsetOverview,
    joint_overview,
    short_count,
    subset_sizes,
    table_json,
)
from lamm.evaluate.dataset_figures import ELEMENTS_CAPTION, SIZES_CAPTION, shown_subsets
from lamm.evaluate.elements import element_heatmap, element_rows
from lamm.evaluate.sizes import size_distribution, size_histograms, size_rows
from lamm.evaluate.style import subset_colours
from lamm.reproduce.outcome import Outcome, Picture, Table
from lamm.reproduce.settings import DataExperiment, paper_values


def _paired(settings: DataExperiment, overview: Overview) -> list[tuple[SubsetOverview, Any]]:
    """Each subset with the row of the paper's Table 2 whose kind it is, or an empty one."""
    rows = paper_values("table2")["subsets"]
    return [
        (one, rows.get(settings.stands_in_for.get(one.name, ""), {})) for one in overview.subsets
    ]


def _named(settings: DataExperiment, name: str) -> str:
    other = settings.stands_in_for.get(name)
    return name if other is None else f"{name} (for {other})"


def compare_subsets(settings: DataExperiment) -> Outcome:
    """Table 2 of the joint data set, each row beside the paper's."""
    overview = joint_overview(settings.joint())
    total = paper_values("table2")["total"]
    pairs = _paired(settings, overview)
    kinds: list[tuple[Any, ...]] = [
        (
            _named(settings, one.name),
            ", ".join(LETTERS[label] for label in one.labels),
            paper.get("labels"),
            round(one.average_atoms),
            paper.get("average_atoms"),
            len(one.elements),
            paper.get("elements"),
        )
        for one, paper in pairs
    ]
    kinds.append(("Total", *[None] * 4, len(overview.elements), total["elements"]))
    counts: list[tuple[Any, ...]] = [
        (
            _named(settings, one.name),
            one.num_train,
            _count(paper, "samples"),
            one.num_sampled,
            _count(paper, "sampled"),
        )
        for one, paper in pairs
    ]
    ours = (overview.total("num_train"), overview.total("num_sampled"))
    theirs = (_count(total, "samples"), _count(total, "sampled"))
    counts.append(("Total", ours[0], theirs[0], ours[1], theirs[1]))
    tables = [
        Table(
            _here_and_paper("subset", "labels", "atoms", "elements"),
            kinds,
            "Each subset here beside the subset of the paper's Table 2 whose kind it is. Labels: E "
            "energy, F forces, N pseudo-forces of the denoising task. Atoms: mean per structure.",
        ),
        Table(
            _here_and_paper("subset", "samples", "samples w/ TS"),
            counts,
            "Training structures, and uses per epoch with temperature sampling (TS), "
            f"T = {overview.temperature:g}.",
        ),
    ]
    return Outcome({"table2": table_json(overview)}, tables)


def _here_and_paper(first: str, *heads: str) -> list[str]:
    return [first, *(f"{head}, {whose}" for head in heads for whose in ("here", "paper"))]


def _count(paper: dict[str, Any], key: str) -> str | None:
    """A count as the paper writes it."""
    return short_count(round(paper[key])) if key in paper else None


def compare_elements(settings: DataExperiment) -> Outcome:
    """Fig. 2: which subsets have which elements."""
    overview = joint_overview(settings.joint())
    shown = shown_subsets(overview)
    elements = {one.name: one.elements for one in overview.subsets if one.name in shown}
    common = [e for e in overview.elements if all(e in those for those in elements.values())]
    molecular = {one.name for one in overview.subsets if not one.periodic} & set(elements)
    in_molecules = [
        e for e in overview.elements if molecular and all(e in elements[name] for name in molecular)
    ]
    paper = paper_values("fig2")
    rows: list[tuple[Any, ...]] = [
        (_named(settings, one.name), len(one.elements), row.get("elements"))
        for one, row in _paired(settings, overview)
        if one.name in shown
    ]
    rows += [
        ("all subsets", len(overview.elements), paper["elements"]),
        ("in every subset", _symbols(common), _symbols(paper["in_all_subsets"])),
        ("in every molecular subset", _symbols(in_molecules), _symbols(paper["in_all_subsets"])),
    ]
    return Outcome(
        {
            "elements": {name: list(those) for name, those in elements.items()},
            "in_all_subsets": common,
            "in_all_molecular_subsets": in_molecules,
        },
        [Table(("elements of", "here", "paper"), rows, "Number of elements, and common ones.")],
        [
            Picture(
                "fig2",
                element_heatmap(elements, subset_colours([one.name for one in overview.subsets])),
                element_rows(elements),
                ELEMENTS_CAPTION,
            )
        ],
    )


def _symbols(elements: list[str]) -> str:
    return ", ".join(elements) or "none"


def compare_sizes(settings: DataExperiment) -> Outcome:
    """Fig. 4: how many atoms the structures of each subset have."""
    joint = settings.joint()
    overview = joint_overview(joint)
    sizes = _sizes(joint, shown_subsets(overview))
    peaks = {
        name: float(size_distribution(numbers, seed=settings.seed).peak)
        for name, numbers in sizes.items()
    }
    rows = [
        (_named(settings, one.name), peaks[one.name], one.average_atoms, row.get("average_atoms"))
        for one, row in _paired(settings, overview)
        if one.name in sizes
    ]
    table = Table(
        ("subset", "atoms at the peak, here", "mean atoms, here", "mean atoms, paper"),
        rows,
        f"The paper's peaks range {paper_values('fig4')['peaks']} and can't be read off to a "
        "number; its means are those of Table 2.",
    )
    colours = subset_colours([one.name for one in overview.subsets])
    return Outcome(
        {"peaks": peaks, "mean_atoms": {name: float(n.mean()) for name, n in sizes.items()}},
        [table],
        [
            Picture(
                "fig4",
                size_histograms(sizes, colours, settings.seed),
                size_rows(sizes, settings.seed),
                SIZES_CAPTION,
            )
        ],
    )


def _sizes(joint: JointDataset, names: tuple[str, ...]) -> dict[str, NDArray[np.int32]]:
    return {one.name: subset_sizes(one) for one in joint.subsets if one.name in names}
