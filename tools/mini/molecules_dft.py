"""Small molecules with DFT energies and forces, at two levels of theory (PySCF).

``molecules_wb97x``: ωB97X/6-31G(d), the level of Transition1x. ``molecules_pbe0``: PBE0/def2-SVP,
near that of QM7-X (without its dispersion term). The geometries are what a potential has to know
beside minima: displaced atoms, stretched and compressed bonds, colliding molecules, paths between
isomers.

Closed-shell restricted Kohn-Sham, density fitting, grid level 2, energies converged to 1e-8
Hartree. An SCF that doesn't converge and a force component above 25 eV/Å leave a structure out.
"""

from __future__ import annotations

import argparse

import numpy as np
from ase import Atoms
from pyscf import dft, gto
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem

from common import (
    BOHR,
    HARTREE,
    Job,
    closest_contact,
    labelled,
    logger,
    parser,
    run_chunks,
    write_card,
)

MAX_FORCE = 25.0
"""Largest force component that is kept, in eV/Å."""
CLOSEST = 0.72
"""Smallest distance that is computed, in sums of covalent radii."""
LARGEST = 11
"""Atoms of the largest structure, two colliding molecules together."""

MOLECULES = {
    "molecules_wb97x": (
        "C CC C=C C#C CO C=O CN C#N O N CCO COC CC=O C=CC CC#C CC#N CF FC(F)F C=CF NC=O "
        "OC=O NN OO NO N=N C1CC1 C1CO1 C=C=C O=C=O CS S CSC C=S N=C=O OCO C#CC=O FCF "
        "CC(=O)O C=CO OCC=O F N#CC=C"
    ),
    "molecules_pbe0": (
        "C CC C=C C#C CO C=O CN O N CCO CC=O CC#N CCl ClCCl C=CCl NC=O OC=O C1CC1 C1CN1 "
        "C1CO1 C=C=O O=S=O CS S SC=O C=S N=CO CC=N C=NO CON C#CCl NC#N CF FC=O Cl C=CC#N "
        "CSC NCO OCO SCO C=CS NC=S ClC=O"
    ),
}
LEVELS = {"molecules_wb97x": ("wb97x", "6-31g*"), "molecules_pbe0": ("pbe0", "def2-svp")}
NAMES = {"molecules_wb97x": "ωB97X/6-31G(d)", "molecules_pbe0": "PBE0/def2-SVP"}
CITATIONS = {
    "molecules_wb97x": "J.-D. Chai and M. Head-Gordon, J. Chem. Phys. 128, 084106 (2008)",
    "molecules_pbe0": "C. Adamo and V. Barone, J. Chem. Phys. 110, 6158 (1999)",
}


def embed(smiles: str, seed: int) -> Atoms:
    """An MMFF94s minimum of a molecule, from ETKDGv3 coordinates."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=seed + 1)
    if AllChem.MMFFHasAllMoleculeParams(molecule):
        AllChem.MMFFOptimizeMolecule(molecule, mmffVariant="MMFF94s")
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    atoms = Atoms(numbers, molecule.GetConformer().GetPositions())
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    atoms.info["bonds"] = bonds
    return atoms


def displaced(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Every coordinate moved by Gaussian noise of 0.03 to 0.15 Å."""
    moved = atoms.copy()
    moved.positions += rng.normal(0, rng.uniform(0.03, 0.15), moved.positions.shape)
    return moved


