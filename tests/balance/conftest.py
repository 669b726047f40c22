"""A small joint data set with the sizes and shapes of Table 2, made from hashes."""

import numpy as np
import pytest

from lamm.balance.cost import likely_edges, structure_cost
from lamm.balance.plan import PlanIndex
from lamm.keyed import hash64, key_of

# Thousands of structures are 1/5000 of Table 2's; mean, spread, least and most atoms of each.
TABLE_2 = [
    # structures, mean, sd, least, most, periodic, energy, forces
    (26_800, 73, 36, 9, 225, True, True, True),
    (1_640, 80, 38, 15, 228, True, True, True),
    (5_800, 160, 65, 30, 300, True, True, True),
    (1_900, 14, 3, 4, 23, False, True, True),
    (840, 17, 3, 4, 23, False, True, True),
    (400, 55, 17, 8, 228, False, True, False),
    (18_800, 46, 14, 3, 150, False, False, True),
    (92, 78, 36, 9, 225, True, True, False),
    (9, 84, 38, 15, 228, True, True, False),
    (26, 162, 65, 30, 300, True, True, False),
]


def bell(count, key):
    """Numbers of mean 0 and variance 1: twelve uniform ones, added."""
    uniform = hash64(np.arange(12 * count), key).reshape(12, count) / 2.0**64
    return uniform.sum(axis=0) - 6


def make_counts(scale=1.0):
    """The arrays of a COUNTS.npz: natoms, subset, periodic, has_e, has_f."""
    columns = {"natoms": [], "subset": [], "periodic": [], "has_e": [], "has_f": []}
    for subset, row in enumerate(TABLE_2):
        size, mean, sd, least, most, periodic, has_energy, has_forces = row
        count = max(1, round(size * scale))
        atoms = np.rint(mean + sd * bell(count, key_of("atoms", subset))).clip(least, most)
        columns["natoms"].append(atoms.astype(np.int64))
        for name, value in zip(
            ("subset", "periodic", "has_e", "has_f"),
            (subset, periodic, has_energy, has_forces),
            strict=True,
        ):
            columns[name].append(np.full(count, value, dtype=np.int64))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def make_index(counts):
    periodic = counts["periodic"].astype(bool)
    edges = likely_edges(counts["natoms"], periodic, 50)
    return PlanIndex(
        ids=np.arange(len(edges)),
        subset=counts["subset"],
        cost=structure_cost(counts["natoms"], edges, max_neighbors=50, edge_share=0.65),
        has_energy=counts["has_e"].astype(bool),
        has_forces=counts["has_f"].astype(bool),
        num_atoms=counts["natoms"],
    )


@pytest.fixture(scope="session")
def counts():
    return make_counts()


@pytest.fixture(scope="session")
def index(counts):
    return make_index(counts)


@pytest.fixture(scope="session")
def index_of():
    """A function that makes a plan index of the arrays of a COUNTS.npz."""
    return make_index
