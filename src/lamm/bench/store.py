"""How fast single structures are read in random order, from LaMM's store and from its peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lamm.bench.peers import PEERS, Content, Read, Reader, open_store
from lamm.bench.timing import Cost, alternate, provenance, spread, timed
from lamm.data.cards import CardHeader
from lamm.data.store import Store, StoreWriter
from lamm.errors import ConfigError, DataError, nearest_names
from lamm.structure import Structure

LAMM = "lamm"
BATCH = 64
"""Structures of a batch read."""
_NAMES = ("atomic_numbers", "positions", "cell", "pbc", "energy", "forces")
_ROUND_SECONDS = 0.5
"""A slow peer reads fewer structures per round, so that it takes about this long."""
_FEWEST_READS = 100


def catalyst_structures(count: int, seed: int) -> list[Structure]:
    """Made-up periodic slabs of the size of OC20's: 30 to 200 atoms, forces, fixed atoms."""
    rng = np.random.default_rng(seed)
    structures = []
    for number in range(count):
        n = int(rng.integers(30, 201))
        edge = (20.0 * n) ** (1 / 3)  # 20 Å^3 per atom, the vacuum not counted
        cell = np.diag([edge, edge, 2 * edge]) + np.tril(rng.normal(0, 0.5, (3, 3)), -1)
        heights = np.sort(rng.uniform(0, 0.5, n))
        places = np.column_stack((rng.random((n, 2)), heights))
        structures.append(
            Structure(
                atomic_numbers=rng.integers(1, 84, n).astype(np.uint8),
                positions=(places @ cell).astype(np.float32),
                cell=cell,
                pbc=np.ones(3, dtype=bool),
                energy=float(rng.normal(-3.5 * n, 5.0)),
                forces=rng.normal(0, 0.5, (n, 3)).astype(np.float32),
                fixed=heights < 0.25,
                id=f"random{number}",
                origin=f"made/{number // 5000}.extxyz:{number % 5000}",
            )
        )
    return structures


