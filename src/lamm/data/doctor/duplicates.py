"""Copies: the same structure twice, also turned, shifted, wrapped or with its atoms reordered.

Structures of one composition are sorted by a fingerprint, so that copies are next to each other;
what lies within the tolerance is then compared atom by atom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamm.data.doctor.findings import Finding, Rows, Severity
from lamm.data.doctor.survey import Survey
from lamm.structure import Structure

TOLERANCE = 2e-5
"""Å; what an atom, or a distance, may differ by. float32 and files with five decimals or more are
below it; steps of molecular dynamics are 1e-2, those of relaxations seldom below 1e-3."""
MAX_LAG = 64
"""Neighbours in the order of fingerprints that each structure is compared with."""
MAX_COMPARED = 20_000
"""Pairs that are compared atom by atom, some 100 µs each."""
SAME_ENERGY = 2e-3
"""eV in all; copies that differ by more have different labels. Beside it, what the forces do over
the tolerance."""
SAME_FORCE = 0.05
"""eV/Å, likewise."""
_FRAMES = 0.2
"""Å; structures in one order that differ by less are frames of one trajectory. Reordering their
atoms wouldn't bring them closer, as no two atoms are that near each other."""
_ALL_IMAGES = 48
"""Atoms up to which the shortest of 27 images is taken, whatever the shape of the cell."""
_ALL_DISTANCES = 400
_SHIFTS = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])


@dataclass(frozen=True, eq=False)
class Copies:
    """P pairs of equal structures, out of several stores; the first is the earlier one."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    """Places in all stores together, store after store."""
    differ: NDArray[np.bool_]
    """Whether their labels differ."""
    num_unlooked: int
    """Pairs as alike by their fingerprints that weren't compared."""
    share: float
    """Share of the compositions that was looked at."""


def find_copies(surveys: Sequence[Survey], tolerance: float) -> Copies:
    """Equal structures within and across stores.

    Args:
        surveys: the stores.
        tolerance: Å; see `TOLERANCE`.
    """
    starts = np.cumsum([0, *(len(survey.store) for survey in surveys)])
    rows = np.concatenate(
        [survey.kept.row + start for survey, start in zip(surveys, starts[:-1], strict=True)]
    )
    composition = np.concatenate([survey.kept.composition for survey in surveys])
    lengths = np.concatenate([survey.kept.lengths for survey in surveys])
    pairs = _alike(composition, lengths, tolerance)
    unlooked = max(0, len(pairs) - MAX_COMPARED)
    found, differ = [], []
    group = np.arange(len(rows))  # what is known to be equal needn't be compared again
    for one, other in pairs[:MAX_COMPARED]:
        if _root(group, one) == _root(group, other):
            continue
        places = sorted((int(rows[one]), int(rows[other])))
        first, second = (_structure(surveys, starts, place) for place in places)
        if same_structure(first, second, tolerance):
            group[_root(group, other)] = _root(group, one)
            found.append(places)
            differ.append(_labels_differ(first, second, tolerance, surveys, starts, places))
    table = np.array(found, dtype=np.int64).reshape(-1, 2)
    share = min(survey.kept.share for survey in surveys)
    return Copies(table[:, 0], table[:, 1], np.array(differ, dtype=bool), unlooked, share)


def _structure(surveys: Sequence[Survey], starts: NDArray[np.int64], place: int) -> Structure:
    number = int(np.searchsorted(starts, place, side="right")) - 1
    return surveys[number].store[place - int(starts[number])]


def _root(group: NDArray[np.int64], place: int) -> int:
    while group[place] != place:
        group[place] = group[group[place]]
        place = int(group[place])
    return place


