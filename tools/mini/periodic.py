"""Periodic subsets, labelled by published universal potentials; none of them is DFT.

``slabs_chgnet`` (like OC20): metal and alloy slabs with adsorbates along short relaxations.
``oxides_chgnet`` (in OC22's place): oxides and their kin, rattled, strained and heated.
``oxides_is2re_chgnet``: the structure before a relaxation, the energy after it.
``downstream_sevennet``: disordered cells of three to eight elements, in the spirit of HME21,
labelled by another potential than every subset above; split by chemical formula.
``crystals_chgnet``: 84 elements in common prototypes, alloys and random packings.
``structure_types_chgnet``: known structure types with other elements, on their way to rest.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS, FIRE

from common import Job, labelled, parser, run_chunks, split_of, write_card
from crystal_cells import varied_crystal
from periodic_cells import acceptable, disordered_cell, ionic_crystal, rattled, slab, strained
from structure_types import apart, known_type, usable

CHGNET = "B. Deng et al., Nat. Mach. Intell. 5, 1031 (2023) (CHGNet)"
SEVENNET = "Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024) (SevenNet)"
MAX_FORCE = 20.0
"""Largest force component that is kept, in eV/Å."""
DOWNHILL, LONGEST = 0.06, 0.15
"""A step downhill: Å per eV/Å of force, and the most that a coordinate moves."""
TYPE_STEPS, MOVED_AT = 5, 3
"""Structures of a system of ``structure_types_chgnet``, and which is rattled and strained."""
STIFFNESS, WIDEST = 1.8, 0.04
"""The cell's answer to pressure: eV/Å³ per unit of strain, and the largest strain of a step."""
SIZES = {
    "slabs_chgnet": 150,
    "oxides_chgnet": 320,
    "oxides_is2re_chgnet": 180,
    "downstream_sevennet": 900,
    "crystals_chgnet": 2000,
    "structure_types_chgnet": 2400,
}
"""Systems per subset; some give several structures each."""
SEEDS = {
    "downstream_sevennet": 0,
    "oxides_chgnet": 1000,
    "oxides_is2re_chgnet": 2000,
    "slabs_chgnet": 3000,
    "crystals_chgnet": 4000,
    "structure_types_chgnet": 5000,
}
"""What is added to the seed, so that no two subsets share a stream."""
CARDS = {
    "slabs_chgnet": {
        "domain": "Catalyst",
        "task": "S2EF-Total",
        "labels": ["energy", "forces"],
        "remarks": "Metal slabs with adsorbates along relaxations, and rattled.",
    },
    "oxides_chgnet": {
        "domain": "Oxide",
        "task": "S2EF-Total",
        "labels": ["energy", "forces", "stress"],
        "remarks": "Oxides, nitrides, fluorides and sulfides: rattled, strained, heated.",
    },
    "oxides_is2re_chgnet": {
        "domain": "Oxide",
        "task": "IS2RE-Total",
        "labels": ["energy"],
        "remarks": (
            "Initial structures with the energy of the relaxed structure "
            "(positions relaxed in a fixed cell, largest force below 0.1 eV/Å)."
        ),
    },
    "downstream_sevennet": {
        "domain": "Disordered",
        "task": "S2EF-Total",
        "labels": ["energy", "forces", "stress"],
        "remarks": "Disordered multi-element cells, split by formula; held out of pre-training.",
    },
    "crystals_chgnet": {
        "domain": "Crystal",
        "task": "S2EF-Total",
        "labels": ["energy", "forces", "stress"],
        "remarks": "84 elements in common prototypes, alloys and random packings, and rattled.",
    },
    "structure_types_chgnet": {
        "domain": "Crystal",
        "task": "S2EF-Total",
        "labels": ["energy", "forces", "stress"],
        "remarks": (
            "Structure types of the AFLOW library (as pymatgen 2026.10.24 carries it, MIT) with "
            "other elements, mixed sites, vacancies and surfaces; along steps downhill, and "
            "rattled."
        ),
    },
}


