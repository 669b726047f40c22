"""What a store of 10 million structures in 1,000 shards costs to open, to read and to plan with.

usage: python benchmarks/store_scale.py [--structures N] [--shards S] [--folder DIR] [--to FILE]

Writes ``benchmarks/results/store_scale.json``. The store (3.5 GB, made up, four atoms each) is made
in a temporary folder and removed. Every measurement runs in a process of its own, so that its peak
memory is its own; `cold` ones have asked the kernel to forget the store's pages before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lamm.bench.store import BATCH, catalyst_structures
from lamm.bench.timing import provenance, spread, timed
from lamm.cli.common import start_logging
from lamm.data.cards import CardHeader, DatasetCard, FileRecord
from lamm.data.columns import INDEX_SCHEMA, Columns, encode, store_schema, write_batch
from lamm.data.store import Store, file_sha256
from lamm.data.totals import Totals
from lamm.files import write_json

ROOT = Path(__file__).parent.parent
ATOMS = 4
ROUNDS = 5
READS = 1000


def main() -> None:
    """Make the store, measure, remove it, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structures", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the store is made; a temporary folder")
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks/results/store_scale.json")
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(MEASURES[options.measure](options.store)))
        return
    start_logging()
    needed = 400 * options.structures
    folder = options.folder or Path(tempfile.gettempdir())
    if shutil.disk_usage(folder).free < 2 * needed:
        raise SystemExit(f"{folder}: less than {2 * needed / 1e9:.0f} GB free; choose --folder")
    with tempfile.TemporaryDirectory(prefix="lamm-scale-", dir=folder) as temporary:
        path = Path(temporary) / "store"
        make_store(path, options.structures, options.shards)
        result = {
            "environment": provenance(0),
            "settings": {
                "structures": options.structures,
                "shards": options.shards,
                "atoms_per_structure": ATOMS,
                "rounds": ROUNDS,
                "shuffled_reads": READS,
                "bytes": sum(file.stat().st_size for file in path.iterdir()),
            },
            "open": {state: measured("open", path, state == "cold") for state in ("warm", "cold")},
            "first_reads": {
                state: measured("reads", path, state == "cold") for state in ("warm", "cold")
            },
            "all_shards": measured("shards", path),
            "assign_splits": measured("splits", path),
            "joint_data_set": measured("joint", path),
            "totals": measured("totals", path),
        }
    options.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.to, result)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def make_store(path: Path, structures: int, shards: int) -> None:
    """A store written shard by shard from arrays; only ids and their hashes differ."""
    path.mkdir()
    rows = structures // shards
    template, labels = _template(rows)
    rng = np.random.default_rng(0)
    totals: dict[str, Any] = {}
    records, hashes = [], []
    for shard in range(shards):
        file = path / f"shard-{shard:05d}.arrow"
        names = _names(shard * rows, rows)
        columns = {**template, "id": names, "origin": names}
        batch = pa.RecordBatch.from_pydict(columns, schema=store_schema("float32"))
        write_batch(file, batch)
        hashes.append(rng.integers(0, 2**64, rows, dtype=np.uint64))
        totals = totals or _totals(batch, labels, hashes[0], shards)
        records.append(_record(file, rows))
    index = {
        "num_atoms": np.full(rows * shards, ATOMS, dtype=np.int32),
        "num_edges": np.full(rows * shards, ATOMS * (ATOMS - 1), dtype=np.int32),
        "labels": np.tile(labels, shards),
        "shard": np.repeat(np.arange(shards, dtype=np.int32), rows),
        "row": np.tile(np.arange(rows, dtype=np.int32), shards),
        "split": np.zeros(rows * shards, dtype=np.uint8),
        "id_hash": np.concatenate(hashes),
    }
    write_batch(path / "index.arrow", pa.RecordBatch.from_pydict(index, schema=INDEX_SCHEMA))
    card = DatasetCard.model_validate(
        {
            **CardHeader(name="scale", task="S2EF-Total").model_dump(),
            **totals,
            "position_dtype": "float32",
            "lamm_version": "benchmark",
            "factors": {},
            "codata_year": 2022,
            "keys_found": {},
            "source_sha256": {},
            "shards": records,
            "index": _record(path / "index.arrow", rows * shards),
        }
    )
    write_json(path / "card.json", card.model_dump(mode="json"))
    os.sync()  # pages that are still to be written can't be forgotten


