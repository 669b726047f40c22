import csv
from pathlib import Path

import numpy as np
import pytest
from ase.data import chemical_symbols
from matplotlib.figure import Figure

from lamm.errors import ConfigError
from lamm.evaluate.curves import LearningCurve, Series
from lamm.evaluate.elements import table_place
from lamm.evaluate.figures import (
    Parity,
    curve_rows,
    denoising_curves,
    denoising_rows,
    element_heatmap,
    element_rows,
    finetuning_curves,
    finetuning_rows,
    parity_plot,
    parity_rows,
    pretraining_curves,
    save_figure,
    size_histograms,
    size_rows,
    speed_curves,
    subset_colours,
    training_curves,
)
from lamm.evaluate.style import PALETTE, plain_number, spread

STEPS = np.arange(0, 100, 10)
CURVE = Series.of(STEPS, np.exp(-STEPS / 50))
VALIDATION = {
    "molecules": {"energy_mae_mev_per_atom": CURVE, "forces_mae_mev_per_ang": CURVE},
    "unlabelled": {"denoising_mae_fair_ang": CURVE},
}
NOISE = {"baseline": {"own": CURVE, "fair": CURVE}, "centred": {"fair": CURVE}}
RUNS = [
    LearningCurve("scratch", energy=CURVE, forces=CURVE, loss=CURVE),
    LearningCurve("pre-trained", energy=CURVE, train_energy=CURVE),
]
ELEMENTS = {"molecules": ["H", "C"], "crystals": ["C", "Fe", "U"]}
SIZES = {"molecules": [3, 4, 5, 5], "pairs": np.full(10, 2)}
PARITY = [
    Parity("Energy", "eV/atom", np.zeros(3), np.ones(3)),
    Parity("Forces", "eV/Å", np.linspace(-1, 1, 6000), np.linspace(-1, 1, 6000)),
]

FIGURES = {
    "elements": lambda: (element_heatmap(ELEMENTS), element_rows(ELEMENTS)),
    "sizes": lambda: (size_histograms(SIZES), size_rows(SIZES)),
    "pretraining": lambda: (pretraining_curves(VALIDATION), curve_rows(VALIDATION)),
    "denoising": lambda: (denoising_curves(NOISE, 0.5), denoising_rows(NOISE)),
    "finetuning": lambda: (finetuning_curves(RUNS, 0.4, 0.5), finetuning_rows(RUNS)),
    "parity": lambda: (parity_plot(PARITY), parity_rows(PARITY[:1])),
    "training": lambda: (training_curves(CURVE, CURVE, CURVE), curve_rows(VALIDATION)),
    "speed": lambda: (speed_curves([("atoms/s", CURVE)]), curve_rows(VALIDATION)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_saved_with_its_data_beside_it(name: str, tmp_path: Path) -> None:
    figure, rows = FIGURES[name]()
    assert isinstance(figure, Figure)
    png, svg, table = save_figure(figure, tmp_path / "new" / name, rows)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == len(rows) > 0
    assert sorted(path.suffix for path in png.parent.iterdir()) == [".csv", ".png", ".svg"]


def test_a_curve_of_one_point_or_none_can_be_drawn_or_says_so() -> None:
    one = {"a": {"energy_mae_mev_per_atom": Series.of([0], [3.0])}}
    assert isinstance(pretraining_curves(one), Figure)
    with pytest.raises(ConfigError, match="hasn't validated"):
        pretraining_curves({"a": {}})
    with pytest.raises(ConfigError, match="no learning curve"):
        finetuning_curves([LearningCurve("empty")])
    with pytest.raises(ConfigError, match="'empty'"):
        size_histograms({"empty": []})
    with pytest.raises(ConfigError, match="'Xx'"):
        element_heatmap({"a": ["Xx"]})


def test_a_subset_has_one_colour_whichever_figure_it_is_in() -> None:
    colours = subset_colours(["a", "b", "c"])
    assert len(set(colours.values())) == 3
    some = {"c": {"energy_mae_mev_per_atom": CURVE}}
    (axes,) = pretraining_curves(some, colours).axes
    assert axes.lines[0].get_color() == colours["c"] == PALETTE[2]


def test_the_periodic_table_has_a_place_for_each_element() -> None:
    places = [table_place(number) for number in range(1, 119)]
    assert len(set(places)) == 118
    column = {
        symbol: table_place(number)[0] for number, symbol in enumerate(chemical_symbols) if number
    }
    assert column["H"] == column["Li"] == column["Fr"] == 0
    assert column["He"] == column["Ne"] == column["Og"] == 17
    assert column["Fe"] == column["Ru"] == column["Os"] == 7
    assert column["C"] == column["Pb"] == 13
    assert column["Lu"] == column["Sc"] == 2
    assert table_place(57)[1] > 7  # La, below the table


def test_the_density_peaks_where_the_structures_are() -> None:
    rows = size_rows({"a": [20] * 50 + [200]})
    peak = max(rows, key=lambda row: row["value"])
    assert peak["num_atoms"] == pytest.approx(20, rel=0.05)


def test_labels_are_spread_without_overlap_and_in_order() -> None:
    wanted = [0.5, 0.51, 0.1, 0.52]
    places = spread(wanted, 0.1)
    order = np.argsort(wanted)
    assert (np.diff(np.array(places)[order]) >= 0.1 - 1e-12).all()
    assert places[2] == 0.1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (20000.0, "20,000"), (1e6, "10⁶"), (2e-5, "2·10⁻⁵")],
)
def test_tick_labels_are_plain_numbers(value: float, text: str) -> None:
    assert plain_number(value) == text
