r"""Neighbouring configurations: two structures of the same atoms, a small step apart.

Between them the energy must change by the work of the forces, and of the stress where the cell
changes too:

.. math:: E_2 - E_1 \approx -\tfrac12 (F_1 + F_2) \cdot \Delta x
          + \tfrac12 (V_1 \sigma_1 + V_2 \sigma_2) : \varepsilon

whatever the chemistry, so that the slope of one side against the other is 1. A slope near the ratio
of two units, or -1, names the mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamm.data.columns import ENERGY, FORCES
from lamm.data.doctor.survey import Survey
from lamm.structure import Structure

MAX_PAIRS = 3000
"""Pairs that are looked at, each some 50 µs."""
MAX_STEP = 0.5
"""Å; the largest movement of an atom between neighbours, where bonds are of usual length."""
_USUAL_BOND = 0.93
SAME_CELL = 1e-5
"""Å; cells that differ by more have a strain between them."""
MAX_STRAIN = 0.06
"""Largest strain between neighbours: beyond it the trapezium no longer holds."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of neighbouring configurations."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    """Rows in the store."""
    energy: NDArray[np.float64]
    """Change of the energy, eV."""
    work: NDArray[np.float64]
    """What the forces promise, eV."""
    bend: NDArray[np.float64]
    """Half the difference between the works of both ends' forces: large where the step is long."""
    strain_work: NDArray[np.float64]
    """What the stress promises, eV; NaN without a stress or with the same cell."""
    strain_bend: NDArray[np.float64]


def neighbouring_pairs(survey: Survey, bond: float | None = None) -> Pairs:
    """Pairs of neighbouring configurations of a store with energies and forces.

    Args:
        survey: the store.
        bond: median nearest distance over the covalent radii, which says how long a step may be
            where lengths are in another unit than Å.
    """
    max_step = MAX_STEP * (bond or _USUAL_BOND) / _USUAL_BOND
    store, kept = survey.store, survey.kept
    labelled = (store.index.labels[kept.row] & (ENERGY | FORCES)) == (ENERGY | FORCES)
    rows = np.flatnonzero(labelled)
    candidates = np.vstack([_next_of_system(kept.order[rows], key) for key in _keys(survey, rows)])
    candidates = np.unique(kept.row[rows][np.sort(candidates, axis=1)], axis=0)
    if len(candidates) > MAX_PAIRS:
        chosen = np.linspace(0, len(candidates) - 1, MAX_PAIRS).astype(np.int64)
        candidates = candidates[chosen]
    found = []
    for one, other in candidates:
        compared = _compare(store[int(one)], store[int(other)], max_step)
        if compared is not None:
            found.append((one, other, *compared))
    columns = np.array(found, dtype=np.float64).reshape(-1, 7).T
    return Pairs(columns[0].astype(np.int64), columns[1].astype(np.int64), *columns[2:])


def _keys(survey: Survey, rows: NDArray[np.int64]) -> list[NDArray[np.generic]]:
    """By which structures of one system are put into an order, so that neighbours are alike."""
    return [survey.kept.row[rows], survey.kept.lengths[rows, 0], survey.kept.lengths[rows, 1]]


def _next_of_system(system: NDArray[np.uint64], key: NDArray[np.generic]) -> NDArray[np.int64]:
    """(n, 2) structures that follow each other when those of a system are ordered by `key`."""
    order = np.lexsort((key, system))
    same = system[order[1:]] == system[order[:-1]]
    return np.column_stack((order[:-1][same], order[1:][same]))


def _compare(
    one: Structure, other: Structure, max_step: float
) -> tuple[float, float, float, float, float] | None:
    """Energies, works and bends of a pair; None where it isn't one of neighbours."""
    assert one.energy is not None
    assert other.energy is not None
    before = np.asarray(one.positions, dtype=np.float64)
    after = np.asarray(other.positions, dtype=np.float64)
    forces = [np.asarray(each.forces, dtype=np.float64) for each in (one, other)]
    change = other.energy - one.energy
    if not all(np.isfinite(part).all() for part in (before, after, *forces)):
        return None  # such numbers are found elsewhere
    none = float("nan")
    if not one.pbc.any():
        turn = _turn(before, after)
        step = (after - after.mean(axis=0)) @ turn - (before - before.mean(axis=0))
        if np.abs(step).max() > max_step:
            return None
        forces[1] = forces[1] @ turn
        return change, *_work(forces, step), none, none
    if not one.pbc.all():
        same = np.abs(one.cell - other.cell).max() < SAME_CELL
        if not same or np.abs(after - before).max() > max_step:
            return None
        return change, *_work(forces, after - before), none, none
    strained = bool(np.abs(one.cell - other.cell).max() > SAME_CELL)
    gradient = np.linalg.solve(one.cell, other.cell) - np.eye(3)
    if np.abs(gradient).max() > MAX_STRAIN:
        return None
    fractional = after @ np.linalg.inv(other.cell) - before @ np.linalg.inv(one.cell)
    fractional -= np.rint(fractional)
    fractional -= fractional.mean(axis=0)
    step = fractional @ (0.5 * (one.cell + other.cell))
    if np.abs(step).max() > max_step:
        return None
    work, bend = _work(forces, step)
    if not strained:
        return change, work, bend, none, none
    if one.stress is None or other.stress is None:
        return None
    strain = _voigt(0.5 * (gradient + gradient.T))
    ends = [
        abs(np.linalg.det(each.cell)) * float(np.asarray(each.stress) @ strain)
        for each in (one, other)
    ]
    return change, work, bend, 0.5 * (ends[0] + ends[1]), 0.5 * (ends[1] - ends[0])


def _voigt(strain: NDArray[np.float64]) -> NDArray[np.float64]:
    """(6,) strain, so that the product with a stress counts both off-diagonal halves."""
    (xx, xy, xz), (_, yy, yz), (_, _, zz) = strain
    return np.array([xx, yy, zz, 2 * yz, 2 * xz, 2 * xy])


def _work(forces: list[NDArray[np.float64]], step: NDArray[np.float64]) -> tuple[float, float]:
    ends = [-float((each * step).sum()) for each in forces]
    return 0.5 * (ends[0] + ends[1]), 0.5 * (ends[1] - ends[0])


def _turn(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) proper rotation, from the right, that brings `after` closest to `before` (Kabsch)."""
    mixed = (after - after.mean(axis=0)).T @ (before - before.mean(axis=0))
    left, _, right = np.linalg.svd(mixed)
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right)) or 1.0])
    return np.asarray(left @ flip @ right)