def _template(rows: int) -> tuple[dict[str, pa.Array], np.ndarray]:
    rng = np.random.default_rng(0)
    starts = np.arange(0, rows * ATOMS + 1, ATOMS, dtype=np.int32)
    coordinates = pa.array(rng.uniform(0, 6, 3 * ATOMS * rows).astype(np.float32))
    forces = pa.array(rng.normal(0, 0.5, 3 * ATOMS * rows).astype(np.float32))
    numbers = pa.array(rng.integers(1, 84, ATOMS * rows).astype(np.uint8))
    cell = pa.array(np.tile(6.0 * np.eye(3).reshape(-1), rows))
    return {
        "atomic_numbers": pa.ListArray.from_arrays(starts, numbers),
        "positions": pa.ListArray.from_arrays(3 * starts, coordinates),
        "cell": pa.FixedSizeListArray.from_arrays(cell, 9),
        "pbc": pa.array(np.full(rows, 7, dtype=np.uint8)),
        "energy": pa.array(rng.normal(-20, 5, rows)),
        "forces": pa.ListArray.from_arrays(3 * starts, forces),
        "stress": pa.nulls(rows, pa.list_(pa.float64(), 6)),
        "fixed": pa.ListArray.from_arrays(starts, pa.array(rng.random(ATOMS * rows) < 0.5)),
        "split": pa.nulls(rows, pa.uint8()),
    }, np.full(rows, 3, dtype=np.uint8)


def _totals(
    batch: pa.RecordBatch, labels: np.ndarray, id_hash: np.ndarray, shards: int
) -> dict[str, Any]:
    """What the card says of all shards: of the first one, so many times."""
    totals = Totals()
    totals.add(Columns(batch), labels, id_hash)
    entries = totals.card_entries()
    for name in ("num_structures", "num_periodic", "num_train", "num_val", "num_test"):
        entries[name] *= shards
    entries["label_counts"] = {name: shards * n for name, n in entries["label_counts"].items()}
    total = shards * entries["num_atoms"].total
    entries["num_atoms"] = entries["num_atoms"].model_copy(update={"total": total})
    return entries


def _names(first: int, count: int) -> pa.Array:
    """``s000000000`` and so on, their digits computed all at once."""
    digits = np.arange(first, first + count)[:, None] // 10 ** np.arange(8, -1, -1) % 10
    text = np.full((count, 10), ord("s"), dtype=np.uint8)
    text[:, 1:] = digits + ord("0")
    starts = np.arange(0, 10 * count + 1, 10, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(starts), pa.py_buffer(text))


def _record(path: Path, rows: int) -> FileRecord:
    return FileRecord(
        name=path.name, rows=rows, bytes=path.stat().st_size, sha256=file_sha256(path)
    )


