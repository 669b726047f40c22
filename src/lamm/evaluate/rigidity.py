r"""Last-layer prediction rigidity: the variance of a linear layer's output (Bigi et al. 2024).

An energy per atom is linear in the features :math:`\phi` that the last layer is given. With the
features of the training structures as the rows of :math:`\Phi`, the variance of a prediction is

.. math:: \sigma^2(\phi) = \alpha^2\, \phi^T (\Phi^T \Phi + \varsigma^2 1)^{-1} \phi,

that of Bayesian linear regression with noise :math:`\alpha` and prior width
:math:`\alpha / \varsigma`. Both are chosen on structures that weren't trained on.

The regularisation is that of largest likelihood, under Student's distribution instead of the normal
one, and the scale that for which 68.3% of the errors are below sigma: for normal errors the same,
but a single structure with an extreme error doesn't decide about both.

The same of each atom's features, over the atoms of the training structures, says how far its
surroundings are from theirs (local prediction rigidity, Chong et al. 2023), and its scale is
calibrated on the components of forces.

F. Bigi, S. Chong, M. Ceriotti, F. Grasselli, Mach. Learn.: Sci. Technol. 5, 045018 (2024).
S. Chong, F. Grasselli, C. Ben Mahmoud, J. D. Morrow, V. L. Deringer, M. Ceriotti, J. Chem. Theory
Comput. 19, 8020 (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfinv
from scipy.stats import norm, spearmanr

from lamm.errors import DataError

Array = NDArray[np.float64]

MIN_CALIBRATION = 10
"""Structures, or atoms, that a calibration needs at least."""
_EXPONENTS = np.arange(-13.0, 2.01, 0.25)
"""Of the regularisations that are tried, as powers of ten of the largest eigenvalue."""
_FREEDOM = 2
"""Of Student's distribution: tails heavier than normal, lighter than Cauchy's."""
_ITERATIONS = 40
_LEVELS = np.linspace(0, 1, 101)[1:-1]


NORMAL_WITHIN = (float(2 * norm.cdf(1) - 1), float(2 * norm.cdf(2) - 1))
"""Shares of a normal distribution within one and two standard deviations."""


class FeatureGram:
    r"""The sum :math:`\Phi^T \Phi` over training structures, in one pass and O(F²) memory."""

    def __init__(self, num_features: int) -> None:
        self.matrix: Array = np.zeros((num_features, num_features))
        self.count = 0

    def add(self, features: Array) -> None:
        """Add structures: (structures, F)."""
        features = np.asarray(features, dtype=np.float64)
        self.matrix += features.T @ features
        self.count += len(features)


@dataclass(frozen=True)
class Rigidity:
    """A calibrated variance of predictions."""

    factor: Array
    r"""(F, F) in the unit of the errors: :math:`\sigma = |\phi^T \mathrm{factor}|`."""
    scale: float
    r""":math:`\alpha`, in the unit of the errors."""
    regularisation: float
    r""":math:`\varsigma^2`, in the unit of the features squared."""

    def sigma(self, features: Array) -> Array:
        """Standard deviation (structures,) of the predictions with features (structures, F)."""
        projected = np.asarray(features, dtype=np.float64) @ self.factor
        deviation: Array = np.linalg.norm(projected, axis=-1)
        return deviation


def fit_rigidity(gram: Array, features: Array, errors: Array) -> Rigidity:
    r"""Choose regularisation and scale by the errors of structures that weren't trained on.

    With :math:`s_i^2 = \phi_i^T (\Phi^T\Phi + \varsigma^2)^{-1} \phi_i` the regularisation makes
    errors likeliest that follow Student's distribution of width :math:`\propto s_i`, which has
    heavy tails. For normal errors that is the same :math:`\varsigma`, as only the shape of
    :math:`s` is compared. Then :math:`\alpha` is the 68.3% quantile of :math:`|e_i| / s_i`, so that
    sigma is what it is for normal errors.

    Args:
        gram: (F, F) of the training structures, as `FeatureGram` sums it.
        features: (structures, F) of structures that weren't trained on; or of atoms.
        errors: (structures,) of their predictions, in any unit; or (atoms, 3), components that
            share a deviation.

    Raises:
        DataError: fewer than `MIN_CALIBRATION` structures, errors or features that aren't finite,
            or hardly any error at all.
    """
    if len(errors) < MIN_CALIBRATION:
        raise DataError(
            f"{len(errors)} structures or atoms to calibrate the uncertainty on: expected at least "
            f"{MIN_CALIBRATION} that weren't trained on. Hold more out for validation."
        )
    if not (np.isfinite(gram).all() and np.isfinite(features).all() and np.isfinite(errors).all()):
        raise DataError("predictions or features are not finite numbers: this model is broken.")
    size = np.abs(errors).reshape(len(errors), -1)
    if np.quantile(size, NORMAL_WITHIN[0]) == 0:
        raise DataError(
            "most predictions are exact: there is no error to calibrate on. "
            "Use labels of another method than the model's own predictions."
        )
    values, vectors = np.linalg.eigh(gram)
    values = values.clip(min=0)
    squares = np.square(features @ vectors)  # (structures, F)
    costs, ratios = [], []
    regularisations = values[-1] * 10.0**_EXPONENTS
    for regularisation in regularisations:
        deviation = np.sqrt(squares @ (1 / (values + regularisation)))
        ratios.append(size / deviation[:, None])
        costs.append(np.log(deviation).mean() + _student_cost(ratios[-1]))
    best = int(np.argmin(costs))
    scale = float(np.quantile(ratios[best], NORMAL_WITHIN[0]))
    factor = scale * vectors / np.sqrt(values + regularisations[best])
    return Rigidity(factor, scale, float(regularisations[best]))


def _student_cost(ratios: Array) -> float:
    """Mean negative log-likelihood of ratios at the likeliest width.

    A constant is left out. The width is found by expectation maximisation.
    """
    squares = np.square(ratios)
    width = np.quantile(squares, NORMAL_WITHIN[0])
    for _ in range(_ITERATIONS):
        weights = (_FREEDOM + 1) / (_FREEDOM + squares / width)
        width = (weights * squares).mean()
    tail = np.log1p(squares / (_FREEDOM * width)).mean()
    return float(0.5 * np.log(width) + 0.5 * (_FREEDOM + 1) * tail)


class Calibration(NamedTuple):
    """How well standard deviations tell the size of errors."""

    size: int
    """Structures, or atoms."""
    spearman: float
    """Rank correlation of the absolute error (of an atom's: their root mean square) with the
    standard deviation."""
    miscalibration_area: float
    """Area between `observed` and `expected` shares: 0 is perfect, 0.5 the worst there is."""
    within_one_sigma: float
    """Share of errors below the standard deviation; 0.683 for a normal distribution."""
    within_two_sigma: float
    """Likewise for twice the standard deviation; 0.954."""
    expected: Array
    """Shares of errors that should lie within an interval, if they were normal."""
    observed: Array
    """Shares that do."""

    def summary(self, of: str = "structures") -> dict[str, float | int]:
        """All but the curves, as JSON can hold them; `size` by the name of what is counted."""
        numbers = self._asdict()
        kept = [key for key in self._fields if key not in ("size", "expected", "observed")]
        return {of: self.size, **{key: numbers[key] for key in kept}}


def calibration(errors: Array, sigma: Array) -> Calibration:
    """Compare errors with their standard deviations, in one unit.

    The Spearman correlation is NaN where all errors or all deviations are equal.

    Args:
        errors: (structures,), or (atoms, 3) whose components share a deviation.
        sigma: (structures,) or (atoms,).
    """
    parts = np.abs(errors).reshape(len(errors), -1)
    size = np.sqrt(np.square(parts).mean(axis=1))
    ratio = (parts / np.maximum(sigma, np.finfo(np.float64).tiny)[:, None]).reshape(-1)
    bounds = np.sqrt(2) * erfinv(_LEVELS)
    ordered = np.sort(ratio)
    observed = np.searchsorted(ordered, bounds, side="right") / max(len(ratio), 1)
    expected = np.array([0.0, *_LEVELS, 1.0])
    observed = np.array([0.0, *observed, 1.0])
    varied = len(size) > 1 and np.ptp(size) > 0 and np.ptp(sigma) > 0
    spearman = float(spearmanr(size, sigma).statistic) if varied else float("nan")
    return Calibration(
        len(errors),
        spearman,
        float(np.trapezoid(np.abs(observed - expected), expected)),
        float((ratio <= 1).mean()),
        float((ratio <= 2).mean()),
        expected,
        observed,
    )
