"""Planners with real processes on the shipped data: planned and measured imbalance, waiting times.

usage: python benchmarks/step.py [--ranks N] [--steps N] [--rounds N] [--to FILE]

Runs ``lamm bench step`` on the demonstration's joint data set and writes
``benchmarks/results/step.json``. Run it alone, on as many free cores as there are ranks.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from lamm.bench.step import bench_step, table
from lamm.cli.common import finite, start_logging
from lamm.demo.config import read_demo_config
from lamm.files import write_json

ROOT = Path(__file__).parent.parent
logger = logging.getLogger("lamm.benchmarks")


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results" / "step.json")
    options = parser.parse_args()
    start_logging()
    config = read_demo_config().pretraining(Path("unused"))
    train = config.train.model_copy(update={"workers": 2})
    balance = config.balance.model_copy(update={"batch_size": 8})
    result = bench_step(
        config.model_copy(update={"train": train, "balance": balance}),
        ranks=options.ranks,
        steps=options.steps,
        rounds=options.rounds,
        progress=lambda text: logger.info("%s ...", text),
    )
    write_json(options.to, finite(result))
    sys.stdout.write("\n".join(table(result)) + "\n")


if __name__ == "__main__":
    main()
