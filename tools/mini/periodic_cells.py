"""Geometries of the periodic subsets: slabs with adsorbates, ionic crystals, disordered cells."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bcc110, bulk, fcc100, fcc111, hcp0001, molecule
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.symbols import symbols2numbers

from common import closest_contact

FCC = ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"]
BCC = ["V", "Cr", "Fe", "Nb", "Mo"]
HCP = ["Mg", "Ti", "Co", "Zn", "Zr"]
CATIONS = [
    "Li", "Na", "Mg", "Al", "Si", "K", "Ca", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn",
    "Zr", "Nb", "Mo", "Pd", "Ag",
]  # fmt: skip
ANIONS = ["O", "O", "O", "O", "O", "N", "F", "S"]
ADSORBATES = ["H", "O", "C", "N", "OH", "CO", "NO", "H2O", "NH3", "CH3", "CH4", "NH2", "CH", "H2CO"]
DISORDERED = [
    "Mg", "Al", "Si", "Ca", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Zr", "Nb", "Mo",
    "Pd", "Ag", "O", "N", "C", "S",
]  # fmt: skip


def rattled(atoms: Atoms, rng: np.random.Generator, low: float, high: float) -> Atoms:
    """Every atom that isn't fixed moved by Gaussian noise of a random width, in Å."""
    moved = atoms.copy()
    noise = rng.normal(0, rng.uniform(low, high), moved.positions.shape)
    for constraint in moved.constraints:
        noise[constraint.index] = 0
    moved.positions += noise
    return moved


