"""Reference energies from few structures of many elements, some of them broken or extreme.

Least squares over total energies, as pre-training fits references to millions of structures, lets
the largest structures and the farthest energies decide. Of a few hundred structures these are a
handful, and energies per atom of the others are then farther from what references say than they
need be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamm.data.references import Normalisation, composition_counts
from lamm.structure import Structure

HUBER, ROUNDS = 1.345, 12
"""Standard deviations beyond which an error counts by its length and not by its square (Huber 1964,
95 % efficient where errors are normal), and rounds of least squares with new weights."""
_DEVIATIONS = 1.4826
"""Standard deviation of a normal distribution over its median absolute value."""
_LEAST_ERROR = 1e-6
"""eV/atom or eV/Å; errors below it are rounding, whatever most of the others are."""


def robust_solution(
    design: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Coefficients (k,) of a linear fit in which large errors count by their length (Huber).

    Least squares again and again, each time with the weights that the last errors give.

    Args:
        design: (n, k).
        target: (n,).
    """
    weight: NDArray[np.float64] = np.ones(len(target))
    solution: NDArray[np.floating[Any]] = np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(design * root[:, None], target * root, rcond=1e-10)[0]
        error = np.abs(target - design @ solution)
        limit = max(HUBER * _DEVIATIONS * float(np.median(error)), _LEAST_ERROR)
        weight = limit / np.maximum(error, limit)
    return np.asarray(solution, dtype=np.float64)


def robust_references(
    counts: NDArray[np.float64], energy: NDArray[np.float64], size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(119,) fitted to energies per atom; zero for elements that aren't there.

    Args:
        counts: (n, 119) atoms of each element.
        energy: (n,) eV.
        size: (n,) atoms.
    """
    used = counts.any(axis=0)
    result = np.zeros(counts.shape[1])
    result[used] = robust_solution(counts[:, used] / size[:, None], energy / size)
    return result


def with_robust_references(
    normalisation: Normalisation, structures: Sequence[Structure]
) -> Normalisation:
    """The normalisation with reference energies that are fitted robustly, per atom.

    Args:
        normalisation: fitted by least squares, from which the fit starts.
        structures: training structures; those without an energy say nothing.
    """
    labelled = [one for one in structures if one.energy is not None]
    if not labelled:
        return normalisation
    counts = composition_counts(labelled)
    energy = np.array([one.energy for one in labelled], dtype=np.float64)
    rest = energy - counts @ normalisation.reference_energies  # small numbers before the fit
    change = robust_references(counts, rest, counts.sum(axis=1))
    return normalisation._replace(reference_energies=normalisation.reference_energies + change)
