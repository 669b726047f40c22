"""Forces that aren't labels: zero, all the same, held atoms, and molecules that push themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lamm.data.doctor.blocks import Block
from lamm.data.doctor.distances import neighbours
from lamm.data.doctor.findings import Finding, Rows, Severity
from lamm.data.doctor.survey import Survey
from lamm.structure import Structure

MAX_TESTED = 1500
"""Structures with forces of exactly zero whose symmetry is looked at, a millisecond each."""
ASYMMETRIC = 0.02
"""Share of an atom's surroundings that doesn't cancel; 1e-6 where symmetry forbids a force."""
MOVING = 1e-2
"""eV/Å, rms; where the other atoms feel less, a file's rounding can make zeros."""
NET_SHARE = 0.1
"""Net force over the sum of the forces' lengths; forces of DFT on a grid reach 0.01."""
NET_FORCE = 0.1
"""eV/Å; a smaller net force is rounding or grid, whatever its share."""
EXTREME, LEAST_USUAL = 50, 0.2
"""A force this many times the usual one, the median over structures of their rms, is a broken
record; and eV/Å, below which no force counts as usual, as sets of relaxed structures have few."""
_SURROUNDINGS = 5.0


class ForceFaults:
    """Collects what is odd about forces, block after block."""

    def __init__(self) -> None:
        self.all_zero, self.some_zero = Rows(), Rows()
        self.net, self.torque = Rows(), Rows()
        self._zero_rows: list[int] = []
        self._held_rows: list[int] = []
        self.num_zero = self.num_held = 0
        self._rows: list[NDArray[np.int64]] = []
        self._rms: list[NDArray[np.float32]] = []
        self._largest: list[NDArray[np.float32]] = []

    def look(self, block: Block) -> None:
        """Take a block in."""
        labelled = block.has_forces
        if not labelled.any():
            return
        free = ~block.fixed
        lengths = np.linalg.norm(np.nan_to_num(block.forces), axis=1)
        zero = (lengths == 0) & free
        num_zero, num_free = block.sum(zero.astype(np.int64)), block.sum(free.astype(np.int64))
        rms = np.sqrt(block.sum(lengths**2) / block.sizes)
        self._rows.append(block.rows[labelled])
        self._rms.append(rms[labelled].astype(np.float32))
        self._largest.append(block.max(lengths)[labelled].astype(np.float32))
        all_zero = labelled & (num_zero == num_free) & (block.sizes > 1) & (num_free > 0)
        isolated = ~block.periodic
        self.all_zero.add(block.rows[all_zero & isolated])
        self._zero_rows += self._room(block.rows[all_zero & ~isolated], self._zero_rows)
        self.num_zero += int((all_zero & ~isolated).sum())
        held = labelled & (num_zero > 0) & ~all_zero & ~isolated & (rms > MOVING)
        self._held_rows += self._room(block.rows[held], self._held_rows)
        self.num_held += int(held.sum())
        self._balance(block, lengths, labelled & isolated & ~all_zero)

    @staticmethod
    def _room(rows: NDArray[np.int64], kept: list[int]) -> list[int]:
        return [int(row) for row in rows[: MAX_TESTED - len(kept)]]

    def _balance(
        self, block: Block, lengths: NDArray[np.float64], chosen: NDArray[np.bool_]
    ) -> None:
        """Net force and torque of isolated molecules with no atom held."""
        chosen = chosen & (block.sum(block.fixed.astype(np.int64)) == 0) & (block.sizes > 1)
        if not chosen.any():
            return
        forces = np.nan_to_num(block.forces)
        net = np.linalg.norm(block.sum(forces), axis=1)
        total = block.sum(lengths)
        bad = chosen & (net > NET_SHARE * total) & (net > NET_FORCE)
        if bad.any():
            self.net.add(block.rows[bad], float(net[bad].max()))
        centre = block.sum(block.positions) / block.sizes[:, None]
        arm = block.positions - centre[block.owner]
        torque = np.linalg.norm(block.sum(np.cross(arm, forces)), axis=1)
        reach = block.sum(np.linalg.norm(arm, axis=1) * lengths)
        bad = chosen & ~bad & (torque > NET_SHARE * reach) & (torque > NET_FORCE)
        if bad.any():
            self.torque.add(block.rows[bad], float(torque[bad].max()))

    @property
    def usual(self) -> float:
        """eV/Å; the median over structures of the rms length of their forces."""
        return float(np.median(np.concatenate(self._rms))) if self._rms else 0.0

    def extreme(self) -> tuple[NDArray[np.int64], float]:
        """Rows with a force that is far beyond the usual one, and the largest of all, in eV/Å."""
        if not self._rows:
            return np.zeros(0, dtype=np.int64), 0.0
        largest = np.concatenate(self._largest)
        beyond = largest > EXTREME * max(self.usual, LEAST_USUAL)
        return np.concatenate(self._rows)[beyond], float(largest.max())

    def findings(self, survey: Survey) -> Iterator[Finding]:
        """What was found."""
        store = survey.store
        extreme, largest = self.extreme()
        if len(extreme):
            rows = Rows()
            rows.add(extreme, largest)
            yield _finding(
                survey,
                "forces.extreme",
                Severity.warning,
                rows,
                f"{rows.count:,} structures have a force over {EXTREME} times the usual "
                f"{self.usual:.3g} eV/Å, of up to {largest:.3g} eV/Å",
                "Atoms that nearly touch, a calculation that didn't converge, or a broken record. "
                "What is said of units is said without them.",
                "Look at these records, and leave out what isn't meant.",
            )
        zero = [row for row in self._zero_rows if _without_reason(store[row])]
        self.all_zero.add(zero)
        held = [row for row in self._held_rows if _without_reason(store[row])]
        self.some_zero.add(held)
        if self.all_zero.count:
            yield _finding(
                survey,
                "forces.zero",
                Severity.error,
                self.all_zero,
                f"{self.all_zero.count:,} structures have forces of exactly zero on all atoms",
                "No symmetry forbids a force there: the source had none, or they were filled in.",
                "Leave the label out of these records.",
            )
        if self.some_zero.count:
            more = self.num_held - len(self._held_rows)
            yield _finding(
                survey,
                "forces.constrained",
                Severity.error,
                self.some_zero,
                f"{self.some_zero.count:,} periodic structures have atoms with a force of exactly "
                f"zero among others that feel one, not marked as fixed"
                + (f" ({more:,} more weren't looked at)" if more else ""),
                "The source zeroed the forces of atoms that it held still; they are no label.",
                "Name the source's mask under `keys.fixed` in the card, or take the raw forces.",
            )
        yield from self._unbalanced(survey)

    def _unbalanced(self, survey: Survey) -> Iterator[Finding]:
        for rows, what, unit in ((self.net, "net force", "eV/Å"), (self.torque, "torque", "eV")):
            if rows.count:
                yield _finding(
                    survey,
                    f"forces.{what.replace(' ', '_')}",
                    Severity.warning,
                    rows,
                    f"{rows.count:,} isolated molecules have a {what}, of up to {rows.worst:.3g} "
                    f"{unit}",
                    "No molecule pushes or turns itself: an external field or charge, atoms left "
                    "out, forces of other atoms, or a label that isn't the force.",
                    "Compare these records with their source.",
                )


