"""Other ways of keeping structures on disk, each written and read as its users do.

A reader takes the number of a structure and gives what training needs of it: atomic numbers,
positions, cell, pbc, energy and forces, as numpy arrays and numbers. Every library is imported
where it is used; none is a dependency of LaMM.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lamm.data.store import Store
from lamm.structure import Structure

Content: TypeAlias = tuple[Any, Any, Any, Any, Any, Any]
"""Atomic numbers, positions, cell, pbc, energy, forces."""
Read: TypeAlias = Callable[[int], Content]
Gather: TypeAlias = Callable[[Sequence[int]], Sequence[NDArray[Any]]]
"""Structures as flat arrays: atomic numbers, positions, forces of all atoms; cells, energies."""


class Reader(NamedTuple):
    """What an open file can do."""

    read: Read
    gather: Gather | None = None


@dataclass(frozen=True)
class Peer:
    """One way of keeping structures."""

    describe: str
    packages: tuple[str, ...]
    """Distributions that it needs."""
    modules: tuple[str, ...]
    """Modules of theirs that are imported."""
    file: str
    write: Callable[[Sequence[Structure], Path], None]
    open: Callable[[Path], Reader]

    @property
    def is_installed(self) -> bool:
        """Whether its libraries are there."""
        return all(importlib.util.find_spec(name) is not None for name in self.modules)

    @property
    def hint(self) -> str:
        """How to get them."""
        return f"not installed: pip install {' '.join(self.packages)}"


def open_store(path: Path) -> Reader:
    """LaMM's own store."""
    store = Store.open(path)

    def read(number: int) -> Content:
        one = store[number]
        return (
            one.atomic_numbers, one.positions, one.cell, one.pbc, one.energy, one.forces,
        )  # fmt: skip

    def gather(numbers: Sequence[int]) -> Sequence[NDArray[Any]]:
        structures = list(store.structures(numbers))
        return (
            np.concatenate([one.atomic_numbers for one in structures]),
            np.concatenate([one.positions for one in structures]),
            np.concatenate([one.forces for one in structures if one.forces is not None]),
            np.concatenate([one.cell for one in structures]).reshape(-1, 3, 3),
            np.array([one.energy for one in structures]),
        )

    return Reader(read, gather)


def _write_ase(structures: Sequence[Structure], path: Path) -> None:
    backend = import_module("ase_db_backends.aselmdb")
    with backend.LMDBDatabase(str(path)) as database:
        for one in structures:
            database.write(one.to_atoms(), data={"id": one.id})


def _open_ase(path: Path) -> Reader:
    backend = import_module("ase_db_backends.aselmdb")
    database = backend.LMDBDatabase(str(path), readonly=True)

    def read(number: int) -> Content:
        # The shortest way to a row; building `Atoms` of it, as training codes do, comes on top.
        row = database._get_row_by_index(number)
        return row.numbers, row.positions, row.cell, row.pbc, row.energy, row.forces

    return Reader(read)


