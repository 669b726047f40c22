"""Run the demonstration and keep its numbers: the source of the README's table and picture.

usage: python benchmarks/demo.py [--to DIR]

Writes ``benchmarks/results/demo.json`` (results, versions, device, seed) and
``docs/images/finetuning.png``, and prints the README's table.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from lamm.cli.common import finite, start_logging
from lamm.demo.config import read_demo_config
from lamm.demo.run import clear, run_demo
from lamm.files import write_json

ROOT = Path(__file__).parent.parent


def table(results: dict[str, Any]) -> str:
    """The README's table of the downstream comparison."""
    downstream = results["downstream"]
    scratch, pretrained = downstream["scratch"], downstream["pretrained"]
    rows = [
        "| fine-tuning on the downstream set | from scratch | pre-trained |",
        "| --- | --- | --- |",
    ]
    for label, key in (
        ("energy MAE, test (meV/atom)", "energy_mae_mev_per_atom"),
        ("forces MAE, test (meV/Å)", "forces_mae_mev_per_ang"),
    ):
        rows.append(f"| {label} | {scratch[key]:.0f} | **{pretrained[key]:.0f}** |")
    for kind in ("energy", "forces"):
        slow, fast = (one["steps_to_threshold"][kind] for one in (scratch, pretrained))
        speedup = f"{downstream['speedup'][kind]:.1f}× fewer"
        rows.append(f"| steps to the threshold, {kind} | {slow:.0f} | **{fast:.0f}** ({speedup}) |")
    rows.append(f"\nThe whole demonstration took {results['seconds']:.0f} s.")
    return "\n".join(rows)


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "runs" / "demo")
    folder = parser.parse_args().to
    start_logging()
    clear(folder)
    results = run_demo(read_demo_config(), folder)
    environment = json.loads((folder / "pretrain" / "environment.json").read_text())
    environment.pop("command")
    write_json(
        ROOT / "benchmarks" / "results" / "demo.json",
        finite({"environment": environment, **results}),
    )
    images = ROOT / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "figures" / "finetuning.png", images / "finetuning.png")
    print(table(results))


if __name__ == "__main__":
    main()
