"""What ingestion costs beside the bare parser of each format, on one process and on several.

usage: python benchmarks/ingest.py [--structures N] [--rounds R] [--workers W ...] [--to FILE]

Writes ``benchmarks/results/ingest.json``. The sources are made up, of the sizes of OC20 and of
Transition1x, sixteen files a format. *Bare* is what a user would otherwise read them with: ASE for
extended XYZ, lmdb and pickle for pickled tensors, h5py for HDF5; it keeps nothing. *Ingestion* is
all of it: read, check, convert, count edges, fit references, write the store with its checksums.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy, as `lamm data` does

import h5py
import lmdb
import numpy as np
import torch
from ase.io.extxyz import read_extxyz, write_extxyz

from lamm.bench.store import catalyst_structures
from lamm.bench.timing import alternate, provenance, spread
from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.files import write_json
from lamm.structure import Structure

ROOT = Path(__file__).parent.parent
FILES = 4
COPIES = 4
"""Times that each file is there, under several names."""
SEED = 0
MOLECULES = 20
"""Molecules for each slab: a molecule is quicker to read."""


class Case(NamedTuple):
    """A format, its sources and the bare way to read them."""

    format: str
    header: CardHeader
    bare: Callable[[Path], Iterator[object]]
    structures: int


def main() -> None:
    """Make sources, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structures", type=int, default=4000, help="different slabs of a format")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks/results/ingest.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamm-ingest-") as temporary:
        folder = Path(temporary)
        cases = make_sources(folder, options.structures)
        result: dict[str, Any] = {
            "environment": provenance(SEED),
            "files": FILES * COPIES,
            "formats": {},
        }
        for case in cases:
            result["formats"][case.format] = {
                "structures": case.structures,
                "one_process": beside_bare(case, folder, options.rounds),
                "workers": by_workers(case, folder, options.workers, options.rounds),
            }
    write_json(options.to, result)
    for name, found in result["formats"].items():
        one = found["one_process"]
        sys.stdout.write(
            f"{name}: {one['ingest_per_s']['median']:,.0f}/s ingested, "
            f"{one['bare_per_s']['median']:,.0f}/s by the bare parser, ratio {one['ratio']:.2f}; "
            + ", ".join(
                f"{count} workers {row['per_s']['median']:,.0f}/s"
                for count, row in found["workers"].items()
            )
            + "\n"
        )


def make_sources(folder: Path, count: int) -> list[Case]:
    """Files of every format in folders of their names."""
    structures = catalyst_structures(count, SEED)
    shares = [structures[number::FILES] for number in range(FILES)]
    twins = {"keys": {"id": "none"}}  # the files are there twice, and so are their ids
    for name in ("extxyz", "oc-lmdb", "hdf5"):
        (folder / name).mkdir()
    for number, share in enumerate(shares):
        with (folder / "extxyz" / f"{number}.extxyz").open("w", encoding="utf-8") as file:
            write_extxyz(file, [one.to_atoms() for one in share])
        write_lmdb(folder / "oc-lmdb" / f"data.{number:04d}.lmdb", share)
        write_hdf5(folder / "hdf5" / f"{number}.h5", len(share) * MOLECULES, seed=number)
    for path in [
        one for name in ("extxyz", "oc-lmdb", "hdf5") for one in (folder / name).iterdir()
    ]:
        if path.name.endswith("-lock"):
            path.unlink()
            continue
        for twin in range(COPIES - 1):
            (path.parent / f"{twin}-{path.name}").hardlink_to(path)
    layout = CardHeader.model_validate({**twins, "reader": {"layout": "transition1x"}})
    oc20 = CardHeader.model_validate({**twins, "task": "S2EF-Total"})
    return [
        Case("extxyz", CardHeader.model_validate(twins), bare_extxyz, COPIES * count),
        Case("oc-lmdb", oc20, bare_lmdb, COPIES * count),
        Case("hdf5", layout, bare_hdf5, COPIES * count * MOLECULES),
    ]


MEASURE = """
import json, resource, sys, time
from pathlib import Path
from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
format_name, folder, workers, header = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
begin = time.perf_counter()
ingest(
    format_name, [folder / format_name], folder / "store", CardHeader.model_validate_json(header),
    workers=workers,
)
seconds = time.perf_counter() - begin
kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024
print(json.dumps({"seconds": seconds, "peak_mib": peak}))
"""
"""An ingestion in a process of its own: seconds, and MiB of the largest process."""