def potential(name: str) -> Calculator:
    """The ASE calculator that labels a subset."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if name == "downstream_sevennet":
        from sevenn.calculator import SevenNetCalculator

        return SevenNetCalculator("7net-0", device="cpu")
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu")


def evaluated(atoms: Atoms, name: str, calculator: Calculator, stress: bool) -> Atoms | None:
    """The structure with its labels, or None where a force is too large to be of use."""
    copy = atoms.copy()
    copy.calc = calculator
    forces = copy.get_forces(apply_constraint=False)
    if not np.isfinite(forces).all() or np.abs(forces).max() > MAX_FORCE:
        return None
    return labelled(
        copy,
        name,
        float(copy.get_potential_energy()),
        forces.astype(np.float64),
        copy.get_stress().astype(np.float64) if stress else None,
    )


def relaxation_frames(atoms: Atoms, calculator: Calculator, steps: int, every: int) -> list[Atoms]:
    """Structures along a relaxation: the first, and each `every` steps."""
    moving = atoms.copy()
    moving.calc = calculator
    frames: list[Atoms] = []
    optimizer = FIRE(moving, logfile=None)
    optimizer.attach(lambda: frames.append(moving.copy()), interval=every)
    optimizer.run(fmax=0.05, steps=steps)
    return frames


def heated_frame(
    atoms: Atoms, calculator: Calculator, rng: np.random.Generator, steps: int = 25
) -> Atoms:
    """The structure after a short Langevin run at 600 to 2000 K."""
    moving = atoms.copy()
    moving.calc = calculator
    kelvin = rng.uniform(600, 2000)
    MaxwellBoltzmannDistribution(moving, temperature_K=kelvin, rng=rng)
    Langevin(moving, 2 * units.fs, temperature_K=kelvin, friction=0.02 / units.fs, rng=rng).run(
        steps
    )
    return moving


def systems(
    name: str,
    make: Callable[[np.random.Generator], Atoms],
    count: int,
    seed: int,
    good: Callable[[Atoms], bool] = acceptable,
) -> list[Job]:
    """`count` systems that are `good` and no two alike, each from a random stream of its own."""
    jobs: list[Job] = []
    known: set[bytes] = set()
    number = 0
    while len(jobs) < count:
        rng = np.random.default_rng([seed, number])
        atoms = make(rng)
        geometry = atoms.numbers.tobytes() + np.round(atoms.positions, 6).tobytes()
        if good(atoms) and geometry not in known:
            known.add(geometry)
            jobs.append((f"{name}/{number:05d}", atoms))
        number += 1
    return jobs


def stream(identifier: str, seed: int) -> np.random.Generator:
    """The random stream of one system, the same whatever was made before it."""
    digest = hashlib.blake2b(f"{seed}/{identifier}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def slab_structures(
    identifier: str, atoms: Atoms, calculator: Calculator, rng: np.random.Generator
) -> list[Atoms | None]:
    """Frames of a relaxation and rattled copies of the last."""
    frames = relaxation_frames(atoms, calculator, steps=14, every=5)
    frames += [rattled(frames[-1], rng, 0.03, 0.15) for _ in range(2)]
    return [
        evaluated(frame, f"{identifier}/{number}", calculator, stress=False)
        for number, frame in enumerate(frames)
        if acceptable(frame, 0.5)
    ]


def oxide_structures(
    identifier: str, atoms: Atoms, calculator: Calculator, rng: np.random.Generator
) -> list[Atoms | None]:
    """A rattled and a strained copy, and for one system in seven a heated one."""
    relaxed = relaxation_frames(atoms, calculator, steps=6, every=6)[-1]
    frames = [
        rattled(relaxed, rng, 0.02, 0.3),
        rattled(strained(relaxed, rng, 0.08), rng, 0.01, 0.12),
    ]
    if rng.random() < 0.15:
        frames.append(heated_frame(relaxed, calculator, rng))
    return [
        evaluated(frame, f"{identifier}/{number}", calculator, stress=True)
        for number, frame in enumerate(frames)
        if acceptable(frame, 0.55)
    ]


def relaxed_energy(
    identifier: str, atoms: Atoms, calculator: Calculator, rng: np.random.Generator
) -> list[Atoms | None]:
    """The initial structure with the relaxed energy; nothing where it doesn't converge."""
    initial = rattled(strained(atoms, rng, 0.03), rng, 0.02, 0.15)
    moving = initial.copy()
    moving.calc = calculator
    if not BFGS(moving, logfile=None).run(fmax=0.1, steps=70):
        return []
    return [labelled(initial, identifier, float(moving.get_potential_energy()))]


