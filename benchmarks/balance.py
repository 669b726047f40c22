"""All planners on the paper's joint data set, scaled down: the source of the figures in the docs.

usage: python benchmarks/balance.py [--structures N] [--to FILE] [--figure STEM]

Writes ``benchmarks/results/balance.json``, the figure ``docs/images/balance.png`` (with SVG and
CSV) and prints the tables of ``lamm bench balance`` for LaMM-S on 64 ranks, on 4 to 1,024 ranks and
with smaller batches, for LaMM-L, and with equal memory on 16 ranks. It takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lamm.balance.population import population
from lamm.bench.balance import COST_MODELS, bench_balance, index_of, table
from lamm.cli.common import finite, start_logging
from lamm.data.sampling import SamplingConfig
from lamm.evaluate.balance_figure import balance_figure, balance_rows
from lamm.evaluate.style import save_figure
from lamm.files import write_json

ROOT = Path(__file__).parent.parent
SHAPES = (
    *(("S", ranks, 8) for ranks in (4, 16, 64, 256, 1024)),
    *(("S", 64, size) for size in (6, 5, 4, 2)),
    ("L", 16, 2),
    ("L", 64, 2),
)
"""Cost model, ranks and structures per rank."""
EQUAL_MEMORY_RANKS = 16
"""Ranks at which equal memory is looked at, as in the paper."""
PLANNERS = ("paper", "paper_shuffled", "balanced")


def main() -> None:
    """Run, write, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structures", type=int, default=280_000)
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results" / "balance.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images" / "balance")
    options = parser.parse_args()
    start_logging()
    counts = population(options.structures)
    index = {name: index_of(counts, model) for name, model in COST_MODELS.items()}
    source = "Table 2, scaled down"
    shown = bench_balance(
        index["S"],
        SamplingConfig(),
        ranks=64,
        batch_size=8,
        model=COST_MODELS["S"],
        equal_memory=True,
        source=source,
    )
    sys.stdout.write("\n".join(table(shown)) + "\n")
    shapes = []
    for name, ranks, batch_size in SHAPES:
        result = bench_balance(
            index[name],
            SamplingConfig(),
            ranks=ranks,
            batch_size=batch_size,
            planners=PLANNERS,
            model=COST_MODELS[name],
            equal_memory=ranks == EQUAL_MEMORY_RANKS,
            source=source,
        )
        result["settings"]["model"] = name
        sys.stdout.write(f"LaMM-{name}; " + "\n".join(table(result)) + "\n")
        for one in result["planners"].values():
            del one["series"]
        shapes.append({"settings": result["settings"], "planners": result["planners"]})
    write_json(options.to, finite({**shown, "shapes": shapes}))
    save_figure(balance_figure(shown), options.figure, balance_rows(shown))


if __name__ == "__main__":
    main()
