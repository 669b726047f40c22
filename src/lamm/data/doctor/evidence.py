"""Measured evidence on units: bonds, stiffness, and how stress follows compression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamm.data.doctor.distances import Surroundings, neighbours, surroundings
from lamm.data.doctor.energies import spread
from lamm.data.doctor.survey import Survey
from lamm.structure import Structure

_CUTOFFS = (0.4, 1.2, 4.0, 12.0, 36.0, 110.0, 330.0)
"""Å; tried until most atoms have a neighbour, so that any unit of length costs about the same."""
_PROBED = 40
_SAMPLED = 1500
_LEAST_OF_A_PAIR = 8
"""Bonds of a pair of elements before their usual length is taken."""
_STRETCH = 0.15
"""Share of the usual length within which the force is about linear in the stretch."""


def stiffness_of_bonds(length: float) -> float:
    """Typical force constant, eV/Å², of a bond of a length in Å.

    Between 40 for C-H at 1.1 Å and 2 for metals at 2.7 Å; a power law through both, which the sound
    sets that we know follow within a factor of 2.5.
    """
    return float(60.0 / length**3.5)


@dataclass(frozen=True)
class LocalEvidence:
    """What distances and forces of structures one by one tell about units."""

    bond: float | None
    """Median over atoms of the nearest distance over the sum of the covalent radii."""
    num_bonds: int
    stiffness: float | None
    """Median force constant over the typical one; positive where stretched bonds pull."""
    pulling: float
    """Share of the bonds whose kind pulls when stretched."""
    correlation: float
    """Between push and compression, over all kinds."""
    num_kinds: int
    stress_rank: float | None
    """Rank correlation of tr(stress) with how long a structure's bonds are."""
    stress_slope: float | None
    """Of tr(stress)/3 against the logarithm of the bonds' length, eV/Å³; three bulk moduli."""
    num_stresses: int


def local_evidence(survey: Survey) -> LocalEvidence:
    """Look at the bonds of a sample of a store."""
    step = max(1, len(survey.sample) // _SAMPLED)
    sample = [one for one in survey.sample[::step] if _sound(one)]
    cutoff = _useful_cutoff(sample)
    if cutoff is None:
        return LocalEvidence(None, 0, None, 0.0, 0.0, 0, None, None, 0)
    found = [surroundings(one, cutoff) for one in sample]
    bond = np.concatenate([each.bond for each in found])
    kinds, usual, measured = _by_kind(found, sample)
    stiffness, weights, correlations = measured
    rank, slope, count = _stress(found, sample, dict(zip(kinds, usual, strict=True)))
    total = float(weights.sum())
    return LocalEvidence(
        bond=float(np.median(bond)),
        num_bonds=len(bond),
        stiffness=_weighted_median(stiffness, weights) if total else None,
        pulling=float(weights[stiffness > 0].sum()) / total if total else 0.0,
        correlation=float(np.average(correlations, weights=weights)) if total else 0.0,
        num_kinds=len(stiffness),
        stress_rank=rank,
        stress_slope=slope,
        num_stresses=count,
    )


def _sound(one: Structure) -> bool:
    numbers = [one.positions, one.cell, *([] if one.forces is None else [one.forces])]
    return one.num_atoms > 0 and all(bool(np.isfinite(array).all()) for array in numbers)


def _useful_cutoff(sample: list[Structure]) -> float | None:
    several = [one for one in sample if one.num_atoms > 1][:: max(1, len(sample) // _PROBED)]
    atoms = sum(one.num_atoms for one in several)
    for cutoff in _CUTOFFS:
        if not several:
            return None
        with_neighbour = sum(len(np.unique(neighbours(one, cutoff).centre)) for one in several)
        if with_neighbour > 0.9 * atoms:
            return cutoff
    return None


def _by_kind(
    found: list[Surroundings], sample: list[Structure]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Per pair of elements: usual length; (3, kinds) relative stiffness, weight, correlation."""
    pair = np.concatenate([each.pair for each in found])
    distance = np.concatenate([each.distance for each in found])
    push = np.concatenate([each.push for each in found])
    labelled = np.concatenate(
        [
            np.full(len(each.bond), one.forces is not None)
            for each, one in zip(found, sample, strict=True)
        ]
    )
    kinds, usual, measured = [], [], []
    for kind in np.unique(pair):
        chosen = pair == kind
        if chosen.sum() < _LEAST_OF_A_PAIR:
            continue
        length = float(np.median(distance[chosen]))
        kinds.append(kind)
        usual.append(length)
        near = chosen & labelled & (np.abs(distance - length) < _STRETCH * length)
        if near.sum() < _LEAST_OF_A_PAIR:
            continue
        stretch, along = distance[near] - distance[near].mean(), push[near] - push[near].mean()
        squares = float(stretch @ stretch)
        if squares < 1e-6 * length**2 * near.sum():
            continue  # all of one length: nothing is stretched
        slope = -float(stretch @ along) / squares
        norm = np.sqrt(squares * float(along @ along)) + 1e-30
        correlation = -float(stretch @ along) / norm
        measured.append((slope / stiffness_of_bonds(length), float(near.sum()), correlation))
    columns = np.array(measured, dtype=np.float64).reshape(-1, 3).T
    return np.array(kinds, dtype=np.int64), np.array(usual), columns


def _stress(
    found: list[Surroundings], sample: list[Structure], usual: dict[int, float]
) -> tuple[float | None, float | None, int]:
    """Rank correlation and slope of tr(stress)/3 against the logarithm of the bonds' length."""
    from scipy.stats import spearmanr

    kinds = np.array(list(usual), dtype=np.int64)
    stretch, trace = [], []
    for each, one in zip(found, sample, strict=True):
        known = np.isin(each.pair, kinds)
        if one.stress is None or not known.any():
            continue
        lengths = np.array([usual[int(kind)] for kind in each.pair[known]])
        stretch.append(float(np.mean(np.log(each.distance[known] / lengths))))
        trace.append(float(one.stress[:3].sum()) / 3)
    if len(trace) < 2 * _LEAST_OF_A_PAIR or not np.ptp(trace) or not np.ptp(stretch):
        return None, None, len(trace)
    rank = float(spearmanr(stretch, trace).statistic)
    x, y = np.array(stretch), np.array(trace)
    slope = float(np.sign(rank)) * spread(y) / max(spread(x), 1e-9)
    return (rank, slope, len(trace)) if np.isfinite(rank) else (None, None, len(trace))


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values)
    place = np.searchsorted(np.cumsum(weights[order]), 0.5 * weights.sum())
    return float(values[order][min(int(place), len(values) - 1)])
