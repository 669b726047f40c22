"""Geometries of `structure_types_chgnet`: known structure types with their elements exchanged.

The types are those of the AFLOW library of prototypes that pymatgen carries. Elements are mostly
replaced by chemically alike ones; some cells get a mixed or a missing site, some become a slab.
"""

from __future__ import annotations

import functools

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.io.ase import AseAtomsAdaptor

from crystal_cells import ELEMENTS, METALS, NONMETALS, SMALLEST
from periodic_cells import acceptable

FAMILIES = [
    family.split()
    for family in (
        "Li Na K Rb Cs Ag Tl",
        "Be Mg Ca Sr Ba",
        "Sc Y La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Ac Th Pa U Np Pu",
        "Ti Zr Hf V Nb Ta Cr Mo W Mn Tc Re",
        "Fe Co Ni Cu Zn Ru Rh Pd Cd Os Ir Pt Au Hg",
        "Al Ga In Sn Pb Bi",
        "B C Si Ge",
        "N P As Sb",
        "O S Se Te",
        "H F Cl Br I",
    )
]
"""Elements that take each other's place."""
KEEP, ALIKE = 0.25, 0.6
"""Shares of the elements that stay, and that a chemically alike one replaces; any metal or any
nonmetal replaces the others."""
FEWEST, MOST = 6, 40
"""Atoms of a cell."""
CLOSEST = 0.6
"""Å between two atoms at least."""
MIXED, MISSING, SLAB = 0.3, 0.08, 0.12
"""Shares of the cells with a mixed site, with a missing atom, and with vacuum along one axis."""


@functools.cache
def structure_types() -> list[Atoms]:
    """Ordered structures of the library with few enough atoms and no element without labels."""
    every = [entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY]
    ordered = [one for one in every if one.is_ordered and len(one) <= MOST]
    cells = [AseAtomsAdaptor.get_atoms(one, msonable=False) for one in ordered]
    known = set(ELEMENTS)
    return [
        Atoms(one.numbers, one.positions, cell=one.cell, pbc=True)
        for one in cells
        if set(one.get_chemical_symbols()) <= known
    ]


def exchanged(symbol: str, rng: np.random.Generator) -> str:
    """The element that takes the place of another."""
    kind = rng.random()
    if kind < KEEP:
        return symbol
    alike = [family for family in FAMILIES if symbol in family]
    if kind < KEEP + ALIKE and alike:
        return str(rng.choice(alike[0]))
    return str(rng.choice(METALS if symbol in METALS else NONMETALS))


def spheres(atoms: Atoms) -> float:
    """Sum of the cubes of the covalent radii, in Å³."""
    return float((covalent_radii[atoms.numbers] ** 3).sum())


def repeated(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A cell with at least `FEWEST` atoms, along its shorter axes first; some are larger."""
    fewest = FEWEST if rng.random() < 0.7 else int(rng.integers(FEWEST, MOST // 2))
    while len(atoms) < fewest:
        times = [1, 1, 1]
        times[int(np.argmin(atoms.cell.lengths()))] = 2
        atoms = atoms.repeat(times)
    return atoms


def with_defects(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Some atoms of one element exchanged, an atom taken out, or vacuum above the cell."""
    atoms = atoms.copy()
    if rng.random() < MIXED:
        symbol = str(rng.choice(atoms.get_chemical_symbols()))
        sites = np.flatnonzero(np.array(atoms.get_chemical_symbols()) == symbol)
        chosen = sites[rng.random(len(sites)) < rng.uniform(0.1, 0.6)]
        atoms.symbols[chosen] = exchanged(symbol, rng)
    if rng.random() < MISSING and len(atoms) > FEWEST:
        del atoms[int(rng.integers(len(atoms)))]
    if rng.random() < SLAB:
        axis = int(rng.integers(3))
        cell = atoms.cell.array.copy()
        cell[axis] *= 1 + rng.uniform(6, 10) / np.linalg.norm(cell[axis])
        atoms.set_cell(cell)
        atoms.info["slab"] = True
    return atoms


def known_type(rng: np.random.Generator) -> Atoms:
    """A structure type with other elements, its volume scaled by their covalent radii.

    ``info["slab"]`` says that it has a surface.
    """
    types = structure_types()
    source = types[int(rng.integers(len(types)))]
    atoms = source.copy()
    partners = {symbol: exchanged(symbol, rng) for symbol in sorted(set(atoms.symbols))}
    atoms.numbers = [atomic_numbers[partners[symbol]] for symbol in source.get_chemical_symbols()]
    volume = source.get_volume() * spheres(atoms) / spheres(source)
    volume = max(volume, SMALLEST * len(atoms))
    atoms.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    return with_defects(repeated(atoms, rng), rng)


def apart(atoms: Atoms) -> bool:
    """Whether no two atoms are too close to be told apart; the forces push the others apart."""
    shortest = atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)].min()
    return acceptable(atoms, 0.5) and bool(shortest > CLOSEST)


def usable(atoms: Atoms) -> bool:
    """Whether a cell is neither too small, too large nor torn."""
    return FEWEST - 1 <= len(atoms) <= MOST and apart(atoms)
