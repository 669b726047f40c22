"""How exactly LaMM-L's predictions turn with a structure, by the resolution of its grid.

usage: python benchmarks/equivariance.py [--to FILE]

A non-linearity on a grid of points commutes with rotations to the grid's error only. Random weights
of the preset `lamm-l`, float64, three structures, random rotations; writes
``benchmarks/results/equivariance.json``. It takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk, fcc111, molecule
from scipy.spatial.transform import Rotation

from lamm.bench.timing import provenance
from lamm.files import write_json
from lamm.graph import GraphBatch
from lamm.models import ModelConfig, Potential, build
from lamm.models.presets import PRESETS
from lamm.structure import Structure

ROOT = Path(__file__).parent.parent
RESOLUTIONS = (10, 14, 18, 26)
ROTATIONS = 3
SEED = 0


def structures() -> dict[str, Structure]:
    """A molecule, a slab and a strained crystal, none of them symmetric."""
    rng = np.random.default_rng(SEED)
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    found = {
        "ethanol": molecule("CH3CH2OH"),
        "slab": slab,
        "crystal": bulk("NaCl", "rocksalt", 5.6),
    }
    return {
        name: Structure(
            atomic_numbers=atoms.numbers.astype(np.uint8),
            positions=atoms.positions + rng.normal(0, 0.1, (len(atoms), 3)),
            cell=np.array(atoms.cell),
            pbc=np.array(atoms.pbc),
        )
        for name, atoms in found.items()
    }


def predict(model: Potential, structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Energy and forces (N, 3)."""
    batch = GraphBatch.from_structures([structure], model.graph_config, dtype=torch.float64)
    with torch.no_grad():
        prediction = model(batch)
    return prediction.energy[0].numpy(), prediction.forces[:, 0].numpy()


def errors(resolution: int) -> dict[str, float]:
    """Largest deviations over all structures and rotations, relative to the largest value."""
    encoder = PRESETS["lamm-l"].encoder.model_copy(update={"grid_resolution": resolution})
    model = build(ModelConfig(encoder=encoder), ["one"], SEED).double().eval()
    worst = {"energy": 0.0, "forces": 0.0}
    for structure in structures().values():
        energy, forces = predict(model, structure)
        for turn in Rotation.random(ROTATIONS, rng=SEED).as_matrix():
            turned = replace(
                structure, positions=structure.positions @ turn.T, cell=structure.cell @ turn.T
            )
            new_energy, new_forces = predict(model, turned)
            deviations = {
                "energy": np.abs(new_energy - energy).max() / np.abs(energy).max(),
                "forces": np.abs(new_forces - forces @ turn.T).max() / np.abs(forces).max(),
            }
            worst = {name: max(worst[name], float(deviations[name])) for name in worst}
    return worst


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    path = ROOT / "benchmarks" / "results" / "equivariance.json"
    parser.add_argument("--to", type=Path, default=path)
    options = parser.parse_args()
    result = {str(resolution): errors(resolution) for resolution in RESOLUTIONS}
    settings = {"preset": "lamm-l", "rotations": ROTATIONS, "structures": list(structures())}
    record = {"settings": settings, "relative_error": result, "provenance": provenance(SEED)}
    write_json(options.to, record)
    for resolution, one in result.items():
        sys.stdout.write(f"{resolution:>4} energy {one['energy']:.1e} forces {one['forces']:.1e}\n")


if __name__ == "__main__":
    main()
