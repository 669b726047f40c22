"""AWKWARD: the structures that break potentials, one list for all tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamm.structure import Structure

CUTOFF = 4.0
"""Å; the cutoff that the list was made for."""
MAX_NEIGHBORS = 8
"""The neighbour limit that the list was made for: the crystal of equal distances has 12."""


class NamedStructure(Structure):
    """A structure whose id is its name in the test's id."""

    @property
    def name(self) -> str:
        return self.id


def structure(
    name: str,
    numbers: list[int],
    positions: Any,
    cell: Any = None,
    pbc: tuple[bool, bool, bool] = (False, False, False),
) -> NamedStructure:
    """A structure from lists, in Å."""
    return NamedStructure(
        atomic_numbers=np.array(numbers, dtype=np.uint8),
        positions=np.array(positions, dtype=np.float64).reshape(-1, 3),
        cell=np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64),
        pbc=np.array(pbc),
        id=name,
    )


def _rattled(positions: Any, seed: int, by: float = 0.1) -> NDArray[np.float64]:
    positions = np.array(positions, dtype=np.float64)
    return positions + np.random.default_rng(seed).normal(0, by, positions.shape)


ETHANOL = (
    [6, 6, 8, 1, 1, 1, 1, 1, 1],
    [
        [-0.748, -0.015, 0.024],
        [0.558, 0.420, -0.278],
        [1.293, -0.202, -0.901],
        [-1.263, 0.754, 0.600],
        [-1.316, -0.210, -0.891],
        [-0.677, -0.929, 0.614],
        [1.079, 0.614, 0.661],
        [0.497, 1.345, -0.853],
        [1.371, 0.330, -1.702],
    ],
)
FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
TRICLINIC = np.array([[3.9, 0.0, 0.0], [1.3, 4.1, 0.0], [-0.9, 1.1, 4.4]])
SLAB_CELL = np.array([[5.1, 0.0, 0.0], [2.55, 4.42, 0.0], [0.0, 0.0, 0.0]])
SLAB = [[x / 2 * SLAB_CELL[0] + y / 2 * SLAB_CELL[1]] for x in (0, 1) for y in (0, 1)]
SLAB_POSITIONS = np.concatenate(
    (np.reshape(SLAB, (4, 3)), np.reshape(SLAB, (4, 3)) + np.array([1.275, 0.736, 2.08]))
)

AWKWARD = [
    structure("a lone atom", [26], [[0.3, 0.2, 0.1]]),
    structure("two atoms beyond the cutoff", [8, 1], [[0, 0, 0], [0, 0, CUTOFF + 3]]),
    structure(
        "a one-atom crystal",
        [29],
        [[0.1, 0.2, 0.3]],
        1.8 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
        (True, True, True),
    ),
    structure(
        "a triclinic cell",
        [11, 17, 8],
        _rattled(np.array([[0.1, 0.1, 0.1], [0.6, 0.5, 0.4], [0.3, 0.8, 0.7]]) @ TRICLINIC, 1),
        TRICLINIC,
        (True, True, True),
    ),
    structure(
        "a slab with mixed pbc",
        [29] * 8 + [6, 8],
        np.concatenate((_rattled(SLAB_POSITIONS, 2), [[1.3, 0.7, 4.0], [1.35, 0.72, 5.15]])),
        SLAB_CELL,
        (True, True, False),
    ),
    structure("a molecule with a zero cell", *ETHANOL),
    structure(
        "atoms outside their cell",
        [14, 14, 8],
        [[-7.3, 0.2, 0.4], [1.5, 19.1, -1.2], [2.4, 0.5, 8.8]],
        np.diag([4.2, 4.6, 5.0]),
        (True, True, True),
    ),
    structure(
        "equal distances at the neighbour limit",
        [29] * 4,
        np.array(FCC) * 3.6,
        np.eye(3) * 3.6,
        (True, True, True),
    ),
]


def moved(one: Structure, by: Any) -> Structure:
    """Every atom displaced by the same or its own vector."""
    return replace(one, positions=one.positions + np.asarray(by))


def turned(one: Structure, rotation: NDArray[np.float64]) -> Structure:
    """Positions and cell rotated or reflected."""
    return replace(one, positions=one.positions @ rotation.T, cell=one.cell @ rotation.T)


def reordered(one: Structure, order: NDArray[np.int64]) -> Structure:
    """Atoms in another order."""
    return replace(one, atomic_numbers=one.atomic_numbers[order], positions=one.positions[order])


def random_rotation(seed: int) -> NDArray[np.float64]:
    """A proper rotation, uniformly drawn."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))
