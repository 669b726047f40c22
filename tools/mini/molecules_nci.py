"""Drug-like molecules of the NCI list: unlabelled conformers, and GFN2-xTB energies of others.

``molecules_unlabelled`` is made as PubChem3D is: one MMFF94s minimum per molecule, started from
ETKDGv3 coordinates, with PubChem3D's filter (one component, at most 50 heavy atoms and 15 rotatable
bonds, 11 elements, MMFF94s parameters). ``molecules_gfn2`` has one total energy per molecule, as
QMugs has, by GFN2-xTB, one of QMugs' own two levels. No molecule is in both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from rdkit import Chem, RDConfig, RDLogger
from rdkit.Chem import AllChem, rdMolDescriptors

from common import BOHR, HARTREE, Job, labelled, logger, parser, run_chunks, write_card

ELEMENTS = {1, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53}
SIZES = {"molecules_unlabelled": 2800, "molecules_gfn2": 1200}
CARDS = {
    "molecules_unlabelled": {
        "task": "denoising",
        "functional": "none (MMFF94s geometry)",
        "is_dft": False,
        "labels": [],
        "energy_convention": "no energy",
        "remarks": (
            "No label: MMFF94s force-field minima, as PubChem3D's conformers are. "
            "The structures are not DFT minima."
        ),
        "citation": [
            "S. Wang et al., J. Chem. Inf. Model. 60, 2044 (2020) (ETKDGv3)",
            "T. A. Halgren, J. Comput. Chem. 20, 720 (1999) (MMFF94s)",
        ],
    },
    "molecules_gfn2": {
        "task": "S2EF-Total",
        "functional": "GFN2-xTB",
        "is_dft": False,
        "labels": ["energy"],
        "energy_convention": "total energy of the valence electrons",
        "remarks": (
            "Energies of the semi-empirical tight-binding method GFN2-xTB on MMFF94s minima; "
            "this is not DFT."
        ),
        "citation": [
            "C. Bannwarth, S. Ehlert and S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019)",
        ],
    },
}


def suitable(smiles: str) -> Chem.Mol | None:
    """The molecule with hydrogens if PubChem3D's filter lets it pass, else None."""
    molecule = None if "." in smiles else Chem.MolFromSmiles(smiles)
    if molecule is None or not 1 <= molecule.GetNumHeavyAtoms() <= 50:
        return None
    if rdMolDescriptors.CalcNumRotatableBonds(molecule) > 15:
        return None
    molecule = Chem.AddHs(molecule)
    atoms = list(molecule.GetAtoms())
    if len(atoms) < 4 or {atom.GetAtomicNum() for atom in atoms} - ELEMENTS:
        return None
    if any(atom.GetNumRadicalElectrons() or atom.GetIsotope() for atom in atoms):
        return None
    return molecule if AllChem.MMFFHasAllMoleculeParams(molecule) else None


def conformer(molecule: Chem.Mol, seed: int) -> Atoms | None:
    """An MMFF94s minimum, or None where embedding or minimisation fails."""
    settings = AllChem.ETKDGv3()
    settings.randomSeed, settings.maxIterations = seed + 1, 50
    if AllChem.EmbedMolecule(molecule, settings) != 0:
        return None
    if AllChem.MMFFOptimizeMolecule(molecule, mmffVariant="MMFF94s", maxIters=2000) != 0:
        return None
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    return Atoms(numbers, np.round(molecule.GetConformer().GetPositions(), 4))


def nci_smiles() -> list[str]:
    """Distinct SMILES of the list that RDKit ships, in its order."""
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    return list(dict.fromkeys(line.split()[0] for line in path.read_text().splitlines() if line))


def jobs_of(name: str, seed: int) -> list[Job]:
    """The subset's SMILES as ids, without coordinates yet; the two subsets share none."""
    smiles = nci_smiles()
    order = np.random.default_rng(seed).permutation(len(smiles))
    chosen: list[str] = []
    seen: set[str] = set()
    for index in order:
        molecule = suitable(smiles[index])
        canonical = None if molecule is None else Chem.MolToSmiles(Chem.RemoveHs(molecule))
        if canonical is not None and canonical not in seen:
            seen.add(canonical)
            chosen.append(canonical)
    cut = SIZES["molecules_unlabelled"]
    part = chosen[:cut] if name == "molecules_unlabelled" else chosen[cut:]
    return [(text, Atoms()) for text in part[: SIZES[name]]]


def gfn2_energy(atoms: Atoms, charge: int) -> float | None:
    """GFN2-xTB total energy in eV, or None where it doesn't converge."""
    from tblite.interface import Calculator

    calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / BOHR, charge=float(charge))
    calculator.set("verbosity", 0)
    try:
        return float(calculator.singlepoint()["energy"]) * HARTREE
    except RuntimeError as error:
        logger.info("left out: %s", error)
        return None


def main() -> None:
    """Write the chunks and the card of one subset."""
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("subset", choices=sorted(SIZES))
    options = arguments.parse_args()
    RDLogger.DisableLog("rdApp.*")
    name = options.subset

    def label(smiles: str, _: Atoms) -> list[Atoms | None]:
        molecule = suitable(smiles)
        atoms = None if molecule is None else conformer(molecule, options.seed)
        if atoms is None:
            return []
        if name == "molecules_unlabelled":
            return [labelled(atoms, smiles)]
        energy = gfn2_energy(atoms, Chem.GetFormalCharge(molecule))
        return [] if energy is None else [labelled(atoms, smiles, energy)]

    packages = ["rdkit", "ase"] + (["tblite"] if name == "molecules_gfn2" else [])
    shared = {
        "domain": "Molecule",
        "periodic": False,
        "licence": "CC0-1.0 (the NCI list is in the public domain; RDKit, BSD-3-Clause, ships it)",
        "source": ["tools/mini/molecules_nci.py", "RDKit Data/NCI/first_5K.smi"],
    }
    write_card(options.to / name, {**shared, **CARDS[name]}, packages)
    run_chunks(options.to / name, jobs_of(name, options.seed), label, chunk=100)


if __name__ == "__main__":
    main()
