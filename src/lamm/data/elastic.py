r"""An elastic network whose rest state is a structure: labels for structures that have none.

Neighbours are joined by springs that are at rest where the structure is as it was found, and weaken
with the distance over the sum of the covalent radii, as forces of bonded atoms, of second
neighbours and of those further away do:

.. math::

    E = \frac12 \sum_{i<j} k_{ij} \left( |\vec r_{ij}| - d_{ij} \right)^2, \quad
    k_{ij} = k \left( \frac{R_i + R_j}{d_{ij}} \right)^6

A displaced structure gets E and its gradient as labels, in place of the displacement itself
(Sec. 3.3). Nothing in them is unpredictable: they know neither where the structure was nor how it
was turned, and sum to no force and no torque.

The inverse sixth power is that of K. Hinsen et al., Chem. Phys. 261, 25 (2000).
"""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from lamm.graph.neighbors import GraphConfig, neighbor_edges
from lamm.structure import Structure

STIFFNESS = 30.0
"""k, eV/Å²: about that of a single bond between carbon atoms."""
REACH = GraphConfig(cutoff=5.0)
"""Springs are as long as this; there, k is a hundredth and less of a bond's."""
_EXPONENT = 6
_SHORTEST = 0.7
"""Of the sum of the radii; a shorter distance doesn't make a spring stiffer."""
_RADII: NDArray[np.float64] = np.asarray(covalent_radii, dtype=np.float64)


def elastic_labels(
    structure: Structure, displacement: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Energy and forces of a displaced structure in the elastic network of where it was.

    Args:
        structure: at rest.
        displacement: (N, 3) in Å; images of an atom move with it.

    Returns:
        eV, and (N, 3) in eV/Å.
    """
    positions = structure.positions.astype(np.float64)
    (source, target), offsets = neighbor_edges(positions, structure.cell, structure.pbc, REACH)
    numbers = structure.atomic_numbers.astype(np.int64)
    radii = _RADII[numbers[source]] + _RADII[numbers[target]]  # (E,)
    rest = positions[source] + offsets @ structure.cell.astype(np.float64) - positions[target]
    length = np.linalg.norm(rest, axis=1)
    stiffness = STIFFNESS * (radii / np.maximum(length, _SHORTEST * radii)) ** _EXPONENT

    vectors = rest + displacement[source] - displacement[target]  # (E, 3), each spring both ways
    stretched = np.linalg.norm(vectors, axis=1)
    stretch = stretched - length
    energy = 0.25 * float((stiffness * stretch**2).sum())
    pull = (stiffness * stretch / np.maximum(stretched, 1e-12))[:, None] * vectors
    forces = np.zeros_like(positions)
    np.add.at(forces, target, pull)  # towards the source where it is too far
    return energy, forces
