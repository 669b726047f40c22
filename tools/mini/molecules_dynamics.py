"""``molecules_dynamics_gfn2``: drug-like molecules in motion, with GFN2-xTB energies and forces.

The molecules are those of ``molecules_gfn2`` with at most 40 atoms. Each starts at its MMFF94s
minimum and moves by GFN2-xTB's own forces (velocity Verlet, 0.5 fs) from velocities of 600 to
3000 K, half of which becomes potential energy; three frames of it are kept, well apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from rdkit import Chem, RDLogger

from common import (
    BOHR,
    HARTREE,
    Job,
    labelled,
    logger,
    parser,
    run_chunks,
    split_of,
    write_card,
)
from molecules_nci import CARDS, conformer, jobs_of, suitable
from periodic import stream

NAME = "molecules_dynamics_gfn2"
MAX_ATOMS, MOLECULES = 40, 900
MAX_FORCE = 25.0
"""Largest force component that is kept, in eV/Å."""
FRAMES, APART, STEP = 3, 14, 0.5 * units.fs


class Gfn2:
    """GFN2-xTB of one molecule; each calculation starts from the last one's density."""

    def __init__(self, atoms: Atoms, charge: int) -> None:
        from tblite.interface import Calculator

        self._calculator = Calculator(
            "GFN2-xTB", atoms.numbers, atoms.positions / BOHR, charge=float(charge)
        )
        self._calculator.set("verbosity", 0)
        self._last = None

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Total energy in eV and forces in eV/Å.

        Raises:
            RuntimeError: it doesn't converge.
        """
        self._calculator.update(positions=positions / BOHR)
        self._last = self._calculator.singlepoint(self._last)
        return float(self._last["energy"]) * HARTREE, -self._last["gradient"] * (HARTREE / BOHR)


def frames(
    name: str, atoms: Atoms, charge: int, rng: np.random.Generator, count: int
) -> list[Atoms | None]:
    """Labelled frames of a short run, `count` of them; those before a failure are kept."""
    moving, method = atoms.copy(), Gfn2(atoms, charge)
    moving.info["split"] = split_of(name)
    kelvin = rng.uniform(600, 3000)
    MaxwellBoltzmannDistribution(moving, temperature_K=kelvin, rng=rng)
    velocities, masses = moving.get_velocities(), moving.get_masses()[:, None]
    del moving.arrays["momenta"]  # of the start alone
    kept: list[Atoms | None] = []
    try:
        _, forces = method(moving.positions)
        for step in range(1, count * APART + 1):
            velocities += 0.5 * STEP * forces / masses
            moving.positions += STEP * velocities
            energy, forces = method(moving.positions)
            velocities += 0.5 * STEP * forces / masses
            if step % APART == 0 and np.abs(forces).max() < MAX_FORCE:
                kept.append(labelled(moving, f"{name}/{step}", energy, forces))
    except RuntimeError as error:
        logger.info("%s: ends early: %s", name, error)
    return kept


def write_frames(
    folder: Path, jobs: list[Job], seed: int, count: int, moving: str, script: str
) -> None:
    """Write the chunks and the card of a subset of molecules in motion.

    Args:
        folder: of the subset, whose name is its.
        jobs: SMILES as ids, without coordinates yet.
        seed: of conformers and velocities.
        count: frames of each molecule.
        moving: what moves, for the card.
        script: what makes the subset.
    """

    def label(smiles: str, _: Atoms) -> list[Atoms | None]:
        molecule = suitable(smiles)
        atoms = None if molecule is None else conformer(molecule, seed)
        if atoms is None:
            return []
        charge = Chem.GetFormalCharge(molecule)
        return frames(smiles, atoms, charge, stream(smiles, seed), count)

    card = {
        **CARDS["molecules_gfn2"],
        "domain": "Molecule",
        "periodic": False,
        "labels": ["energy", "forces"],
        "remarks": (
            f"Frames of short runs of molecular dynamics{moving} by the semi-empirical "
            "tight-binding method GFN2-xTB; this is not DFT."
        ),
        "licence": "CC0-1.0 (the NCI list is in the public domain; RDKit, BSD-3-Clause, ships it)",
        "source": [script, "RDKit Data/NCI/first_5K.smi"],
    }
    write_card(folder, card, ["rdkit", "ase", "tblite"])
    run_chunks(folder, jobs, label, chunk=20)


def main() -> None:
    """Write the chunks and the card."""
    options = parser(__doc__).parse_args()
    RDLogger.DisableLog("rdApp.*")
    jobs: list[Job] = []
    for smiles, atoms in jobs_of("molecules_gfn2", options.seed):
        molecule = suitable(smiles)
        if molecule is not None and molecule.GetNumAtoms() <= MAX_ATOMS:
            jobs.append((smiles, atoms))
    script = "tools/mini/molecules_dynamics.py"
    write_frames(options.to / NAME, jobs[:MOLECULES], options.seed, FRAMES, "", script)


if __name__ == "__main__":
    main()