def stretched(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One bond set to 0.85 to 1.6 times its length, what hangs on either end moving along."""
    moved = displaced(atoms, rng)
    bonds = atoms.info["bonds"]
    first, second = bonds[rng.integers(len(bonds))]
    side, front = {second}, [second]
    while front:  # the atoms that stay with `second` when the bond is cut
        here = front.pop()
        for pair in bonds:
            if here in pair and set(pair) != {first, second}:
                other = pair[0] if pair[1] == here else pair[1]
                if other not in side:
                    side.add(other)
                    front.append(other)
    vector = moved.positions[second] - moved.positions[first]
    factor = rng.uniform(0.85, 1.6)
    movers = [second] if first in side else sorted(side)  # in a ring only the atom itself moves
    moved.positions[movers] += (factor - 1) * vector
    return moved


def colliding(atoms: Atoms, partner: Atoms, rng: np.random.Generator) -> Atoms:
    """A second molecule, turned at random, 1.4 to 3.2 Å from the first at the closest."""
    left, right = displaced(atoms, rng), displaced(partner, rng)
    right.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COP")
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    wanted = rng.uniform(1.4, 3.2)
    right.positions += left.positions.mean(0) - right.positions.mean(0)
    for distance in np.arange(0.0, 12.0, 0.05):
        shifted = right.positions + distance * direction
        gaps = np.linalg.norm(left.positions[:, None] - shifted[None], axis=-1)
        if gaps.min() >= wanted:
            break
    right.positions = shifted
    return left + right


def on_path(first: Atoms, second: Atoms, rng: np.random.Generator) -> Atoms:
    """A point on the straight path between two conformers or mirror forms of a molecule."""
    share = rng.uniform(0.1, 0.9)
    moved = displaced(first, rng)
    aligned = second.positions - second.positions.mean(0) + first.positions.mean(0)
    moved.positions += share * (aligned - first.positions)
    return moved


def geometries(name: str, per_molecule: int, seed: int) -> list[Job]:
    """All geometries of a subset, with ids that name molecule, kind and number."""
    rng = np.random.default_rng([seed, sorted(MOLECULES).index(name)])
    molecules = {smiles: embed(smiles, seed) for smiles in MOLECULES[name].split()}
    small = [atoms for atoms in molecules.values() if len(atoms) <= 5]
    jobs: list[Job] = []
    for smiles, atoms in molecules.items():
        other = embed(smiles, seed + 17)
        for number in range(per_molecule):
            kind = ("displaced", "stretched", "colliding", "displaced", "path")[number % 5]
            for _ in range(20):
                if kind == "stretched" and atoms.info["bonds"]:
                    geometry = stretched(atoms, rng)
                elif kind == "colliding" and len(atoms) <= 8:
                    geometry = colliding(atoms, small[rng.integers(len(small))], rng)
                elif kind == "path":
                    geometry = on_path(atoms, other, rng)
                else:
                    geometry = displaced(atoms, rng)
                if len(geometry) <= LARGEST and closest_contact(geometry) > CLOSEST:
                    jobs.append((f"{smiles}/{kind}/{number}", geometry))
                    break
    order = rng.permutation(len(jobs))  # any finished part covers all molecules
    return [jobs[index] for index in order]


def compute(atoms: Atoms, functional: str, basis: str) -> tuple[float, np.ndarray] | None:
    """Energy in eV and forces in eV/Å of a closed-shell molecule; None where SCF fails."""
    molecule = gto.M(
        atom=list(zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)),
        basis=basis,
        unit="Angstrom",
        verbose=0,
    )
    field = dft.RKS(molecule, xc=functional).density_fit()
    field.grids.level = 2
    field.conv_tol = 1e-8
    energy = field.kernel()
    if not field.converged:
        return None
    return energy * HARTREE, -field.nuc_grad_method().kernel() * HARTREE / BOHR


def check_forces(name: str, jobs: list[Job], step: float = 0.005) -> None:
    """Log how far the forces of two structures are from finite differences of the energy."""
    for identifier, atoms in jobs[:2]:
        _, forces = compute(atoms, *LEVELS[name])
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[0, 0] += sign * step
            energies.append(compute(moved, *LEVELS[name])[0])
        numerical = -(energies[0] - energies[1]) / (2 * step)
        logger.info("%s: force %.5f, numerical %.5f eV/Å", identifier, forces[0, 0], numerical)


def main() -> None:
    """Write the chunks and the card of one subset."""
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("subset", choices=sorted(MOLECULES))
    arguments.add_argument("--per-molecule", type=int, default=12)
    arguments.add_argument("--limit", type=int, default=440, help="structures to compute")
    arguments.add_argument("--check", action="store_true", help="compare two forces and stop")
    options = arguments.parse_args()
    RDLogger.DisableLog("rdApp.*")
    name = options.subset
    jobs = geometries(name, options.per_molecule, options.seed)[: options.limit]
    if options.check:
        check_forces(name, jobs)
        return
    functional, basis = LEVELS[name]
    write_card(
        options.to / name,
        {
            "domain": "Molecule",
            "task": "S2EF-Total",
            "functional": NAMES[name],
            "is_dft": True,
            "remarks": (
                f"Kohn-Sham DFT, {NAMES[name]}, restricted closed shell, density fitting, "
                "grid level 2. Displaced, stretched, colliding and interpolated geometries of "
                "small molecules."
            ),
            "labels": ["energy", "forces"],
            "periodic": False,
            "energy_convention": "total energy of all electrons",
            "licence": "CC0-1.0",
            "citation": [CITATIONS[name], "Q. Sun et al., J. Chem. Phys. 153, 024109 (2020)"],
            "source": ["tools/mini/molecules_dft.py"],
        },
        ["pyscf", "rdkit", "ase"],
    )

    def label(identifier: str, atoms: Atoms) -> list[Atoms | None]:
        result = compute(atoms, functional, basis)
        if result is None or np.abs(result[1]).max() > MAX_FORCE:
            logger.info("%s left out: %s", identifier, "SCF" if result is None else "large force")
            return []
        return [labelled(atoms, identifier, *result)]

    run_chunks(options.to / name, jobs, label)


if __name__ == "__main__":
    main()
