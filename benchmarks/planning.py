"""An epoch of the paper's joint data set, 432 million uses, planned on this machine.

usage: python benchmarks/planning.py [--structures N] [--processes N] [--to FILE]

Writes ``benchmarks/results/planning.json`` and prints what ``lamm bench planning`` does, for each
planner that works window by window: `balanced`, `random` and `greedy`. It takes some minutes and
a gigabyte of memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lamm.balance.population import TOTAL
from lamm.bench.planning import bench_planning, lines_of
from lamm.cli.common import finite, start_logging
from lamm.files import write_json

ROOT = Path(__file__).parent.parent
PLANNERS = ("balanced", "random", "greedy")


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structures", type=int, default=TOTAL)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--to", type=Path, default=ROOT / "benchmarks" / "results" / "planning.json"
    )
    options = parser.parse_args()
    start_logging()
    found = {}
    for planner in PLANNERS:
        result = bench_planning(
            options.structures,
            ranks=64,
            batch_size=8,
            planner=planner,
            processes=options.processes,
        )
        sys.stdout.write("\n".join(lines_of(result)) + "\n")
        found[planner] = result
    write_json(options.to, finite(found))


if __name__ == "__main__":
    main()