def _alike(
    composition: NDArray[np.uint64], lengths: NDArray[np.float64], tolerance: float
) -> NDArray[np.int64]:
    """(P, 2) places whose fingerprints agree, those nearest to each other first."""
    order = np.lexsort((lengths[:, 0], composition))
    word, sorted_lengths = composition[order], lengths[order]
    near = 4 * tolerance  # a fingerprint moves by about what the atoms do
    found = []
    for lag in range(1, min(MAX_LAG, len(order) - 1) + 1):
        close = (word[lag:] == word[:-lag]) & (
            sorted_lengths[lag:, 0] - sorted_lengths[:-lag, 0] < near
        )
        if not close.any():
            break
        places = np.flatnonzero(close)
        apart = np.abs(sorted_lengths[places + lag] - sorted_lengths[places]).max(axis=1)
        places = places[apart < near]
        found.append(np.column_stack((order[places], order[places + lag])))
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)


def same_structure(one: Structure, other: Structure, tolerance: float) -> bool:
    """Whether two structures are the same but for a rigid motion, images and the atoms' order.

    All distances between atoms are compared, element by element; mirror images count as equal.
    """
    if one.num_atoms != other.num_atoms or (one.pbc != other.pbc).any():
        return False
    pbc = np.asarray(one.pbc)
    if pbc.any():
        metrics = [np.asarray(each.cell)[pbc] for each in (one, other)]
        lengths = [np.sqrt(np.abs(cell @ cell.T)) for cell in metrics]
        if np.abs(lengths[0] - lengths[1]).max() > 2 * tolerance:
            # Angles near 90° have products near zero, whose roots are large: compare them plainly.
            grams = [cell @ cell.T for cell in metrics]
            scale = max(float(np.abs(cell).max()) for cell in metrics)
            if np.abs(grams[0] - grams[1]).max() > 2 * tolerance * scale:
                return False
    step = _largest_step(one, other)
    if step is not None and step < _FRAMES:
        return step < tolerance
    if one.num_atoms > _ALL_DISTANCES or not np.array_equal(
        np.sort(one.atomic_numbers), np.sort(other.atomic_numbers)
    ):
        return False
    first, second = _sorted_distances(one), _sorted_distances(other)
    return bool(np.abs(first - second).max(initial=0.0) < 2 * tolerance)


def _largest_step(one: Structure, other: Structure) -> float | None:
    """Å that an atom moves at most between structures of one order and cell, taken as they lie."""
    if not np.array_equal(one.atomic_numbers, other.atomic_numbers):
        return None
    step = np.asarray(other.positions, dtype=np.float64) - one.positions
    if np.asarray(one.pbc).all():
        if np.abs(one.cell - other.cell).max() > 1e-4:
            return None
        step = step - step[0]
        fractional = step @ np.linalg.inv(one.cell)
        step = (fractional - np.rint(fractional)) @ one.cell
    return float(np.abs(step - step.mean(axis=0)).max())


def _sorted_distances(one: Structure) -> NDArray[np.float64]:
    """Distances between all pairs of atoms, by elements, then by length."""
    points = np.asarray(one.positions, dtype=np.float64)
    numbers = np.asarray(one.atomic_numbers, dtype=np.int64)
    first, second = np.triu_indices(len(numbers), 1)
    apart = points[first] - points[second]
    pbc = np.asarray(one.pbc)
    if pbc.any():
        from ase.geometry import complete_cell

        cell = complete_cell(np.where(pbc[:, None], one.cell, 0.0))
        fractional = apart @ np.linalg.inv(cell)
        apart = (fractional - np.rint(fractional) * pbc) @ cell
        shifts = _SHIFTS * pbc if len(numbers) <= _ALL_IMAGES else np.zeros((1, 3))
        images = apart[:, None, :] + (shifts @ cell)[None]
        distances = np.sqrt((images**2).sum(axis=2).min(axis=1))
    else:
        distances = np.linalg.norm(apart, axis=1)
    low = np.minimum(numbers[first], numbers[second])
    kind = low * 256 + np.maximum(numbers[first], numbers[second])
    return np.asarray(distances[np.lexsort((distances, kind))])