def crystal_structures(
    identifier: str, atoms: Atoms, calculator: Calculator, rng: np.random.Generator
) -> list[Atoms | None]:
    """The structure as it is, and after a short relaxation, which has smaller forces."""
    atoms.info["split"] = split_of(identifier)
    first = evaluated(atoms, f"{identifier}/0", calculator, stress=True)
    if first is None:  # a relaxation would only tear it apart
        return []
    frames = relaxation_frames(atoms, calculator, steps=4, every=4)
    last = frames[-1]
    if not acceptable(last, 0.55):
        return [first]
    return [first, evaluated(last, f"{identifier}/1", calculator, stress=True)]


def downhill(atoms: Atoms) -> Atoms:
    """Atoms moved along their forces and, where it isn't a slab, the volume along its pressure."""
    moved = atoms.copy()
    moved.positions += np.clip(DOWNHILL * atoms.get_forces(), -LONGEST, LONGEST)
    if not atoms.info.get("slab"):
        pressure = -float(atoms.get_stress()[:3].mean())
        scale = 1 + float(np.clip(pressure / STIFFNESS, -WIDEST, WIDEST))
        moved.set_cell(moved.cell * scale, scale_atoms=True)
    return moved


def type_structures(
    identifier: str, atoms: Atoms, calculator: Calculator, rng: np.random.Generator
) -> list[Atoms | None]:
    """What is computed on the way to rest, and once more after the atoms and the cell are moved."""
    split = split_of(identifier)
    kept: list[Atoms | None] = []
    for number in range(TYPE_STEPS):
        if number == MOVED_AT:
            atoms = rattled(strained(atoms, rng, 0.06), rng, 0.05, 0.3)
        if not apart(atoms):
            break
        atoms.info["split"] = split
        atoms.calc = calculator
        kept.append(evaluated(atoms, f"{identifier}/{number}", calculator, stress=True))
        atoms = downhill(atoms)
    return kept


def disordered_structure(
    identifier: str, atoms: Atoms, calculator: Calculator, rng: np.random.Generator
) -> list[Atoms | None]:
    """The cell with its labels; its split follows from the formula."""
    digest = hashlib.blake2b(atoms.get_chemical_formula().encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "little") / 2**64
    result = evaluated(atoms, identifier, calculator, stress=True)
    if result is not None:
        result.info["split"] = "train" if share < 0.7 else "val" if share < 0.8 else "test"
    return [result]


MAKERS = {
    "slabs_chgnet": (slab, slab_structures),
    "oxides_chgnet": (ionic_crystal, oxide_structures),
    "oxides_is2re_chgnet": (ionic_crystal, relaxed_energy),
    "downstream_sevennet": (disordered_cell, disordered_structure),
    "crystals_chgnet": (varied_crystal, crystal_structures),
    "structure_types_chgnet": (known_type, type_structures),
}


def main() -> None:
    """Write the chunks and the card of one subset."""
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("subset", choices=sorted(MAKERS))
    options = arguments.parse_args()
    name = options.subset
    make, structures = MAKERS[name]
    seed = options.seed + SEEDS[name]
    good = usable if make is known_type else acceptable
    jobs = systems(name, make, SIZES[name], seed, good)
    calculator = potential(name)

    def label(identifier: str, atoms: Atoms) -> list[Atoms | None]:
        return structures(identifier, atoms, calculator, stream(identifier, seed))

    by_sevennet = name == "downstream_sevennet"
    method = "SevenNet-0 (11 July 2024)" if by_sevennet else "CHGNet 0.3.0"
    package = "sevenn" if by_sevennet else "chgnet"
    card = {
        **CARDS[name],
        "functional": f"{method}, a potential fitted to PBE and PBE+U data",
        "is_dft": False,
        "remarks": (
            f"{CARDS[name]['remarks']} The labels are predictions of {method}; they are not DFT."
        ),
        "periodic": True,
        "energy_convention": "total energy in the convention of the Materials Project's PBE/PBE+U",
        "licence": "CC0-1.0 (labels by "
        + ("SevenNet, MIT)" if by_sevennet else "CHGNet, BSD-3-Clause)"),
        "citation": [SEVENNET if by_sevennet else CHGNET],
        "source": ["tools/mini/periodic.py"],
    }
    write_card(options.to / name, card, [package, "ase", "torch"])
    run_chunks(options.to / name, jobs, label, chunk=20)


if __name__ == "__main__":
    main()
