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

from common import Job, parser
from molecules_dynamics import write_frames
from molecules_nci import jobs_of

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
    jobs = molecules(options.seed)[:MOLECULES]
    script = "tools/mini/molecules_fragments.py"
    write_frames(options.to / NAME, jobs, options.seed, FRAMES, " of small molecules", script)


if __name__ == "__main__":
    main()
