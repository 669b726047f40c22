"""EquiformerV2 beside the original on batches of a catalogue: the source of the docs' figures.

usage: pip install fairchem-core==1.10.0 torch-scatter torch-geometric e3nn
       python benchmarks/equiformer.py FILE... [--threads N] [--rounds N] [--to FILE]

FILE: structures in any format that ASE reads; those of a file make one batch. Writes
``benchmarks/results/equiformer.json`` and prints the tables of ``lamm bench model``. The original
takes up to a minute and 15 GB for a step of 240 atoms on a CPU core. Run it alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from lamm.bench.model import bench_model, table
from lamm.cli.common import finite, start_logging
from lamm.files import write_json

ROOT = Path(__file__).parent.parent
logger = logging.getLogger("lamm.benchmarks")


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--to", type=Path, default=ROOT / "benchmarks" / "results" / "equiformer.json"
    )
    options = parser.parse_args()
    start_logging()
    results = {}
    for file in options.files:
        results[file.stem] = bench_model(
            "lamm-l",
            file,
            threads=options.threads,
            rounds=options.rounds,
            progress=lambda text: logger.info("%s ...", text),
        )
        write_json(options.to, finite(results))
        sys.stdout.write("\n".join(table(results[file.stem])) + "\n")


if __name__ == "__main__":
    main()