def write_lmdb(path: Path, structures: list[Structure]) -> None:
    """Pickled tensors by the names of OC20's pre-processed data."""
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 36, meminit=False)
    with environment.begin(write=True) as transaction:
        for number, one in enumerate(structures):
            assert one.forces is not None
            assert one.fixed is not None
            record = {
                "atomic_numbers": torch.from_numpy(one.atomic_numbers.astype(np.float32)),
                "pos": torch.from_numpy(one.positions.copy()),
                "cell": torch.from_numpy(one.cell.astype(np.float32))[None],
                "natoms": one.num_atoms,
                "tags": torch.zeros(one.num_atoms),
                "fixed": torch.from_numpy(one.fixed.astype(np.float32)),
                "y": one.energy,
                "force": torch.from_numpy(np.array(one.forces)),
                "sid": int(one.id.removeprefix("random")),
                "fid": 0,
            }
            transaction.put(f"{number}".encode("ascii"), pickle.dumps(record, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(structures), protocol=-1))
    environment.close()


def write_hdf5(path: Path, count: int, seed: int) -> None:
    """Reactions of 100 structures of 6 to 23 atoms in Transition1x's layout."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for number in range(0, count, 100):
            frames, atoms = min(100, count - number), int(rng.integers(6, 24))
            group = file.create_group(f"data/C{atoms}-{seed}/rxn{number:06d}")
            group["atomic_numbers"] = rng.choice([1, 6, 7, 8], atoms)
            group["positions"] = rng.uniform(0, 6, (frames, atoms, 3))
            group["wB97x_6-31G(d).energy"] = rng.normal(-1e4, 1, frames)
            group["wB97x_6-31G(d).forces"] = rng.normal(0, 1, (frames, atoms, 3))


def bare_extxyz(path: Path) -> Iterator[object]:
    """ASE's parser over the text."""
    with path.open(encoding="utf-8") as file:
        yield from read_extxyz(file, index=slice(None))


def bare_lmdb(path: Path) -> Iterator[object]:
    """A cursor, and pickle."""
    environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
    with environment.begin() as transaction:
        for _, value in transaction.cursor():
            yield pickle.loads(value)
    environment.close()


def bare_hdf5(path: Path) -> Iterator[object]:
    """Arrays of each reaction, then a dictionary of each structure."""
    with h5py.File(path) as file:
        for formula in file["data"].values():
            for reaction in formula.values():
                numbers = list(reaction["atomic_numbers"])
                positions = np.array(reaction["positions"])
                energies = np.array(reaction["wB97x_6-31G(d).energy"])
                forces = np.array(reaction["wB97x_6-31G(d).forces"])
                for position, energy, force in zip(positions, energies, forces, strict=True):
                    yield {
                        "atomic_numbers": numbers,
                        "positions": position,
                        "energy": float(energy),
                        "forces": force,
                    }


def beside_bare(case: Case, folder: Path, rounds: int) -> dict[str, Any]:
    """Structures a second of CPU time, of ingestion and of the bare parser, in one process."""
    sources = sorted((folder / case.format).iterdir())

    def bare() -> None:
        for path in sources[:FILES]:
            for _ in case.bare(path):
                pass

    def whole() -> None:
        ingest(case.format, sources[:FILES], folder / "store", case.header)
        shutil.rmtree(folder / "store")

    costs = alternate({"bare": bare, "ingest": whole}, rounds)
    rates = {
        f"{name}_per_s": spread([case.structures / COPIES / cost.cpu for cost in found])
        for name, found in costs.items()
    }
    ratios = [one.cpu / two.cpu for one, two in zip(costs["bare"], costs["ingest"], strict=True)]
    return {**rates, "ratio": float(np.median(ratios))}


def by_workers(case: Case, folder: Path, workers: list[int], rounds: int) -> dict[str, Any]:
    """Structures a second of wall time and peak memory, for numbers of workers in turn."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in workers}
    for _ in range(rounds):
        for count in workers:
            words = (
                case.format,
                str(folder),
                str(count),
                case.header.model_dump_json(exclude_unset=True),
            )
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, *words],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[count].append(json.loads(done.stdout))
            shutil.rmtree(folder / "store")
    return {
        str(count): {
            "per_s": spread([case.structures / row["seconds"] for row in rows]),
            "peak_mib": max(row["peak_mib"] for row in rows),
        }
        for count, rows in found.items()
    }


if __name__ == "__main__":
    main()
