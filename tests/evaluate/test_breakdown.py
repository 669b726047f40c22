"""Errors by element and size, medians and cosines, against numbers worked out by hand."""

import numpy as np
import pytest

from lamm.evaluate.breakdown import (
    Comparison,
    errors_by_element,
    errors_by_size,
    force_errors,
    mean_cosine,
    overall_errors,
)
from lamm.evaluate.error_figures import (
    breakdown_rows,
    distribution_rows,
    error_breakdown,
    error_distributions,
)
from lamm.evaluate.parity import Parity


@pytest.fixture
def comparison() -> Comparison:
    """A molecule of H and O without energy, and one of 12 H whose every error is known."""
    number = np.array([1, 8] + [1] * 12)
    error = np.zeros((14, 3))
    error[0] = (0.003, 0.004, 0)
    error[1] = (0, 0, 0.012)
    label = np.tile([1.0, 0, 0], (14, 1))
    return Comparison(
        num_atoms=np.array([2, 12]),
        energy_row=np.array([1]),
        energy_label=np.array([-3.0]),
        energy_error=np.array([-0.002]),
        atom_row=np.array([0, 0] + [1] * 12),
        element=number.astype(np.uint8),
        force_label=label.astype(np.float32),
        force_error=error.astype(np.float32),
        force_sigma=np.zeros(0, np.float32),
        stress_row=np.array([0]),
        stress_label=np.zeros((1, 6)),
        stress_error=np.array([[0.001, -0.001, 0, 0, 0, 0.004]]),
    )


def test_elements_have_their_own_errors_the_most_frequent_first(comparison: Comparison) -> None:
    hydrogen, oxygen = errors_by_element(comparison)
    assert [(row["element"], row["atoms"]) for row in (hydrogen, oxygen)] == [("H", 13), ("O", 1)]
    assert hydrogen["forces_mae_mev_per_ang"] == pytest.approx(7 / 39)
    assert hydrogen["forces_median_mev_per_ang"] == 0
    assert hydrogen["force_norm_mae_mev_per_ang"] == pytest.approx(5 / 13)
    assert oxygen["force_norm_rmse_mev_per_ang"] == pytest.approx(12)


def test_sizes_have_their_own_errors_and_empty_classes_are_left_out(comparison: Comparison) -> None:
    small, large = errors_by_size(comparison)
    assert (small["atoms_per_structure"], large["atoms_per_structure"]) == ("1–10", "11–20")
    assert "energy_mae_mev_per_atom" not in small
    assert large["energy_median_mev_per_atom"] == pytest.approx(2)
    assert small["stress_mae_mev_per_ang3"] == pytest.approx(1)
    assert small["stress_median_mev_per_ang3"] == pytest.approx(0.5)
    assert small["forces_rmse_mev_per_ang"] == pytest.approx(np.sqrt((9 + 16 + 144) / 6))
    assert errors_by_size(comparison, [(1, None)])[0]["structures"] == 2


def test_the_magnitude_error_sees_lengths_alone() -> None:
    turned = force_errors(np.array([[1.0, 0, 0]]), np.array([[-1.0, 1.0, 0]]))
    assert turned["force_magnitude_mae_mev_per_ang"] == pytest.approx(0, abs=1e-9)
    assert turned["force_norm_mae_mev_per_ang"] == pytest.approx(1000 * np.sqrt(2))
    assert turned["force_cosine"] == pytest.approx(0, abs=1e-12)


def test_a_cosine_leaves_out_labels_without_a_direction_and_counts_a_zero_prediction() -> None:
    label = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 5e-4], [0, 0, 3]])
    predicted = np.array([[1.0, 0, 0], [0, -4, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert mean_cosine(label, predicted) == (pytest.approx((1 - 1 + 0) / 3), 3)
    assert mean_cosine(label[2:4], predicted[2:4]) == (None, 0)
    none = force_errors(np.zeros((2, 3)), np.ones((2, 3)))
    assert "force_cosine" not in none
    assert none["force_cosine_atoms"] == 0


def test_nothing_is_said_of_what_has_no_label(comparison: Comparison) -> None:
    nothing = Comparison(
        **{
            name: values[:0] if name != "num_atoms" else values
            for name, values in vars(comparison).items()
        }
    )
    assert overall_errors(nothing) == {}
    assert errors_by_element(nothing) == []
    assert errors_by_size(nothing)[0] == {"atoms_per_structure": "1–10", "structures": 1}


def test_the_figures_hold_what_their_data_say(comparison: Comparison) -> None:
    by_element, by_size = errors_by_element(comparison), errors_by_size(comparison)
    figure = error_breakdown(by_element, by_size)
    assert [axes.get_title("left") for axes in figure.axes] == [
        "Forces by element",
        "Energy by size",
        "Forces by size",
    ]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [row["forces_mae_mev_per_ang"] for row in by_element]
    rows = breakdown_rows(by_element, by_size)
    assert [row["name"] for row in rows] == ["H", "O", "1–10", "11–20"]
    assert rows[0]["structures"] is None


def test_every_error_is_in_the_distribution_even_of_many_sizes() -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(size=500)
    panel = Parity("Energy", "eV/atom", label, label + 10.0 ** rng.uniform(-12, 3, 500))
    exact = Parity("Forces", "eV/Å", label, label)
    rows = distribution_rows([panel, exact])
    for quantity in ("energy", "forces"):
        shares = [row["share"] for row in rows if row["quantity"] == quantity]
        assert sum(shares) == pytest.approx(1)
    assert len(error_distributions([panel, exact]).axes) == 2
