"""Geometries of `crystals_chgnet`: most of the periodic table, in common prototypes and in none."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, chemical_symbols, covalent_radii

from periodic_cells import rattled, strained

ABSENT = {"He", "Ne", "Ar", "Kr", "Xe", "Po", "At", "Rn", "Fr", "Ra"}
ELEMENTS = [name for name in chemical_symbols[1:95] if name not in ABSENT]
NONMETALS = ["H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "As", "Se", "Br", "Te", "I"]
METALS = [name for name in ELEMENTS if name not in NONMETALS]
COMMON_ANIONS = ["O", "O", "O", "N", "F", "S", "Cl", "Se", "H", "C", "P", "Br", "I", "Te"]
SMALLEST = 5.0
"""Å³ per atom that a cell has at least; covalent radii make hydrogen's far smaller."""

_HALF = (0.5, 0.5, 0.5)
SITES: dict[str, tuple[str, list[tuple[float, float, float]], float]] = {
    # kinds of site (a, b: metals; x: nonmetal), scaled positions, cell edge over mean bond length
    "caesium chloride": ("ax", [(0, 0, 0), _HALF], 1.155),
    "binary alloy": ("ab", [(0, 0, 0), _HALF], 1.155),
    "ordered fcc alloy": ("abbb", [(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)], 1.414),
    "antiperovskite": ("xabbb", [_HALF, (0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)], 2),
    "perovskite": ("abxxx", [_HALF, (0, 0, 0), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)], 2.0),
    "rhenium trioxide": ("axxx", [(0, 0, 0), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)], 2.0),
    "cuprite": (
        "xxaaaa",
        [(0, 0, 0), _HALF, (0.25, 0.25, 0.25), (0.25, 0.75, 0.75), (0.75, 0.25, 0.75),
         (0.75, 0.75, 0.25)],
        2.309,
    ),
}  # fmt: skip


def mean_bond(symbols: list[str]) -> float:
    """Mean over the pairs of a list of elements of the sum of their covalent radii, in Å."""
    return 2 * float(np.mean([covalent_radii[atomic_numbers[name]] for name in symbols]))


def some(names: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` different elements of a list."""
    return [str(name) for name in rng.choice(names, size=count, replace=False)]


def prototype(rng: np.random.Generator) -> Atoms:
    """An ordered cell of one to three elements in one of `SITES`."""
    kinds, positions, ratio = SITES[str(rng.choice(list(SITES)))]
    first, second = some(METALS, 2, rng)
    element = {"a": first, "b": second, "x": str(rng.choice(COMMON_ANIONS))}
    symbols = [element[kind] for kind in kinds]
    edge = ratio * mean_bond([name for name in element.values() if name in symbols])
    return Atoms(symbols, scaled_positions=positions, cell=[edge] * 3, pbc=True)


def binary(rng: np.random.Generator) -> Atoms:
    """A metal and a nonmetal, or two of either, as rock salt, zincblende, fluorite or wurtzite."""
    kind = str(rng.choice(["rocksalt", "zincblende", "fluorite", "wurtzite"]))
    metal = str(rng.choice(ELEMENTS))
    other = str(rng.choice([name for name in COMMON_ANIONS if name != metal]))
    bond = mean_bond([metal, other])
    if kind == "wurtzite":
        edge = 1.633 * bond
        atoms = bulk("ZnO", "wurtzite", a=edge, c=1.633 * edge)
    else:
        edge = 2.0 * bond if kind == "rocksalt" else 4.0 / np.sqrt(3) * bond
        formula = "CaF2" if kind == "fluorite" else "MgO"
        atoms = bulk(formula, kind, a=edge, cubic=rng.random() < 0.5)
    lighter = np.array(atoms.get_chemical_symbols()) != str(atoms.symbols[0])
    atoms.symbols[:] = metal
    atoms.symbols[np.flatnonzero(lighter)] = other
    return atoms


def metal_lattice(rng: np.random.Generator) -> Atoms:
    """One to eight elements at random on the sites of a close-packed or open lattice."""
    kind = str(rng.choice(["fcc", "bcc", "hcp", "sc", "diamond"]))
    edge = {"fcc": 1.414, "bcc": 1.155, "hcp": 1.0, "sc": 1.0, "diamond": 2.309}[kind] * 3.0
    atoms = bulk("Cu", kind, a=edge) if kind == "hcp" else bulk("Cu", kind, a=edge, cubic=True)
    times = {"fcc": (2, 1, 1), "bcc": (2, 2, 1), "hcp": (2, 2, 1), "sc": (2, 2, 2)}
    if kind in times and rng.random() < 0.8:
        atoms = atoms.repeat(times[kind])
    elements = some(ELEMENTS if rng.random() < 0.5 else METALS, int(rng.integers(1, 9)), rng)
    atoms.symbols[:] = rng.choice(elements, size=len(atoms))
    mean = mean_bond(list(atoms.symbols))
    atoms.set_cell(atoms.cell * (mean / 3.0), scale_atoms=True)
    return atoms


def packing(rng: np.random.Generator) -> Atoms:
    """Two to twelve atoms of one to five elements in no order, in a random cell."""
    elements = some(ELEMENTS, int(rng.integers(1, 6)), rng)
    symbols = [str(name) for name in rng.choice(elements, size=int(rng.integers(2, 13)))]
    radii = np.array([covalent_radii[atomic_numbers[name]] for name in symbols])
    volume = 4 / 3 * np.pi * (radii**3).sum() / rng.uniform(0.35, 0.65)
    shape = np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3))
    cell = shape * (volume / abs(np.linalg.det(shape))) ** (1 / 3)
    places: list[np.ndarray] = []
    shifts = np.array(np.meshgrid(*[(-1, 0, 1)] * 3)).reshape(3, -1).T
    for radius in radii:
        best, widest = rng.random(3), -np.inf
        for trial in rng.random((40, 3)):
            others = [(trial - place + shifts) @ cell for place in places]
            gaps = [
                float(np.linalg.norm(one, axis=1).min()) / (radius + radii[number])
                for number, one in enumerate(others)
            ]
            if min(gaps, default=1.0) > widest:
                best, widest = trial, min(gaps, default=1.0)
        places.append(best)
    return Atoms(symbols, scaled_positions=places, cell=cell, pbc=True)


def varied_crystal(rng: np.random.Generator) -> Atoms:
    """A cell of any kind above; its volume, its shape and its atoms moved by random amounts."""
    make = [prototype, binary, metal_lattice, packing][rng.choice(4, p=[0.25, 0.2, 0.25, 0.3])]
    atoms = make(rng)
    if len(atoms) <= 4 and rng.random() < 0.6:
        atoms = atoms.repeat((2, 1, 1) if rng.random() < 0.5 else (2, 2, 1))
    atoms = strained(atoms, rng, 0.08)
    volume = max(atoms.get_volume() * rng.uniform(0.6, 1.15), SMALLEST * len(atoms))
    atoms.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    return rattled(atoms, rng, 0.0, 0.3)