def strained(atoms: Atoms, rng: np.random.Generator, size: float) -> Atoms:
    """The cell deformed by a random symmetric strain of up to `size` per component."""
    strain = rng.uniform(-size, size, (3, 3))
    strain = (strain + strain.T) / 2
    moved = atoms.copy()
    moved.set_cell(moved.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return moved


def adsorbate(name: str) -> Atoms:
    """A small molecule or a single atom."""
    return Atoms(name) if name in ("H", "O", "C", "N") else molecule(name)


def slab(rng: np.random.Generator) -> Atoms:
    """A metal or alloy slab of two or three layers and an adsorbate; the lowest layer is fixed."""
    metal = str(rng.choice(FCC + BCC + HCP))
    size = (2, int(rng.integers(2, 4)), int(rng.integers(2, 4)))
    if metal in FCC:
        facet = fcc111 if rng.random() < 0.6 else fcc100
        sites = ["ontop", "bridge", "hollow" if facet is fcc100 else "fcc"]
    elif metal in BCC:
        facet, sites = bcc110, ["ontop", "longbridge", "hollow"]
    else:
        facet, sites = hcp0001, ["ontop", "bridge", "fcc"]
    atoms = facet(metal, size=size, vacuum=6.0)
    atoms.pbc = True
    bottom = atoms.positions[:, 2] < atoms.positions[:, 2].min() + 0.5
    others = [name for name in FCC + BCC + HCP if name != metal]
    for _ in range(int(rng.integers(0, 3))):  # pure, binary or ternary
        guest = str(rng.choice(others))
        share = rng.uniform(0.1, 0.5)
        atoms.symbols[np.flatnonzero(rng.random(len(atoms)) < share)] = guest
    guest_molecule = adsorbate(str(rng.choice(ADSORBATES)))
    guest_molecule.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COP")
    height = rng.uniform(1.1, 2.3) + np.ptp(guest_molecule.positions[:, 2]) / 2
    add_adsorbate(atoms, guest_molecule, height, position=str(rng.choice(sites)))
    atoms.set_constraint(FixAtoms(indices=np.flatnonzero(bottom)))
    atoms.info = {}
    return atoms


def _lattice_constant(symbols: list[str], prototype: str) -> float:
    radii = [covalent_radii[number] for number in symbols2numbers("".join(symbols))]
    cation, anion = float(np.mean(radii[:-1])), radii[-1]
    bond = 0.93 * (cation + anion)
    return {
        "rocksalt": 2.0 * bond,
        "zincblende": 4.0 / np.sqrt(3) * bond,
        "fluorite": 4.0 / np.sqrt(3) * bond,
        "perovskite": 2.0 * bond,
        "rutile": 2.35 * bond,
    }[prototype]


def ionic_crystal(rng: np.random.Generator) -> Atoms:
    """An oxide, nitride, fluoride or sulfide in one of five prototypes, cations mixed at random."""
    prototype = str(
        rng.choice(["rocksalt", "rocksalt", "zincblende", "fluorite", "perovskite", "rutile"])
    )
    anion = str(rng.choice(ANIONS))
    cations = [
        str(name) for name in rng.choice(CATIONS, size=int(rng.integers(1, 4)), replace=False)
    ]
    length = _lattice_constant([*cations, anion], prototype)
    if prototype == "perovskite":
        atoms = Atoms(
            ["Ca", "Ti", anion, anion, anion],
            scaled_positions=[(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)],
            cell=[length] * 3,
            pbc=True,
        )
    elif prototype == "rutile":
        u = 0.305
        atoms = Atoms(
            ["Ti", "Ti", anion, anion, anion, anion],
            scaled_positions=[
                (0, 0, 0), (0.5, 0.5, 0.5), (u, u, 0), (-u, -u, 0),
                (0.5 + u, 0.5 - u, 0.5), (0.5 - u, 0.5 + u, 0.5),
            ],
            cell=[length, length, 0.65 * length],
            pbc=True,
        )  # fmt: skip
    else:
        formula = f"Ti{anion}" + (f"{anion}" if prototype == "fluorite" else "")
        atoms = bulk(formula, prototype, a=length, cubic=True)
    sites = np.flatnonzero([symbol != anion for symbol in atoms.get_chemical_symbols()])
    repeat = (2, 1, 1) if len(atoms) <= 6 and rng.random() < 0.8 else (1, 1, 1)
    atoms = atoms.repeat(repeat)
    sites = np.flatnonzero([symbol != anion for symbol in atoms.get_chemical_symbols()])
    atoms.symbols[sites] = rng.choice(cations, size=len(sites))
    if rng.random() < 0.25:  # some anions replaced, or missing
        anions = np.flatnonzero([symbol == anion for symbol in atoms.get_chemical_symbols()])
        chosen = rng.choice(anions, size=max(1, len(anions) // 6), replace=False)
        if rng.random() < 0.5:
            atoms.symbols[chosen] = str(rng.choice(["N", "F", "S", "C", "H"]))
        else:
            del atoms[chosen]
    return atoms


def disordered_cell(rng: np.random.Generator) -> Atoms:
    """A cell of 12 to 20 atoms with three to eight elements in no order, on a distorted lattice."""
    kind = str(rng.choice(["fcc", "bcc", "sc", "rocksalt", "perovskite"]))
    count = int(rng.integers(3, 9))
    elements = [str(name) for name in rng.choice(DISORDERED, size=count, replace=False)]
    if kind in ("rocksalt", "perovskite"):
        length = _lattice_constant([*elements, "O"], kind)
        atoms = (
            bulk("MgO", "rocksalt", a=length, cubic=True).repeat((2, 1, 1))
            if kind == "rocksalt"
            else Atoms(
                "CaTiO3",
                scaled_positions=[
                    (0.5, 0.5, 0.5),
                    (0, 0, 0),
                    (0.5, 0, 0),
                    (0, 0.5, 0),
                    (0, 0, 0.5),
                ],
                cell=[length] * 3,
                pbc=True,
            ).repeat((2, 2, 1))
        )
        metals = [name for name in elements if name not in ("O", "N", "C", "S")] or ["Mg"]
        sites = np.flatnonzero(np.array(atoms.get_chemical_symbols()) != "O")
        atoms.symbols[sites] = rng.choice(metals, size=len(sites))
        anions = np.flatnonzero(np.array(atoms.get_chemical_symbols()) == "O")
        swapped = anions[rng.random(len(anions)) < 0.3]
        atoms.symbols[swapped] = rng.choice(elements, size=len(swapped))
    else:
        repeat = {"fcc": (2, 2, 1), "bcc": (2, 2, 2), "sc": (3, 2, 2)}[kind]
        atoms = bulk("Cu", kind, a=4.0, cubic=True).repeat(repeat)
        atoms.symbols[:] = rng.choice(elements, size=len(atoms))
        spheres = 4 / 3 * np.pi * (covalent_radii[atoms.numbers] ** 3).sum()
        filling = {"fcc": 0.74, "bcc": 0.68, "sc": 0.60}[kind]
        atoms.set_cell(
            atoms.cell * (spheres / filling / atoms.get_volume()) ** (1 / 3), scale_atoms=True
        )
    atoms = strained(atoms, rng, 0.06)
    atoms.set_cell(atoms.cell * rng.uniform(0.9, 1.1) ** (1 / 3), scale_atoms=True)
    return rattled(atoms, rng, 0.05, 0.3)


def acceptable(atoms: Atoms, contact: float = 0.65) -> bool:
    """Whether no two atoms are closer than `contact` times the sum of their covalent radii."""
    return len(atoms) >= 2 and closest_contact(atoms) > contact