def bench_store(
    *,
    structures: int = 5000,
    reads: int = 20_000,
    rounds: int = 9,
    seed: int = 0,
    peers: Sequence[str] | None = None,
    source: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the same structures in every way, check that all give them back, and time the reads.

    Args:
        structures: how many are written; of a `source`, the first so many at most.
        reads: shuffled single reads of a round; fewer for who takes longer than half a second.
        rounds: how often everybody's turn comes.
        seed: of the made-up structures and of the order of reading.
        peers: names in `PEERS`; all that are installed where left out.
        source: a store to take the structures from.
        progress: is told what is going on.

    Returns:
        Costs, ratios, bytes on disk and provenance, ready for JSON. The files are in the page cache
        (each is read as a whole beforehand): decoding is measured, not the disk.

    Raises:
        ConfigError: an unknown peer, one that isn't installed, or a number that makes no sense.
        DataError: a peer gives something else back than was written.
    """
    chosen, missing = choose_peers(peers)
    if min(structures, reads, rounds) < 1:
        raise ConfigError("--structures, --reads and --rounds: expected numbers of at least 1.")
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="lamm-bench-") as folder:
        progress("making structures")
        samples = _samples(structures, seed, source)
        readers: dict[str, Reader] = {}
        files: dict[str, Path] = {LAMM: Path(folder) / "store"}
        _write_store(samples, files[LAMM])
        readers[LAMM] = open_store(files[LAMM])
        writing: dict[str, Cost] = {}
        for name in chosen:
            progress(f"writing {name}")
            peer = PEERS[name]
            files[name] = Path(folder) / peer.file
            writing[name] = timed(partial(peer.write, samples, files[name]))
            readers[name] = peer.open(files[name])
        for name, reader in readers.items():
            progress(f"checking {name}")
            check_content(name, reader.read, samples)
        progress("reading one by one")
        singles = _time_singles(readers, len(samples), reads, rounds, rng)
        progress("reading batches")
        batches = _time_batches(readers, len(samples), rounds, rng)
        sizes = {name: disk_bytes(path) for name, path in files.items()}
    atoms = [one.num_atoms for one in samples]
    return {
        "environment": provenance(seed, _packages(chosen)),
        "settings": {
            "structures": len(samples),
            "atoms": {"min": min(atoms), "mean": float(np.mean(atoms)), "max": max(atoms)},
            "reads": reads,
            "rounds": rounds,
            "batch": BATCH,
            "source": "made up, sizes of OC20" if source is None else source.name,
            "page_cache": "warm",
        },
        "single_reads": {
            name: {
                "describes": PEERS[name].describe if name in PEERS else "LaMM store",
                "bytes_per_atom": sizes[name] / sum(atoms),
                **values,
            }
            for name, values in singles.items()
        },
        "batch_reads": batches,
        "write_seconds": {name: cost.wall for name, cost in writing.items()},
        "not_installed": missing,
    }


def choose_peers(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The peers to measure, and how to get those that aren't installed.

    Raises:
        ConfigError: no peer has that name, or one that is asked for isn't installed.
    """
    for name in names or ():
        if name not in PEERS:
            raise ConfigError(f"no peer '{name}'. {nearest_names(name, list(PEERS))}")
        if not PEERS[name].is_installed:
            raise ConfigError(f"peer '{name}' is {PEERS[name].hint}")
    if names is not None:
        return list(dict.fromkeys(names)), {}
    missing = {name: peer.hint for name, peer in PEERS.items() if not peer.is_installed}
    return [name for name in PEERS if name not in missing], missing


def check_content(name: str, read: Read, samples: Sequence[Structure]) -> None:
    """Read every structure once and compare it with what was written.

    Raises:
        DataError: something differs.
    """
    for number, one in enumerate(samples):
        written = tuple(getattr(one, field) for field in _NAMES)
        for field, found, expected in zip(_NAMES, read(number), written, strict=True):
            if expected is None and found is None:
                continue
            if not np.array_equal(np.asarray(found), np.asarray(expected)):
                raise DataError(
                    f"{name}: '{field}' of structure {number} isn't what was written: the formats "
                    "don't hold the same and can't be compared."
                )


def disk_bytes(path: Path) -> int:
    """Bytes that a file, or the files of a folder, take on disk."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _samples(count: int, seed: int, source: Path | None) -> list[Structure]:
    if source is None:
        return catalyst_structures(count, seed)
    store = Store.open(source)
    wanted = np.flatnonzero(store.index.has_energy & store.index.has_forces)[:count]
    if not len(wanted):
        raise ConfigError(f"{source}: no structure with energy and forces, which peers read too.")
    return list(store.structures(wanted.tolist()))


def _write_store(samples: Sequence[Structure], path: Path) -> None:
    """Edges are counted within 1 Å only: the index isn't what is measured."""
    precision = samples[0].positions.dtype.name
    header = CardHeader.model_validate(
        {"name": "benchmark", "edge_cutoff": 1.0, "position_dtype": precision}
    )
    with StoreWriter(path, header) as writer:
        for one in samples:
            writer.add(one)


def _time_singles(
    readers: dict[str, Reader], total: int, reads: int, rounds: int, rng: np.random.Generator
) -> dict[str, Any]:
    counts = {}
    for name, reader in readers.items():
        trial = rng.integers(0, total, min(_FEWEST_READS, reads)).tolist()
        each = timed(partial(_read_all, reader.read, trial)).wall
        fitting = int(_ROUND_SECONDS * len(trial) / each)
        counts[name] = min(reads, max(_FEWEST_READS, fitting))
    # Python numbers, shuffled beforehand: drawing them isn't part of a read.
    orders = {name: rng.integers(0, total, count).tolist() for name, count in counts.items()}
    calls = {name: partial(_read_all, one.read, orders[name]) for name, one in readers.items()}
    return _compared(alternate(calls, rounds), counts)


def _read_all(read: Callable[[int], Content], order: Sequence[int]) -> None:
    for number in order:
        read(number)


def _time_batches(
    readers: dict[str, Reader], total: int, rounds: int, rng: np.random.Generator
) -> dict[str, Any]:
    gathers = {name: one.gather for name, one in readers.items() if one.gather is not None}
    batches = rng.integers(0, total, (max(1, 4 * _FEWEST_READS // BATCH), BATCH)).tolist()

    def run(gather: Callable[[Sequence[int]], Any]) -> None:
        for numbers in batches:
            gather(numbers)

    calls = {name: partial(run, gather) for name, gather in gathers.items()}
    counts = dict.fromkeys(gathers, len(batches) * BATCH)
    return _compared(alternate(calls, rounds), counts)


def _compared(costs: dict[str, list[Cost]], counts: dict[str, int]) -> dict[str, Any]:
    """Microseconds per structure, structures per second, and LaMM's advantage round by round."""
    wall = {name: np.array([cost.wall for cost in of]) / counts[name] for name, of in costs.items()}
    cpu = {name: np.array([cost.cpu for cost in of]) / counts[name] for name, of in costs.items()}
    return {
        name: {
            "reads_per_round": counts[name],
            "per_second": float(1 / np.median(wall[name])),
            "microseconds": spread(1e6 * wall[name]),
            "cpu_microseconds": spread(1e6 * cpu[name]),
            "lamm_is_faster_by": spread(wall[name] / wall[LAMM]),
            "lamm_is_faster_by_cpu": spread(cpu[name] / cpu[LAMM]),
        }
        for name in costs
    }


def _packages(peers: Sequence[str]) -> list[str]:
    return sorted({package for name in peers for package in PEERS[name].packages})
