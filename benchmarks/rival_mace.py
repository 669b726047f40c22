"""MACE on one split for a wall time: python rival_mace.py FOLDER SECONDS TO.

Its own training command (``mace.cli.run_train``) with 64 scalars and 64 vectors, cutoff 5 Å,
batches of 5, linear reference energies and averaged weights. It knows no time limit, so it is given
the number of epochs that fit: a first run, which isn't counted, tells how long its start and an
epoch take. The rate falls over that number to a fiftieth. Prints test errors as JSON.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from mace.calculators import MACECalculator

CHANNELS, CUTOFF, BATCH = 64, 5.0, 5
Timing = tuple[float, float]
"""Seconds until training begins, and of one epoch with its validation."""


def references(parts: dict[str, list[Atoms]]) -> dict[int, float]:
    """Energy of each element by least squares on the training energies."""
    elements = sorted({int(z) for atoms in parts.values() for one in atoms for z in one.numbers})
    counts = [[np.sum(one.numbers == z) for z in elements] for one in parts["train"]]
    energies = [one.info["REF_energy"] for one in parts["train"]]
    solution = np.linalg.lstsq(np.array(counts, float), np.array(energies), rcond=1e-10)[0]
    return dict(zip(elements, map(float, solution), strict=True))


def command(to: Path, energies: dict[int, float], work: str, epochs: int) -> list[str]:
    """MACE's training command."""
    options = {
        "name": "model",
        "train_file": to / "train.xyz",
        "valid_file": to / "val.xyz",
        "energy_key": "REF_energy",
        "forces_key": "REF_forces",
        "E0s": energies,
        "model": "MACE",
        "hidden_irreps": f"{CHANNELS}x0e + {CHANNELS}x1o",
        "r_max": CUTOFF,
        "batch_size": BATCH,
        "valid_batch_size": 16,
        "lr": 0.01,
        "energy_weight": 1,
        "forces_weight": 100,
        "scaling": "rms_forces_scaling",
        "default_dtype": "float32",
        "device": "cpu",
        "seed": 0,
        "ema_decay": 0.99,
        "num_workers": 0,
        "eval_interval": 1,
        "error_table": "PerAtomMAE",
        "scheduler": "ExponentialLR",
        "lr_scheduler_gamma": 0.02 ** (1 / epochs),
        "max_num_epochs": epochs,
        "work_dir": to / work,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mace.cli.run_train",
        *words,
        "--ema",
        "--amsgrad",
    ]


def timing(to: Path, energies: dict[int, float], limit: float) -> Timing:
    """Start a training and watch its log until an epoch is done, or `limit` seconds have gone."""
    begin = time.monotonic()
    process = subprocess.Popen(
        command(to, energies, "trial", 1000),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    started, said = None, []
    try:
        for line in process.stdout:
            said.append(line)
            now = time.monotonic() - begin
            if "Initial" in line:
                started = now
            if started is not None and re.search(r"Epoch \d+:", line):
                return started, now - started
            if now > limit:
                break
    finally:
        now = time.monotonic() - begin
        process.kill()
        process.wait()
    raise SystemExit(
        f"mace: no epoch is done after {now:.0f} s. It said last:\n{''.join(said[-5:])}"
    )


def main() -> None:
    """Train for the time, then test the model."""
    folder, seconds, to = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    to.mkdir(parents=True)
    parts = {name: ase.io.read(folder / f"{name}.extxyz", ":") for name in ("train", "val", "test")}
    for name, atoms in parts.items():
        for one in atoms:
            one.info["REF_energy"] = one.get_potential_energy()
            one.arrays["REF_forces"] = one.get_forces()
            one.calc = None
        ase.io.write(to / f"{name}.xyz", atoms, format="extxyz")
    energies = references(parts)
    started, epoch = timing(to, energies, 4 * seconds)
    epochs = max(int((seconds * 0.97 - 5 - started) / epoch), 1)
    begin = time.monotonic()
    done = subprocess.run(command(to, energies, "run", epochs), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    took = time.monotonic() - begin
    file = next(path for path in (to / "run").glob("*.model") if "compiled" not in path.name)
    model = torch.load(file, map_location="cpu", weights_only=False)
    calculator = MACECalculator(models=[model.float()], device="cpu", default_dtype="float32")
    energy_errors, force_errors = [], []
    for one in parts["test"]:
        copy = one.copy()
        copy.calc = calculator
        energy_errors.append(abs(copy.get_potential_energy() - one.info["REF_energy"]) / len(one))
        force_errors.append(np.abs(copy.get_forces() - one.arrays["REF_forces"]).reshape(-1))
    answer = {
        "seconds": took,
        "epochs": epochs,
        "steps": epochs * -(-len(parts["train"]) // BATCH),
        "energy_mae_mev_per_atom": 1000 * float(np.mean(energy_errors)),
        "forces_mae_mev_per_ang": 1000 * float(np.concatenate(force_errors).mean()),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
