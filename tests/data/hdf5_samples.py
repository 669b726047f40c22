"""Small HDF5 and npz files in the layouts of genuine data sets, made of random numbers.

Groups, names, shapes and types are those of the published files: for Transition1x as its authors'
loader reads them, for QM7-X as the README of the data set lists them.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

ENERGY, FORCES = "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"
REACTIONS = {
    "C2H2N2O": {"rxn2091": ("train", 14), "rxn2092": ("val", 12)},
    "C3H4": {"rxn0007": ("test", 10)},
}
"""Formula, reaction, its split and its number of images."""
NUMBERS = {"C2H2N2O": [6, 6, 7, 7, 8, 1, 1], "C3H4": [6, 6, 6, 1, 1, 1, 1]}


def write_transition1x(path: Path, seed: int = 1) -> Path:
    """Reactions under `data`, linked from the split that each belongs to."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for formula, reactions in REACTIONS.items():
            numbers = NUMBERS[formula]
            for reaction, (split, images) in reactions.items():
                group = file.create_group(f"data/{formula}/{reaction}")
                band = _write_images(group, numbers, images, rng)
                for place, image in (("reactant", 0), ("product", 9)):
                    inner = group.create_group(place)
                    inner["atomic_numbers"] = np.array(numbers)
                    for name, values in band.items():
                        inner[name] = values[image : image + 1]
                _write_images(group.create_group("transition_state"), numbers, 1, rng)
                file.require_group(f"{split}/{formula}")[reaction] = group
    return path


def _write_images(
    group: h5py.Group, numbers: list[int], images: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    shape = (images, len(numbers), 3)
    arrays = {
        "positions": rng.normal(size=shape),
        ENERGY: rng.normal(-8000.0, 1.0, images),
        "wB97x_6-31G(d).atomization_energy": rng.normal(-40.0, 1.0, images),
        FORCES: rng.normal(size=shape),
    }
    group["atomic_numbers"] = np.array(numbers)
    for name, values in arrays.items():
        group.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]))
    return arrays


CONFORMERS = ("Geom-m1-i1-c1-opt", "Geom-m1-i1-c1-d1", "Geom-m1-i1-c1-d2", "Geom-m1-i1-c2-opt")


def write_qm7x(path: Path, molecules: tuple[str, ...] = ("1", "10"), seed: int = 2) -> Path:
    """A group for each conformer of each molecule, with more forces and energies than one."""
    rng = np.random.default_rng(seed)
    numbers = np.array([6, 8, 1, 1])
    with h5py.File(path, "w") as file:
        for molecule in molecules:
            for conformer in CONFORMERS:
                group = file.create_group(f"{molecule}/{conformer.replace('m1', f'm{molecule}')}")
                group["atNUM"] = numbers
                group["atXYZ"] = rng.normal(size=(4, 3))
                pbe0, vdw = rng.normal(size=(2, 4, 3))
                group["pbe0FOR"], group["vdwFOR"], group["totFOR"] = pbe0, vdw, pbe0 + vdw
                energy, dispersion = rng.normal(-3000.0, 1.0, 1), rng.normal(-0.1, 0.01, 1)
                group["ePBE0"], group["eMBD"] = energy, dispersion
                group["ePBE0+MBD"] = energy + dispersion
                group["eDFTB+MBD"] = rng.normal(-300.0, 1.0, 1)
                group["eAT"], group["hCHG"] = rng.normal(size=1), rng.normal(size=4)
    return path


def write_ani1x(path: Path) -> Path:
    """One formula, of whose three structures the second has no triple-zeta label."""
    with h5py.File(path, "w") as file:
        group = file.create_group("C1H4")
        group["atomic_numbers"] = np.array([6, 1, 1, 1, 1], dtype=np.uint8)
        rng = np.random.default_rng(3)
        group["coordinates"] = rng.normal(size=(3, 5, 3)).astype(np.float32)
        for level in ("dz", "tz"):
            forces = rng.normal(size=(3, 5, 3)).astype(np.float32)
            energy = rng.normal(-40.0, 0.1, 3)
            if level == "tz":
                forces[1], energy[1] = np.nan, np.nan
            group[f"wb97x_{level}.energy"], group[f"wb97x_{level}.forces"] = energy, forces
        group["ccsd(t)_cbs.energy"] = np.array([np.nan, np.nan, -40.5])
    return path


def write_rmd17(path: Path, structures: int = 5, compress: bool = False) -> Path:
    """One molecule, with the names of the revised MD17 files."""
    rng = np.random.default_rng(4)
    save = np.savez_compressed if compress else np.savez
    save(
        path,
        nuclear_charges=np.array([6, 6, 8, 1], dtype=np.uint8),
        coords=rng.normal(size=(structures, 4, 3)),
        energies=rng.normal(-97000.0, 5.0, structures),
        forces=rng.normal(size=(structures, 4, 3)),
        old_indices=np.arange(structures),
        old_energies=rng.normal(size=structures),
        old_forces=rng.normal(size=(structures, 4, 3)),
    )
    return path
