"""Figs. 2 and 4 and Table 2 of a joint data set: what the files say."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import gaussian_kde

from lamm.data.overview import Overview, SubsetOverview, make_overview
from lamm.errors import ConfigError
from lamm.evaluate.dataset_figures import (
    FILES,
    shown_subsets,
    write_dataset_figures,
)
from lamm.evaluate.elements import element_heatmap
from lamm.evaluate.sizes import MOST_SAMPLED, size_distribution, size_histograms, size_rows


def overview(**tasks: str) -> Overview:
    """Subsets by name and task, of hydrogen and one element of their own."""
    own = ("C", "Au", "U", "Fe", "O")
    rows = [
        SubsetOverview(
            name, "", task, "PBE", True, True, ("energy",), 5.0, ("H", own[k]), 10, 10 + k, 0
        )
        for k, (name, task) in enumerate(tasks.items())
    ]
    return make_overview(rows, 2.0)


PAPER_LIKE = {"oc20": "S2EF-Total", "qm7x": "S2EF-Total", "oc20_is2re": "IS2RE"}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_relaxed_subsets_are_left_out_of_the_figures_as_in_the_paper() -> None:
    table = overview(**PAPER_LIKE, oc22_is2re="IS2RE-Total")
    assert shown_subsets(table) == ("oc20", "qm7x")
    assert len(shown_subsets(table, everything=True)) == 4
    assert shown_subsets(overview(oc20_is2re="IS2RE")) == ("oc20_is2re",)  # there is nothing else


@pytest.mark.parametrize("everything", [False, True])
def test_figures_and_table_are_written_with_their_data(tmp_path: Path, everything: bool) -> None:
    table = overview(**PAPER_LIKE)
    sizes = {"oc20": np.arange(20, 90), "qm7x": np.full(30, 17), "oc20_is2re": np.arange(20, 90)}
    paths = write_dataset_figures(table, sizes, tmp_path / "new", "Test", everything=everything)
    assert tuple(path.name for path in paths) == FILES
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(FILES)
    hydrogen = read_csv(tmp_path / "new/fig2.csv")[0]
    assert hydrogen["symbol"] == "H"
    assert hydrogen["subsets"] == ("3" if everything else "2")
    assert ("oc20_is2re" in hydrogen) is everything
    drawn = {line["subset"] for line in read_csv(tmp_path / "new/fig4.csv")}
    assert ("oc20_is2re" in drawn) is everything
    assert [line["name"] for line in read_csv(tmp_path / "new/table2.csv")] == [*sizes, "Total"]
    answer = json.loads((tmp_path / "new/table2.json").read_text(encoding="utf-8"))
    assert len(answer["subsets"]) == 3
    page = (tmp_path / "new/index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert ("Left out, as in the paper: oc20_is2re" in page) is not everything


def test_a_subset_keeps_its_colour_when_another_is_left_out(tmp_path: Path) -> None:
    table = overview(relaxed="IS2RE", other="S2EF-Total")
    sizes = {"relaxed": [3, 4], "other": [5, 6]}
    for everything in (False, True):
        folder = tmp_path / str(everything)
        write_dataset_figures(table, sizes, folder, "T", everything=everything)
        assert "#d55e00" in (folder / "fig4.svg").read_text().lower()  # the palette's second


class TestDistribution:
    def test_its_peak_and_height_are_those_of_another_library(self) -> None:
        sizes = np.rint(np.random.default_rng(0).normal(73, 20, 20_000)).clip(2).astype(int)
        ours, theirs = size_distribution(sizes), gaussian_kde(sizes)
        inside = (ours.num_atoms > 40) & (ours.num_atoms < 120)
        expected = theirs(ours.num_atoms[inside])
        assert np.abs(ours.values[inside] - expected).max() < 0.06 * expected.max()
        assert abs(ours.peak - 73) < 5

    def test_it_integrates_to_one(self) -> None:
        sizes = np.random.default_rng(1).integers(3, 300, 5000)
        one = size_distribution(sizes)
        assert np.trapezoid(one.values, one.num_atoms) == pytest.approx(1, abs=0.02)

    def test_one_size_is_one_line_and_no_density(self) -> None:
        one = size_distribution(np.full(1000, 83))
        assert not one.is_density
        assert (one.num_atoms.tolist(), one.values.tolist(), one.peak) == ([83.0], [1.0], 83.0)

    def test_a_few_sizes_are_shares(self) -> None:
        one = size_distribution([3, 3, 3, 192])
        assert one.values.tolist() == [0.75, 0.25]
        assert one.relative_width is None

    def test_a_narrow_distribution_does_not_fall_apart_into_whole_numbers(self) -> None:
        one = size_distribution(np.random.default_rng(2).integers(10, 30, 50_000))
        middle = one.values[(one.num_atoms > 12) & (one.num_atoms < 27)]
        assert middle.std() < 0.05 * middle.mean()

    def test_of_many_structures_a_hundred_thousand_are_sampled(self) -> None:
        sizes = np.random.default_rng(3).integers(5, 100, 3 * MOST_SAMPLED)
        one, again, other = (size_distribution(sizes, seed=seed) for seed in (0, 0, 1))
        assert one.num_sampled == MOST_SAMPLED
        assert np.array_equal(one.values, again.values)
        assert not np.array_equal(one.values, other.values)
        assert size_distribution(sizes[:500]).num_sampled == 500

    def test_no_structure_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="no structure"):
            size_distribution([])


def test_rows_mark_one_peak_per_subset() -> None:
    rows = size_rows({"a": np.arange(5, 50), "b": [4, 4, 7]})
    assert sum(row["is_peak"] for row in rows) == 2
    assert [row["num_atoms"] for row in rows if row["subset"] == "b"] == [4.0, 7.0]
    assert rows[-1]["quantity"] == "share of structures"


@pytest.mark.parametrize("count", [1, 2, 10, 16])
def test_text_and_markers_stay_in_their_places_for_any_number_of_subsets(count: int) -> None:
    names = [f"subset_with_a_long_name_{k}" for k in range(count)]
    figure = element_heatmap({name: ["H", "Og"] for name in names})
    (axes,) = figure.axes
    spots = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines]
    assert len(set(spots)) == 2 * count
    hydrogen = [(x, y) for x, y in spots if x < 1]
    assert all(0.06 < x < 0.94 and 0.37 < y < 0.94 for x, y in hydrogen)
    for x, y in hydrogen:  # a marker is about an eighth of a cell wide
        assert all(abs(x - a) > 0.12 or abs(y - b) > 0.12 for a, b in hydrogen if (a, b) != (x, y))
    figure.canvas.draw()
    box = axes.get_legend().get_window_extent().transformed(axes.transData.inverted())
    assert box.x1 < 12, "the legend reaches into aluminium"
    assert min(box.y0, box.y1) > -0.1
    drawn = size_histograms({name: np.arange(4, 40 + k) for k, name in enumerate(names)})
    assert len(drawn.axes[0].get_yticks()) == count
