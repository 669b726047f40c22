"""What the generators share: chunks that survive an interruption, labels, cards, checks."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.geometry import get_distances

logger = logging.getLogger("mini")

HARTREE = 27.211386245988
"""One Hartree in eV (CODATA 2018)."""
BOHR = 0.529177210903
"""One bohr in Å (CODATA 2018)."""

Job = tuple[str, Atoms]
"""Id of a structure and its geometry, before it has labels."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every generator has."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--to", type=Path, default=Path("build/mini"), help="folder of raw data")
    result.add_argument("--seed", type=int, default=0, help="seed of the geometries")
    return result


def labelled(
    atoms: Atoms,
    name: str,
    energy: float | None = None,
    forces: np.ndarray | None = None,
    stress: np.ndarray | None = None,
) -> Atoms:
    """A copy of a structure with its id and the labels that it has, in eV and Å."""
    copy = atoms.copy()
    copy.calc = None
    copy.info = {"id": name, **({"split": atoms.info["split"]} if "split" in atoms.info else {})}
    labels = {"energy": energy, "forces": forces, "stress": stress}
    present = {key: value for key, value in labels.items() if value is not None}
    if present:
        copy.calc = SinglePointCalculator(copy, **present)
    return copy


def split_of(system: str, val: float = 0.02) -> str:
    """Split of a system, all of whose frames go together: by a hash of its name."""
    digest = hashlib.blake2b(system.encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "little") / 2**64 < val else "train"


def run_chunks(
    folder: Path,
    jobs: Sequence[Job],
    label: Callable[[str, Atoms], list[Atoms | None]],
    chunk: int = 20,
) -> None:
    """Label every job, a chunk at a time; a chunk that is there already is not made again.

    Args:
        folder: where the chunks go, as ``chunk-NNNN.extxyz``.
        jobs: all structures, in an order that the seed fixes.
        label: gives a job's labelled structures, None in place of one that is left out.
        chunk: structures per chunk; what a kill loses at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(jobs), chunk)):
        path = folder / f"chunk-{number:04d}.extxyz"
        if path.exists():
            continue
        part = jobs[start : start + chunk]
        done = [each for name, atoms in part for each in label(name, atoms) if each is not None]
        temporary = path.with_suffix(".incomplete")
        ase.io.write(temporary, done, format="extxyz")
        temporary.rename(path)
        logger.info(
            "%s: %d of %d, %d of this chunk kept",
            folder.name,
            start + len(part),
            len(jobs),
            len(done),
        )


def write_card(folder: Path, card: dict[str, Any], packages: Sequence[str]) -> None:
    """Write the card of a subset; the versions of the software are read at run time."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = [f"{package} {version(package)}" for package in packages]
    card = {"name": folder.name, **card, "source": [*card.get("source", []), *versions]}
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    (folder / "card.yaml").write_text(text, encoding="utf-8")


def closest_contact(atoms: Atoms) -> float:
    """Smallest distance of two atoms over the sum of their covalent radii, periodic images too."""
    if len(atoms) == 1 and not atoms.pbc.any():
        return np.inf
    _, distance = get_distances(atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    radii = covalent_radii[atoms.numbers]
    np.fill_diagonal(distance, np.inf)
    if atoms.pbc.any():
        images = np.linalg.norm(atoms.cell.array[atoms.pbc], axis=1).min()
        np.fill_diagonal(distance, images)
    return float((distance / (radii[:, None] + radii[None, :])).min())
