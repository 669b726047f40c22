"""``molecules_fragments_gfn2``: small molecules in motion, with GFN2-xTB energies and forces.

The molecules are the BRICS fragments, with hydrogen where bonds were cut, of the molecules of
``molecules_unlabelled``: three to nine atoms other than hydrogen, as QM7-X and ANI-1x have. They
move as those of ``molecules_dynamics_gfn2`` do; four frames of each are kept, well apart.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from rdkit import Chem, RDLogger
from rdkit.Chem import BRICS

from common import Job, parser, run_chunks, write_card
from molecules_dynamics import frames
from molecules_nci import CARDS, conformer, jobs_of, suitable
from periodic import stream

NAME = "molecules_fragments_gfn2"
HEAVY_ATOMS = range(3, 10)
MOLECULES, FRAMES = 2000, 4


def fragments(smiles: str) -> set[str]:
    """Canonical SMILES of a molecule's pieces of a suitable size, cuts filled with hydrogen."""
    pieces: set[str] = set()
    for piece in BRICS.BRICSDecompose(Chem.MolFromSmiles(smiles), keepNonLeafNodes=True):
        molecule = Chem.MolFromSmiles(piece)
        for atom in molecule.GetAtoms():
            if atom.GetAtomicNum() == 0:
                atom.SetAtomicNum(1)
                atom.SetIsotope(0)
        capped = Chem.RemoveHs(molecule)
        if capped.GetNumHeavyAtoms() in HEAVY_ATOMS:
            pieces.add(Chem.MolToSmiles(capped))
    return pieces


def molecules(seed: int) -> list[Job]:
    """Distinct fragments as ids, without coordinates yet, in an order that the seed fixes."""
    found = {
        piece for smiles, _ in jobs_of("molecules_unlabelled", seed) for piece in fragments(smiles)
    }
    listed = sorted(found)
    order = np.random.default_rng(seed).permutation(len(listed))
    return [(listed[index], Atoms()) for index in order]


def main() -> None:
    """Write the chunks and the card."""
    options = parser(__doc__).parse_args()
    RDLogger.DisableLog("rdApp.*")

    def label(smiles: str, _: Atoms) -> list[Atoms | None]:
        molecule = suitable(smiles)
        atoms = None if molecule is None else conformer(molecule, options.seed)
        if atoms is None:
            return []
        charge = Chem.GetFormalCharge(molecule)
        return frames(smiles, atoms, charge, stream(smiles, options.seed), FRAMES)

    card = {
        **CARDS["molecules_gfn2"],
        "domain": "Molecule",
        "periodic": False,
        "labels": ["energy", "forces"],
        "remarks": (
            "Frames of short runs of molecular dynamics of small molecules by the semi-empirical "
            "tight-binding method GFN2-xTB; this is not DFT."
        ),
        "licence": "CC0-1.0 (the NCI list is in the public domain; RDKit, BSD-3-Clause, ships it)",
        "source": ["tools/mini/molecules_fragments.py", "RDKit Data/NCI/first_5K.smi"],
    }
    write_card(options.to / NAME, card, ["rdkit", "ase", "tblite"])
    run_chunks(options.to / NAME, molecules(options.seed)[:MOLECULES], label, chunk=20)


if __name__ == "__main__":
    main()
