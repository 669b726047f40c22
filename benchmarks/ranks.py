"""Ranks or threads: steps of `lamm finetune` in the same time on the cores of one machine.

usage: python benchmarks/ranks.py [--seconds S] [--repeats N] [--cores N]

The command as a user types it, from scratch on the shipped ``downstream_sevennet``, in three ways:
one rank with one thread, one rank with a thread for each core, and a rank for each core, which is
what it chooses by itself. All train on mini-batches of the same size. The ways alternate; medians.
Results go to ``benchmarks/results/ranks.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rival_sets import SHIPPED_SET, write_set

from lamm.files import write_json
from lamm.train.local_ranks import processors

ROOT = Path(__file__).parent.parent


def train(folder: Path, seconds: float, ranks: int, threads: int, to: Path) -> dict[str, float]:
    """Steps and test errors of one fine-tuning from scratch."""
    files = [word for part in ("val", "test") for word in (f"--{part}", f"{folder}/{part}.extxyz")]
    command = [sys.executable, "-m", "lamm", "finetune", "--from-scratch", "lamm-xs"]
    command += ["--data", f"{folder}/train.extxyz", *files, "--to", str(to), "--accept-data"]
    command += ["--max-time", f"{seconds:g}s", "--ranks", str(ranks)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    card = json.loads((to / "card.json").read_text(encoding="utf-8"))
    errors = next(iter(card["errors"]["test"].values()))
    return {
        "steps": card["training"]["steps"],
        "energy_mae_mev_per_atom": errors["energy_mae_mev_per_atom"],
        "forces_mae_mev_per_ang": errors["forces_mae_mev_per_ang"],
    }


def main() -> None:
    """Alternate the three ways and write their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=processors())
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results" / "ranks.json")
    options = parser.parse_args()
    cores = options.cores
    ways = {
        "one_thread": (1, 1),
        "threads": (1, cores),
        "ranks": (cores, cores),  # as many threads as cores, which the ranks share out
    }
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "set"
        write_set(SHIPPED_SET, folder, None)
        for repeat in range(options.repeats):
            for way, (ranks, threads) in ways.items():
                to = Path(scratch) / f"{way}-{repeat}"
                runs[way].append(train(folder, options.seconds, ranks, threads, to))
                print(way, json.dumps(runs[way][-1]), flush=True)
    medians = {
        way: {key: median(run[key] for run in found) for key in found[0]}
        for way, found in runs.items()
    }
    alone = medians["one_thread"]["steps"]
    write_json(
        options.to,
        {
            "cores": cores,
            "seconds": options.seconds,
            "medians": medians,
            "steps_beside_one_thread": {way: one["steps"] / alone for way, one in medians.items()},
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
