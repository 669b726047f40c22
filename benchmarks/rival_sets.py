"""Splits that fine-tuning is compared on, written as extended XYZ for all rivals alike."""

from __future__ import annotations

import io
import json
import lzma
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

SHIPPED_SET = "downstream_sevennet"
SHARED_SETS = ("mad_pbesol", "mattersim_tp", "bpa3", "qm7x")
TRAIN_MOLECULES = 1000
Parts = dict[str, list[Atoms]]


def _read(path: Path) -> list[Atoms]:
    raw = path.read_bytes()
    text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode()
    return list(ase.io.read(io.StringIO(text), ":", format="extxyz"))


def _plain(atoms: Atoms) -> Atoms:
    """Elements, positions, cell, energy and forces, and nothing else."""
    periodic = bool(atoms.pbc.any())
    copy = Atoms(
        atoms.numbers, atoms.positions, cell=atoms.cell if periodic else None, pbc=atoms.pbc
    )
    copy.calc = SinglePointCalculator(
        copy, energy=atoms.get_potential_energy(), forces=atoms.get_forces()
    )
    return copy


def _shipped() -> Parts:
    from lamm.data.joint import store_path
    from lamm.data.splits import SPLIT_CODES
    from lamm.data.store import Store

    store = Store.open(store_path(f"mini:{SHIPPED_SET}"))
    parts: Parts = {}
    for name, code in SPLIT_CODES.items():
        parts[name] = []
        for one in store.structures(np.flatnonzero(store.index.split == code)):
            atoms = Atoms(one.atomic_numbers, one.positions, cell=one.cell, pbc=one.pbc)
            atoms.calc = SinglePointCalculator(atoms, energy=one.energy, forces=one.forces)
            parts[name].append(atoms)
    return parts


def _by_given_splits(name: str, shared: Path) -> Parts:
    """The splits by formula of ``downstream/splits.json``."""
    folder = shared / "downstream"
    splits = json.loads((folder / "splits.json").read_text())[name]
    files = {path.name.split(".")[0]: _read(path) for path in (folder / name).glob("*.xz")}
    return {
        part: [files[Path(file).name.split(".")[0]][row] for file, row in splits[part]]
        for part in ("train", "val", "test")
    }


def _bpa3(shared: Path) -> Parts:
    """One molecule at 300 K and at mixed temperatures: 500, 50 and the other structures."""
    paths = sorted((shared / "pretrain" / "bpa3").glob("train*"))
    atoms = [one for path in paths for one in _read(path)]
    order = np.random.default_rng(0).permutation(len(atoms))
    atoms = [atoms[row] for row in order]
    return {"train": atoms[:500], "val": atoms[500:550], "test": atoms[550:]}


def _qm7x(shared: Path) -> Parts:
    """Small molecules, split by formula; 1,000 of the others are trained on."""
    arrays = np.load(next((shared / "pretrain" / "qm7x").glob("*.npz")))
    atoms = []
    for energy, positions, forces, numbers in zip(*(arrays[key] for key in "ERFz"), strict=True):
        real = numbers > 0
        one = Atoms(numbers[real], positions[real])
        one.calc = SinglePointCalculator(
            one, energy=float(np.ravel(energy)[0]), forces=forces[real]
        )
        atoms.append(one)
    rng = np.random.default_rng(0)
    formulas = sorted({one.get_chemical_formula() for one in atoms})
    rng.shuffle(formulas)
    sixth, quarter = len(formulas) // 6, len(formulas) // 4
    test, val = set(formulas[:sixth]), set(formulas[sixth:quarter])
    train = [one for one in atoms if one.get_chemical_formula() not in test | val]
    return {
        "train": [train[row] for row in rng.permutation(len(train))[:TRAIN_MOLECULES]],
        "val": [one for one in atoms if one.get_chemical_formula() in val],
        "test": [one for one in atoms if one.get_chemical_formula() in test],
    }


def write_set(name: str, folder: Path, shared: Path | None) -> dict[str, int]:
    """Write ``train.extxyz``, ``val.extxyz`` and ``test.extxyz``.

    Args:
        name: `SHIPPED_SET` or one of `SHARED_SETS`.
        folder: where they go.
        shared: folder of the files that aren't shipped.

    Returns:
        Structures of each.
    """
    if name == SHIPPED_SET:
        parts = _shipped()
    elif shared is None:
        raise SystemExit(f"{name}: say by --shared where its files are.")
    elif name == "bpa3":
        parts = _bpa3(shared)
    elif name == "qm7x":
        parts = _qm7x(shared)
    else:
        parts = _by_given_splits(name, shared)
    folder.mkdir(parents=True)
    for part, atoms in parts.items():
        ase.io.write(folder / f"{part}.extxyz", [_plain(one) for one in atoms], format="extxyz")
    return {part: len(atoms) for part, atoms in parts.items()}
