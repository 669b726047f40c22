"""Shuffled single reads from LaMM's store and its peers: the source of the figures in the docs.

usage: pip install ase-db-backends atompack-db torch_geometric
       python benchmarks/store.py [--to FILE]

Writes ``benchmarks/results/store.json`` and prints the table of ``lamm bench store``. It takes
about two minutes on a quiet core. Run it alone: peers take turns in one process, so that a
busy machine slows them alike, but it still blurs the ratios.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lamm.bench.store import bench_store
from lamm.cli.bench import store_table
from lamm.cli.common import finite, start_logging
from lamm.files import write_json

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results" / "store.json")
    options = parser.parse_args()
    start_logging()
    result = bench_store(structures=5000, reads=20_000, rounds=15, seed=0)
    write_json(options.to, finite(result))
    sys.stdout.write("\n".join(store_table(result)) + "\n")


if __name__ == "__main__":
    main()