def _finding(
    survey: Survey,
    check: str,
    severity: Severity,
    rows: Rows,
    title: str,
    meaning: str,
    advice: str,
) -> Finding:
    numbers = {} if rows.worst is None else {"largest": rows.worst}
    return Finding(
        check,
        severity,
        survey.name,
        title,
        meaning,
        advice,
        rows.count,
        rows.ids(survey.store),
        numbers,
    )


def _without_reason(structure: Structure) -> bool:
    """Whether a free atom with a force of exactly zero is at a place where symmetry allows one.

    Where symmetry forbids a force, directions to all neighbours, weighted by any function of
    distance and element, cancel.
    """
    assert structure.forces is not None
    zero = ~np.asarray(structure.forces).any(axis=1)
    if structure.fixed is not None:
        zero &= ~structure.fixed
    found = neighbours(structure, _SURROUNDINGS)
    numbers = np.asarray(structure.atomic_numbers, dtype=np.float64)
    for decay in (0.7, 1.5):
        weight = np.exp(-found.distances / decay) * (1 + np.sqrt(numbers[found.other]))
        unit = found.vectors / np.maximum(found.distances, 1e-9)[:, None]
        total = np.bincount(found.centre, weight, len(numbers))
        left = [
            np.bincount(found.centre, weight * unit[:, axis], len(numbers)) for axis in range(3)
        ]
        asymmetry = np.linalg.norm(left, axis=0) / np.maximum(total, 1e-30)
        if (zero & (asymmetry > ASYMMETRIC)).any():
            return True
    return False


def repeated_forces(survey: Survey) -> Iterator[Finding]:
    """The same forces in structures that aren't the same."""
    kept = survey.kept
    some = np.flatnonzero(kept.forces != 0)
    order = some[np.lexsort((kept.row[some], kept.forces[some]))]
    word, lengths = kept.forces[order], kept.lengths[order]
    begins = np.flatnonzero(np.concatenate(([True], word[1:] != word[:-1])))
    counts = np.diff(np.append(begins, len(order)))
    rows = Rows()
    for begin, count in zip(begins[counts > 1], counts[counts > 1], strict=True):
        group = slice(begin, begin + count)
        same_atoms = kept.composition[order[group]] == kept.composition[order[begin]]
        near = np.abs(lengths[group] - lengths[begin]).max(axis=1) < 1e-3
        if not (same_atoms & near).all():
            rows.add(kept.row[order[group]])
    if rows.count:
        yield _finding(
            survey,
            "forces.repeated",
            Severity.error,
            rows,
            f"{rows.count:,} structures share their forces with a different structure",
            "Forces belong to positions: labels were copied, or shifted against the structures.",
            "Pair structures and labels again at the source.",
        )