def _write_pickles(records: Sequence[Any], path: Path) -> None:
    import lmdb

    size = sum(len(pickle.dumps(one, protocol=-1)) + 4096 for one in records[:64])
    room = 64 * 2**20 + 4 * size * (len(records) // min(64, len(records)) + 1)
    with lmdb.open(str(path), map_size=room, subdir=False, meminit=False) as database:
        with database.begin(write=True) as change:
            for number, one in enumerate(records):
                change.put(f"{number}".encode("ascii"), pickle.dumps(one, protocol=-1))
        database.sync()


def _open_pickles(path: Path, content: Callable[[Any], Content]) -> Reader:
    import lmdb

    database = lmdb.open(
        str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False
    )
    look = database.begin(buffers=True)

    def read(number: int) -> Content:
        record = look.get(f"{number}".encode("ascii"))
        return content(pickle.loads(record or b""))

    return Reader(read)


def _tensors(one: Structure) -> dict[str, Any]:
    import torch

    return {
        "atomic_numbers": torch.tensor(one.atomic_numbers),
        "pos": torch.tensor(one.positions),
        "cell": torch.tensor(one.cell),
        "pbc": torch.tensor(one.pbc),
        "energy": one.energy,
        "forces": None if one.forces is None else torch.tensor(one.forces),
        "fixed": None if one.fixed is None else torch.tensor(one.fixed),
        "sid": one.id,
    }


def _of_tensors(record: Any) -> Content:
    forces = record["forces"]
    return (
        record["atomic_numbers"].numpy(),
        record["pos"].numpy(),
        record["cell"].numpy(),
        record["pbc"].numpy(),
        record["energy"],
        None if forces is None else forces.numpy(),
    )


def _arrays(one: Structure) -> dict[str, Any]:
    names = ("atomic_numbers", "positions", "cell", "pbc", "energy", "forces", "fixed", "id")
    return {name: getattr(one, name) for name in names}


def _of_arrays(record: Any) -> Content:
    return (
        record["atomic_numbers"],
        record["positions"],
        record["cell"],
        record["pbc"],
        record["energy"],
        record["forces"],
    )


def _graph_data(one: Structure) -> Any:
    return import_module("torch_geometric.data").Data(**_tensors(one))


def _of_graph_data(record: Any) -> Content:
    forces = record.forces
    return (
        record.atomic_numbers.numpy(),
        record.pos.numpy(),
        record.cell.numpy(),
        record.pbc.numpy(),
        record.energy,
        None if forces is None else forces.numpy(),
    )


def _write_atompack(structures: Sequence[Structure], path: Path) -> None:
    atompack = import_module("atompack")
    database = atompack.Database(str(path))
    database.add_molecules(
        [
            atompack.Molecule.from_arrays(
                one.positions,
                one.atomic_numbers,
                energy=one.energy,
                forces=one.forces,
                cell=one.cell,
                pbc=tuple(one.pbc.tolist()),
                name=one.id,
            )
            for one in structures
        ]
    )
    database.flush()


def _open_atompack(path: Path) -> Reader:
    database = import_module("atompack").Database.open(str(path))

    def read(number: int) -> Content:
        one = database[number]
        return one.atomic_numbers, one.positions, one.cell, one.pbc, one.energy, one.forces

    def gather(numbers: Sequence[int]) -> Sequence[NDArray[Any]]:
        flat = database.get_molecules_flat(list(numbers))
        return tuple(
            flat[name] for name in ("atomic_numbers", "positions", "forces", "cell", "energy")
        )

    return Reader(read, gather)


PEERS = {
    "ase-lmdb": Peer(
        "ASE database in LMDB: zlib-compressed JSON (aselmdb)",
        ("ase-db-backends",),
        ("ase_db_backends",),
        "structures.aselmdb",
        _write_ase,
        _open_ase,
    ),
    "pickle-lmdb": Peer(
        "LMDB of pickled dictionaries of torch tensors",
        ("lmdb", "torch"),
        ("lmdb", "torch"),
        "tensors.lmdb",
        lambda structures, path: _write_pickles([_tensors(one) for one in structures], path),
        lambda path: _open_pickles(path, _of_tensors),
    ),
    "numpy-lmdb": Peer(
        "LMDB of pickled dictionaries of numpy arrays",
        ("lmdb",),
        ("lmdb",),
        "arrays.lmdb",
        lambda structures, path: _write_pickles([_arrays(one) for one in structures], path),
        lambda path: _open_pickles(path, _of_arrays),
    ),
    "pyg-lmdb": Peer(
        "LMDB of pickled torch_geometric Data, as the OC20 files are",
        ("lmdb", "torch_geometric"),
        ("lmdb", "torch_geometric"),
        "data.lmdb",
        lambda structures, path: _write_pickles([_graph_data(one) for one in structures], path),
        lambda path: _open_pickles(path, _of_graph_data),
    ),
    "atompack": Peer(
        "atompack, uncompressed and memory-mapped (its defaults)",
        ("atompack-db",),
        ("atompack",),
        "structures.atp",
        _write_atompack,
        _open_atompack,
    ),
}
"""Every peer by the name that ``lamm bench store --peers`` takes."""