def measured(what: str, path: Path, cold: bool = False) -> dict[str, Any]:
    """Every number of a measurement as median, 95th percentile and extremes over the rounds."""
    rounds = []
    for _ in range(ROUNDS):
        if cold:
            _forget(path)
        done = subprocess.run(
            [sys.executable, __file__, "--measure", what, "--store", str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
        rounds.append(json.loads(done.stdout))
    return {name: spread([one[name] for one in rounds]) for name in rounds[0]}


def _forget(path: Path) -> None:
    """Ask the kernel to drop the pages of the store's files."""
    for file in path.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def memory_mib(entry: str) -> float:
    """An entry of /proc/self/status: VmHWM (peak), RssAnon (its own), RssFile (mapped files)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {entry} in /proc/self/status")


def _memory(before: dict[str, float]) -> dict[str, float]:
    """Memory now, and what of it came since `before` was taken; in MiB."""
    now = {name: memory_mib(name) for name in ("VmHWM", "RssAnon", "RssFile")}
    return {
        "peak_mib": now["VmHWM"],
        "added_mib": now["VmHWM"] - before["VmHWM"],
        "added_own_mib": now["RssAnon"] - before["RssAnon"],
        "added_mapped_mib": now["RssFile"] - before["RssFile"],
    }


def _before() -> dict[str, float]:
    return {name: memory_mib(name) for name in ("VmHWM", "RssAnon", "RssFile")}


def measure_open(path: Path) -> dict[str, float]:
    """Open the store."""
    before = _before()
    cost = timed(lambda: Store.open(path))
    return {
        "seconds": cost.wall,
        "cpu_seconds": cost.cpu,
        "imports_mib": before["VmHWM"],
        **_memory(before),
    }


def measure_reads(path: Path) -> dict[str, float]:
    """Open the store, and read one structure, a batch and then a thousand anywhere."""
    before = _before()
    rows = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    result: dict[str, float] = {}
    start = time.perf_counter()
    store = Store.open(path)
    done = 0
    for until in (1, BATCH, READS):
        _touch(store, rows.integers(0, len(store), until - done))
        done = until
        result[f"seconds_to_{until}"] = time.perf_counter() - start
        result |= {f"{name}_after_{until}": value for name, value in _memory(before).items()}
    return {
        **result,
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
        "mappings": _mappings(path),
        "imports_mib": before["VmHWM"],
    }


def measure_shards(path: Path) -> dict[str, float]:
    """Read one structure of every shard, then shuffled ones from shards that are mapped."""
    store = Store.open(path)
    before = _before()
    firsts = np.flatnonzero(store.index.row == 0)
    cost = timed(lambda: _touch(store, firsts))
    memory = _memory(before)
    rows = np.random.default_rng(0).integers(0, len(store), 100_000)
    _touch(store, rows)
    again = timed(lambda: _touch(store, rows))
    return {
        "milliseconds_per_shard": 1e3 * cost.wall / len(firsts),
        "read_microseconds": 1e6 * again.wall / len(rows),
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
        "mappings": _mappings(path),
        **memory,
    }


def _mappings(path: Path) -> int:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sum(str(path) in line for line in lines)


def _touch(store: Store, rows: np.ndarray) -> None:
    for row in rows.tolist():
        one = store[row]
        _ = one.positions, one.forces, one.energy, one.atomic_numbers.sum()


def measure_splits(path: Path) -> dict[str, float]:
    """Assign the splits of all structures."""
    from lamm.data.splits import assign_splits

    index = Store.open(path).index
    cost = timed(lambda: assign_splits(index.id_hash, index.split))
    tracemalloc.start()
    assign_splits(index.id_hash, index.split)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    return {"seconds": cost.wall, "cpu_seconds": cost.cpu, "peak_mib": peak}


def measure_joint(path: Path) -> dict[str, float]:
    """Open the store as a joint data set, and make what a plan is made of."""
    from lamm.data.joint import DataConfig, JointDataset, SubsetConfig

    config = DataConfig(subsets={"scale": SubsetConfig(store=str(path))})
    before = _before()
    start = time.perf_counter()
    joint = JointDataset(config)
    opened = time.perf_counter() - start
    added = memory_mib("VmHWM") - before["VmHWM"]
    joint.plan_index(50, 0.8)
    return {
        "seconds_to_open": opened,
        "seconds_to_index": time.perf_counter() - start,
        "added_mib_when_open": added,
        **_memory(before),
    }


def measure_totals(path: Path) -> dict[str, float]:
    """Count a full shard of OC20's sizes into what a card says: references, scales, sizes."""
    structures = catalyst_structures(2000, 0)
    batch = encode(structures, "float32", lambda batch: np.zeros(len(batch)))
    batch = pa.Table.from_batches([batch] * 10).combine_chunks().to_batches()[0]
    columns = Columns(batch)
    labels, hashes = (batch.column(name).to_numpy() for name in ("labels", "id_hash"))
    totals = Totals()
    totals.add(columns, labels, hashes)
    cost = timed(lambda: totals.add(columns, labels, hashes))
    tracemalloc.start()
    totals.add(columns, labels, hashes)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    solving = timed(totals.card_entries)
    return {
        "structures_per_second": batch.num_rows / cost.wall,
        "structures_per_cpu_second": batch.num_rows / cost.cpu,
        "atoms_per_second": int(columns.num_atoms.sum()) / cost.wall,
        "shard_mib": batch.nbytes / 2**20,
        "peak_mib": peak,
        "solve_seconds": solving.wall,
    }


MEASURES = {
    "open": measure_open,
    "reads": measure_reads,
    "shards": measure_shards,
    "splits": measure_splits,
    "joint": measure_joint,
    "totals": measure_totals,
}


if __name__ == "__main__":
    main()
