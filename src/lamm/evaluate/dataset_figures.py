"""Figs. 2 and 4 and Table 2 of any joint data set: files of each, and a page that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from numpy.typing import ArrayLike

from lamm.data.overview import (
    COLUMNS,
    Overview,
    markdown_table,
    table_cells,
    table_json,
    table_notes,
    table_rows,
)
from lamm.evaluate.elements import element_heatmap, element_rows
from lamm.evaluate.page import Page
from lamm.evaluate.sizes import FEW_SIZES, MOST_SAMPLED, size_histograms, size_rows
from lamm.evaluate.style import save_figure, subset_colours
from lamm.files import write_csv, write_json, write_text

FILES = (
    *(f"fig{number}.{suffix}" for number in (2, 4) for suffix in ("png", "svg", "csv")),
    *(f"table2.{suffix}" for suffix in ("md", "csv", "json")),
    "index.html",
)
"""What `write_dataset_figures` leaves in its folder."""
_HEADINGS = (*COLUMNS[:4], "PBC", "Labels", "Atoms", "El.", "Samples", "w/ TS")
"""Names of columns with which the table fits the page."""
RELAXED_TASKS = ("IS2RE", "IS2RE-Total")


def shown_subsets(overview: Overview, *, everything: bool = False) -> tuple[str, ...]:
    """Names of the subsets that Figs. 2 and 4 show.

    The paper leaves IS2RE and IS2RE-Total out of them, as their structures resemble those of the
    subset with forces (Sec. 3.1). Where nothing else is there, they are shown.

    Args:
        overview: all subsets.
        everything: show these, too.
    """
    names = tuple(one.name for one in overview.subsets)
    others = tuple(one.name for one in overview.subsets if one.task not in RELAXED_TASKS)
    return names if everything or not others else others


def write_dataset_figures(
    overview: Overview,
    sizes: Mapping[str, ArrayLike],
    folder: Path,
    title: str,
    *,
    everything: bool = False,
    seed: int = 0,
) -> list[Path]:
    """Write `FILES` to a folder: Fig. 2, Fig. 4, Table 2, and the page ``index.html`` of them all.

    Args:
        overview: Table 2; the elements of Fig. 2 are its own.
        sizes: numbers of atoms of each subset's structures, for Fig. 4.
        folder: where to; made where it isn't there.
        title: of the page.
        everything: also show IS2RE subsets in the figures.
        seed: of the structures that Fig. 4 samples.

    Returns:
        The paths, in the order of `FILES`.

    Raises:
        ConfigError: a subset has no structure, or an element that is none.
    """
    shown = shown_subsets(overview, everything=everything)
    # By the place among all subsets, so that a subset looks the same in every figure of a run.
    colours = subset_colours([one.name for one in overview.subsets])
    elements = {one.name: one.elements for one in overview.subsets if one.name in shown}
    sizes = {name: sizes[name] for name in shown}
    fig2 = element_heatmap(elements, colours)
    fig4 = size_histograms(sizes, colours, seed)
    paths = save_figure(fig2, folder / "fig2", element_rows(elements))
    paths += save_figure(fig4, folder / "fig4", size_rows(sizes, seed))
    paths += _write_table(overview, folder)
    page = Page(title, f"{len(overview.subsets)} subsets, {len(overview.elements)} elements")
    page.table(
        _HEADINGS,
        table_cells(overview),
        " ".join((TABLE_CAPTION, *table_notes(overview))),
    )
    left_out = [one.name for one in overview.subsets if one.name not in shown]
    remark = f" Left out, as in the paper: {', '.join(left_out)}." if left_out else ""
    page.figure(fig2, f"{ELEMENTS_CAPTION}{remark}")
    page.figure(fig4, f"{SIZES_CAPTION}{remark}")
    return [*paths, page.write(folder / "index.html")]


TABLE_CAPTION = (
    "The subsets, as Table 2 of the paper has them. PBC: periodic. Atoms: mean per structure. El.: "
    "elements."
)
ELEMENTS_CAPTION = (
    "Elements of the subsets (as Fig. 2 of the paper): the shade says how many subsets have an "
    "element, the markers which."
)
SIZES_CAPTION = (
    "Number of atoms per structure (as Fig. 4 of the paper): Gaussian kernel density of at most "
    f"{MOST_SAMPLED:,} structures of each subset, drawn at random; every curve is as high as the "
    f"others, and the point is at its maximum. A subset of at most {FEW_SIZES} different sizes has "
    "a line for each instead, as high as its share of the structures."
)


def _write_table(overview: Overview, folder: Path) -> list[Path]:
    paths = [folder / f"table2.{suffix}" for suffix in ("md", "csv", "json")]
    write_text(paths[0], markdown_table(overview))
    write_csv(paths[1], table_rows(overview))
    write_json(paths[2], table_json(overview))
    return paths
