"""Fine-tuning beside its rivals: the same split, the same wall time, the same processor threads.

usage: python benchmarks/rivals.py --rivals PYTHON [--seconds S] [--shared DIR] [--sets ...]

Each arm has the time from the start of its command to its last test error: `lamm finetune` from
the shipped model (``pretrained``) and from scratch (``scratch``), SchNetPack's PaiNN and MACE,
trained by ``rival_schnetpack.py`` and ``rival_mace.py`` under the interpreter PYTHON, where they
are installed; SchNetPack 2.0.4 pins a torchmetrics that MACE 0.3.16 doesn't work with, so each is
best given an environment of its own. On several threads `lamm finetune` starts ranks, as it does
for its users. Sets: the shipped ``downstream_sevennet``, which the shipped model has not seen, and
with ``--shared`` four of the files that ``configs/shared_mini.sh`` reads. Results are added to
``benchmarks/results/rivals.json`` arm by arm, so that it can be run in parts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rival_sets import SHARED_SETS, SHIPPED_SET, write_set

from lamm.files import write_json

ROOT = Path(__file__).parent.parent
ARMS = ("pretrained", "scratch", "schnetpack", "mace")


def lamm_arm(arm: str, folder: Path, seconds: float, to: Path) -> dict[str, Any]:
    """Fine-tune by the command as a user types it; test errors from the card."""
    start = ["--from", "lamm-xs"] if arm == "pretrained" else ["--from-scratch", "lamm-xs"]
    files = [
        word for part in ("val", "test") for word in (f"--{part}", str(folder / f"{part}.extxyz"))
    ]
    command = [sys.executable, "-m", "lamm", "finetune", *start, "--data"]
    command += [str(folder / "train.extxyz"), *files, "--to", str(to), "--accept-data"]
    command += ["--max-time", f"{seconds:g}s", "train.workers=0"]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{arm}: {done.stderr[-2000:]}")
    card = json.loads((to / "card.json").read_text(encoding="utf-8"))
    errors = next(iter(card["errors"]["test"].values()))
    return {
        "seconds": time.monotonic() - begin,
        "steps": card["training"]["steps"],
        "energy_mae_mev_per_atom": errors["energy_mae_mev_per_atom"],
        "forces_mae_mev_per_ang": errors["forces_mae_mev_per_ang"],
    }


def rival_arm(arm: str, folder: Path, seconds: float, to: Path, python: str) -> dict[str, Any]:
    """Train a rival by its own script, which prints its test errors as JSON in its last line."""
    script = ROOT / "benchmarks" / f"rival_{arm}.py"
    done = subprocess.run(
        [python, "-W", "ignore", str(script), str(folder), f"{seconds:g}", str(to)],
        capture_output=True,
        text=True,
        cwd=folder.parent,  # where rivals may leave files of their own
    )
    if done.returncode:
        raise SystemExit(f"{arm}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Run what was asked for and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rivals", default=sys.executable)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--sets", nargs="*", choices=(SHIPPED_SET, *SHARED_SETS))
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results" / "rivals.json")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    sets = options.sets or [SHIPPED_SET, *(SHARED_SETS if options.shared else ())]
    for name in sets:
        for arm in options.arms:
            with tempfile.TemporaryDirectory() as scratch:
                folder, to = Path(scratch) / "set", Path(scratch) / "run"
                counts = write_set(name, folder, options.shared)
                if arm in ("pretrained", "scratch"):
                    result = lamm_arm(arm, folder, options.seconds, to)
                else:
                    result = rival_arm(arm, folder, options.seconds, to, options.rivals)
            known = json.loads(options.to.read_text()) if options.to.is_file() else {}
            entry = known.setdefault(name, {"structures": counts, "arms": {}})
            entry["arms"][arm] = {"limit": options.seconds, "threads": options.threads, **result}
            write_json(options.to, known)
            print(name, arm, json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
