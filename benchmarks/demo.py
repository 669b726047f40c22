"""Run the demonstration and keep its numbers: the source of the README's table and picture.

usage: python benchmarks/demo.py [--to DIR] [--keep] [--name NAME]

Writes ``benchmarks/results/NAME.json`` (results, versions, device, seed) and, as ``demo``,
``docs/images/finetuning.png``, and prints the README's table. The README's second run is
``OMP_NUM_THREADS=2 python benchmarks/demo.py --name demo_two_threads``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from lamm.cli.common import start_logging
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
    parser.add_argument("--keep", action="store_true", help="take the demonstration that is there")
    parser.add_argument("--name", default="demo")
    options = parser.parse_args()
    folder: Path = options.to
    start_logging()
    if not options.keep:
        clear(folder)
        run_demo(read_demo_config(), folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    environment = json.loads((folder / "pretrain" / "environment.json").read_text())
    environment.pop("command")
    target = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    write_json(target, {"environment": environment, **results})
    if options.name == "demo":
        images = ROOT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "figures" / "finetuning.png", images / "finetuning.png")
    print(table(results))


if __name__ == "__main__":
    main()
