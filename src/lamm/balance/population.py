"""The paper's joint data set as atom counts, made up from the published figures of Table 2.

Table 2 gives the number of structures and the mean number of atoms of each subset; the least and
the most atoms are those of the data sets. The shape between them is assumed: the beta distribution
with that mean, as wide as `spread` says.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.stats import beta

from lamm.errors import ConfigError
from lamm.keyed import hash64, key_of


class SubsetCounts(NamedTuple):
    """A row of Table 2."""

    name: str
    structures: int
    mean_atoms: float
    least_atoms: int
    most_atoms: int
    spread: float
    """Assumed standard deviation of the number of atoms, over its mean."""
    periodic: bool
    has_energy: bool
    has_forces: bool


TABLE_2 = (
    SubsetCounts("OC20", 134_000_000, 73, 9, 225, 0.45, True, True, True),
    SubsetCounts("OC22", 8_200_000, 80, 15, 228, 0.45, True, True, True),
    SubsetCounts("ODAC23", 29_000_000, 160, 30, 300, 0.37, True, True, True),
    SubsetCounts("Transition1x", 9_500_000, 14, 4, 23, 0.21, False, True, True),
    SubsetCounts("QM7-X", 4_200_000, 17, 4, 23, 0.14, False, True, True),
    SubsetCounts("QMugs", 2_000_000, 55, 8, 228, 0.30, False, True, False),
    SubsetCounts("PubChem3D", 94_000_000, 46, 3, 150, 0.30, False, False, True),
    SubsetCounts("OC20 (IS2RE)", 460_000, 78, 9, 225, 0.45, True, True, False),
    SubsetCounts("OC22 (IS2RE)", 46_000, 84, 15, 228, 0.45, True, True, False),
    SubsetCounts("ODAC23 (IS2RE)", 132_000, 162, 30, 300, 0.37, True, True, False),
)

TOTAL = sum(row.structures for row in TABLE_2)
"""Structures of Table 2, each counted once."""


class Counts(NamedTuple):
    """What a plan needs to know of structures, subset after subset: the arrays of a counts file."""

    natoms: Integer[np.ndarray, " structures"]
    subset: Integer[np.ndarray, " structures"]
    periodic: Bool[np.ndarray, " structures"]
    has_e: Bool[np.ndarray, " structures"]
    has_f: Bool[np.ndarray, " structures"]


def population(structures: int, seed: int = 0) -> Counts:
    """Table 2 scaled down to about so many structures, in the proportions of its rows.

    Args:
        structures: how many in all; each subset has at least one.
        seed: of the numbers of atoms.
    """
    sizes = subset_sizes(structures)

    def column(values: list[bool], kind: type) -> Bool[np.ndarray, " structures"]:
        return np.repeat(np.array(values, dtype=kind), sizes)

    return Counts(
        np.concatenate(
            [
                atom_counts(row, size, atoms_key(row, seed))
                for row, size in zip(TABLE_2, sizes, strict=True)
            ]
        ),
        np.repeat(np.arange(len(TABLE_2), dtype=np.uint8), sizes),
        column([row.periodic for row in TABLE_2], np.bool_),
        column([row.has_energy for row in TABLE_2], np.bool_),
        column([row.has_forces for row in TABLE_2], np.bool_),
    )


def atoms_key(row: SubsetCounts, seed: int) -> int:
    """The key of a subset's numbers of atoms."""
    return key_of("atoms", seed, row.name)


def subset_sizes(structures: int) -> list[int]:
    """Structures of each subset of Table 2 scaled down to about so many in all.

    Raises:
        ConfigError: too few for one in each subset.
    """
    if structures < len(TABLE_2):
        raise ConfigError(
            f"a population of {structures} structures; expected at least {len(TABLE_2)}, one for "
            "each subset of Table 2."
        )
    return [max(1, round(structures * row.structures / TOTAL)) for row in TABLE_2]


def atom_counts(
    row: SubsetCounts, size: int, key: int, first: int = 0
) -> Integer[np.ndarray, " size"]:
    """Numbers of atoms of `size` structures of a subset, from number `first` on."""
    cumulative = cumulative_shares(row)
    uniform = hash64(np.arange(first, first + size), key) / 2.0**64
    bins = np.searchsorted(cumulative, uniform, side="right").astype(np.uint16)
    counts: Integer[np.ndarray, " size"] = np.minimum(bins + row.least_atoms, row.most_atoms)
    return counts


def cumulative_shares(row: SubsetCounts) -> Float[np.ndarray, " bins"]:
    """Share of structures with at most so many atoms, from the least to the most.

    A beta distribution over the least to the most atoms, each half an atom wider, in bins of one
    atom.
    """
    width = row.most_atoms - row.least_atoms + 1
    mean = (row.mean_atoms - row.least_atoms + 0.5) / width
    variance = (row.spread * row.mean_atoms / width) ** 2
    concentration = mean * (1 - mean) / variance - 1
    bins = np.arange(1, width + 1) / width
    cumulative: Float[np.ndarray, " bins"] = beta.cdf(
        bins, mean * concentration, (1 - mean) * concentration
    )
    return cumulative
