"""Variances of linear regression, where they are known in closed form."""

import numpy as np
import pytest

from lamm.errors import DataError
from lamm.evaluate.rigidity import FeatureGram, Rigidity, calibration, fit_rigidity

FEATURES = 12


def problem(
    rng: np.random.Generator, count: int, prior: float, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features with a wide spectrum, their Gram matrix, and the ridge weights' posterior factor."""
    widths = np.geomspace(1, 1e-2, FEATURES)
    features = rng.normal(size=(count, FEATURES)) * widths
    gram = features.T @ features
    covariance = noise**2 * np.linalg.inv(gram + (noise / prior) ** 2 * np.eye(FEATURES))
    return widths, gram, covariance


def test_the_sum_over_parts_is_that_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4))
    gram = FeatureGram(4)
    for part in np.array_split(rows, 7):
        gram.add(part)
    assert gram.count == 50
    np.testing.assert_allclose(gram.matrix, rows.T @ rows, rtol=1e-12)


def test_noise_and_prior_of_a_linear_regression_are_found_again() -> None:
    """Errors are drawn from the exact posterior; its variance is the answer (Bishop, Eq. 3.59)."""
    rng = np.random.default_rng(1)
    prior, noise = 3.0, 0.4
    widths, gram, covariance = problem(rng, 40, prior, noise)
    held_out = rng.normal(size=(20_000, FEATURES)) * widths
    exact = np.sqrt(np.einsum("nf,fg,ng->n", held_out, covariance, held_out))
    errors = exact * rng.normal(size=len(exact))
    found = fit_rigidity(gram, held_out, errors)
    assert found.scale == pytest.approx(noise, rel=0.03)
    # The grid of regularisations has steps of 10^0.25.
    assert abs(np.log10(found.regularisation / (noise / prior) ** 2)) < 0.3
    np.testing.assert_allclose(found.sigma(held_out), exact, rtol=0.1)


def test_the_variance_of_a_trained_structure_is_its_leverage() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(30, FEATURES))
    values, vectors = np.linalg.eigh(rows.T @ rows)
    rigidity = Rigidity(vectors / np.sqrt(values), 1.0, 0.0)
    hat = rows @ np.linalg.solve(rows.T @ rows, rows.T)
    np.testing.assert_allclose(rigidity.sigma(rows) ** 2, np.diag(hat), rtol=1e-9)
    assert (rigidity.sigma(rows) ** 2).sum() == pytest.approx(FEATURES)  # the trace of the hat


def test_a_singular_gram_matrix_gives_more_variance_where_nothing_was_seen() -> None:
    rng = np.random.default_rng(3)
    seen = np.zeros((5, FEATURES))
    seen[:, :3] = rng.normal(size=(5, 3))
    held_out = rng.normal(size=(200, FEATURES))
    held_out[:100, 3:] = 0
    errors = np.where(np.arange(200) < 100, 0.01, 1.0) * rng.normal(size=200)
    sigma = fit_rigidity(seen.T @ seen, held_out, errors).sigma(held_out)
    assert np.isfinite(sigma).all()
    assert sigma[100:].min() > 10 * np.median(sigma[:100])


def test_another_unit_of_the_errors_changes_nothing_else() -> None:
    rng = np.random.default_rng(4)
    _, gram, _ = problem(rng, 40, 1.0, 0.1)
    held_out, errors = rng.normal(size=(50, FEATURES)), rng.normal(size=50)
    in_ev, in_mev = (fit_rigidity(gram, held_out, factor * errors) for factor in (1, 1000))
    assert in_mev.regularisation == in_ev.regularisation
    np.testing.assert_allclose(in_mev.sigma(held_out), 1000 * in_ev.sigma(held_out), rtol=1e-10)


def test_one_extreme_error_does_not_decide() -> None:
    rng = np.random.default_rng(6)
    widths, gram, covariance = problem(rng, 40, 1.0, 0.1)
    held_out = rng.normal(size=(200, FEATURES)) * widths
    exact = np.sqrt(np.einsum("nf,fg,ng->n", held_out, covariance, held_out))
    errors = exact * rng.normal(size=200)
    before = fit_rigidity(gram, held_out, errors)
    errors[7] = 50.0  # several hundred sigma
    after = fit_rigidity(gram, held_out, errors)
    assert exact[7] < 0.2
    change = after.sigma(held_out) / before.sigma(held_out)
    assert 1 / 2 < change.min() < change.max() < 2
    assert calibration(errors, after.sigma(held_out)).within_one_sigma == pytest.approx(
        0.683, abs=0.01
    )


def test_components_that_share_a_deviation_are_as_many_errors_of_their_own() -> None:
    rng = np.random.default_rng(8)
    widths, gram, _ = problem(rng, 40, 1.0, 0.1)
    held_out = rng.normal(size=(50, FEATURES)) * widths
    errors = rng.normal(size=(50, 3))
    together = fit_rigidity(gram, held_out, errors)
    apart = fit_rigidity(gram, np.repeat(held_out, 3, axis=0), errors.reshape(-1))
    np.testing.assert_allclose(together.factor, apart.factor, rtol=1e-9)
    sigma = together.sigma(held_out)
    found = calibration(errors, sigma)
    other = calibration(errors.reshape(-1), np.repeat(sigma, 3))
    assert found[2:5] == pytest.approx(other[2:5])
    assert (found.size, other.size) == (50, 150)


def test_what_cannot_be_calibrated_is_refused() -> None:
    gram, rows = np.eye(3), np.ones((20, 3))
    with pytest.raises(DataError, match="9 structures or atoms to calibrate"):
        fit_rigidity(gram, rows[:9], np.ones(9))
    with pytest.raises(DataError, match="most predictions are exact"):
        fit_rigidity(gram, rows, np.zeros(20))
    with pytest.raises(DataError, match="not finite"):
        fit_rigidity(gram, rows, np.full(20, np.nan))


def test_a_right_sigma_is_calibrated_and_a_wrong_one_is_not() -> None:
    rng = np.random.default_rng(5)
    sigma = 10.0 ** rng.uniform(-2, 1, 5000)
    errors = sigma * rng.normal(size=5000)
    right = calibration(errors, sigma)
    assert right.miscalibration_area < 0.02
    assert right.within_one_sigma == pytest.approx(0.683, abs=0.02)
    assert right.within_two_sigma == pytest.approx(0.954, abs=0.02)
    assert right.spearman > 0.7
    small, large = calibration(errors, sigma / 100), calibration(errors, 100 * sigma)
    assert min(small.miscalibration_area, large.miscalibration_area) > 0.4
    assert (small.spearman, large.spearman) == pytest.approx((right.spearman, right.spearman))
    assert abs(calibration(errors, rng.permutation(sigma)).spearman) < 0.05
    assert np.isnan(calibration(errors, np.ones(5000)).spearman)
    assert set(right.summary()) & {"expected", "observed"} == set()