def _labels_differ(
    one: Structure,
    other: Structure,
    tolerance: float,
    surveys: Sequence[Survey],
    starts: NDArray[np.int64],
    places: Sequence[int],
) -> bool:
    """Whether two copies have labels that contradict each other."""
    first, second = (
        surveys[int(np.searchsorted(starts, place, side="right")) - 1] for place in places
    )
    if first is not second and not _same_theory(first, second):
        return False  # another theory, or the energy of another geometry
    strength = 0.0
    if one.forces is not None and other.forces is not None:
        lengths = [np.sort(np.linalg.norm(each, axis=1)) for each in (one.forces, other.forces)]
        strength = float(lengths[0].max())
        off = float(np.abs(lengths[0] - lengths[1]).max())
        if off > SAME_FORCE * (1 + strength) + 100.0 * tolerance:
            return True
    if one.energy is None or other.energy is None:
        return False
    allowed = SAME_ENERGY + 1e-5 * one.num_atoms + tolerance * strength * one.num_atoms
    return abs(one.energy - other.energy) > allowed


def _same_theory(one: Survey, other: Survey) -> bool:
    """Whether two stores say that their labels mean the same."""
    cards = one.store.card, other.store.card
    return (
        bool(cards[0].functional)
        and cards[0].functional == cards[1].functional
        and cards[0].task == cards[1].task
    )


def copy_findings(surveys: Sequence[Survey], copies: Copies) -> Iterator[Finding]:
    """Copies within each store, and between stores."""
    starts = np.cumsum([0, *(len(survey.store) for survey in surveys)])
    owner = [
        np.searchsorted(starts, places, side="right") - 1
        for places in (copies.first, copies.second)
    ]
    for number, survey in enumerate(surveys):
        inside = (owner[0] == number) & (owner[1] == number)
        for differ in (True, False):
            chosen = np.flatnonzero(inside & (copies.differ == differ))
            if len(chosen):
                places = np.column_stack((copies.first[chosen], copies.second[chosen]))
                yield _copies_inside(survey, places - starts[number], differ)
    for one in range(len(surveys)):
        for other in range(one + 1, len(surveys)):
            chosen = np.flatnonzero((owner[0] == one) & (owner[1] == other))
            if len(chosen):
                yield _copies_across(
                    surveys[one],
                    surveys[other],
                    copies.second[chosen] - starts[other],
                    bool(copies.differ[chosen].any()),
                )
    if copies.num_unlooked or copies.share < 1:
        yield Finding(
            check="duplicates.partly",
            severity=Severity.note,
            store=surveys[0].name,
            title=f"{copies.num_unlooked:,} pairs of alike structures weren't compared; "
            f"{100 * copies.share:.0f} % of the compositions were looked at",
            meaning="Time and memory are bounded; the true numbers are larger.",
            advice="Give fewer structures, or mend what was found and ask again.",
        )


def _copies_inside(survey: Survey, places: NDArray[np.int64], differ: bool) -> Finding:
    rows = Rows()
    rows.add(places.reshape(-1))
    how = "with different labels" if differ else "with the same labels"
    return Finding(
        check="duplicates.contradict" if differ else "duplicates.same",
        severity=Severity.error if differ else Severity.warning,
        store=survey.name,
        title=f"{len(places):,} structures are copies of another one, {how}",
        meaning="No model can give two answers for one structure."
        if differ
        else "They count twice in training, and split apart they leak.",
        advice="Ids are listed pair by pair. "
        + ("Find out which label is right." if differ else "Keep one of each pair."),
        count=len(places),
        ids=rows.ids(survey.store),
    )


def _copies_across(one: Survey, other: Survey, rows: NDArray[np.int64], differ: bool) -> Finding:
    found = Rows()
    found.add(rows)
    same_theory = _same_theory(one, other)
    severity = Severity.error if differ else Severity.warning if same_theory else Severity.note
    return Finding(
        check="duplicates.across",
        severity=severity,
        store=other.name,
        title=f"{len(rows):,} structures are also in {one.name}"
        + (", some with different labels at the same level of theory" if differ else ""),
        meaning="The same geometries at another level of theory are fine to train on."
        if severity is Severity.note
        else "They count twice in training; one store's validation may be in the other's training.",
        advice="Split both alike, so that no validation structure is trained on in the other.",
        count=len(rows),
        ids=found.ids(other.store),
    )
