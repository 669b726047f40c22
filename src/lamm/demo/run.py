"""The demonstration, step by step: each step is a command that a user has too."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lamm.calculators.ase import LaMMCalculator
from lamm.config import RunConfig
from lamm.data.joint import JointDataset
from lamm.data.sampling import temperature_sizes
from lamm.demo.config import DemoConfig
from lamm.errors import ConfigError
from lamm.evaluate.curves import (
    Series,
    ratio,
    read_metrics,
    steps_to_threshold,
    validation_series,
)
from lamm.files import write_json
from lamm.finetune import finetune
from lamm.structure import Structure
from lamm.train.checkpoint import load
from lamm.train.distributed import World, choose_device
from lamm.train.run import pretrain
from lamm.train.validation import validate

logger = logging.getLogger(__name__)

ENERGY, FORCES = "energy_mae_mev_per_atom", "forces_mae_mev_per_ang"
OWN, FAIR = "denoising_mae_own_ang", "denoising_mae_fair_ang"
THRESHOLD_MARGIN = 1.05
"""A threshold is the best validation error of training from scratch, times this."""


def curve(run_dir: Path, subset: str, key: str) -> Series:
    """A validation error of one subset in a run's metrics."""
    return validation_series(read_metrics(run_dir))[subset][key]


def best(series: Series) -> float:
    """Lowest value of a curve."""
    return float(series.values.min())


def subset_rows(joint: JointDataset) -> list[dict[str, Any]]:
    """The rows of Table 2 for a joint data set."""
    sizes = [len(subset.rows("train")) for subset in joint.subsets]
    temperature = joint.config.sampling.temperature
    sampled = temperature_sizes(sizes, temperature, joint.sampling_weights)
    rows = []
    for subset, size, with_sampling in zip(joint.subsets, sizes, sampled, strict=True):
        card = subset.store.card
        labels = (
            "N"
            if subset.denoising
            else ", ".join(
                letter
                for letter, present in (
                    ("E", subset.has_energy.any()),
                    ("F", subset.has_forces.any()),
                )
                if present
            )
        )
        rows.append(
            {
                "name": subset.name,
                "domain": card.domain,
                "task": "Denoising" if subset.denoising else card.task,
                "functional": card.functional,
                "is_dft": card.is_dft,
                "periodic": bool(card.periodic),
                "labels": labels,
                "average_atoms": float(subset.store.index.num_atoms.mean()),
                "elements": len(card.elements),
                "structures": len(subset.store),
                "training_structures": int(size),
                "training_structures_with_sampling": int(with_sampling),
            }
        )
    return rows


def test_errors(run_dir: Path, config: RunConfig) -> dict[str, float]:
    """Errors of a run's best model on the test split of its one subset."""
    joint = JointDataset(config.data, config.seed)
    world = World(0, 1, choose_device(config.train.device))
    model = load(run_dir, world.device)
    result = validate(model, joint, config.loss, world, split="test")
    (errors,) = result["subsets"].values()
    return dict(errors)


def compare_downstream(
    scratch: RunConfig, scratch_dir: Path, pretrained_dir: Path, name: str
) -> dict[str, Any]:
    """The table of Table 3's kind: test errors, steps to a threshold, speed-up.

    The threshold is the best validation error that training from scratch reached, plus 5 %.
    """
    thresholds = {
        key: THRESHOLD_MARGIN * best(curve(scratch_dir, name, key)) for key in (ENERGY, FORCES)
    }
    result: dict[str, Any] = {"name": name, "thresholds": thresholds}
    for label, run_dir in (("scratch", scratch_dir), ("pretrained", pretrained_dir)):
        curves = {key: curve(run_dir, name, key) for key in (ENERGY, FORCES)}
        result[label] = {
            **test_errors(run_dir, scratch),
            "validation_best": {key: best(one) for key, one in curves.items()},
            "validation_step_0": {key: float(one.values[0]) for key, one in curves.items()},
            "steps_to_threshold": {
                "energy": steps_to_threshold(
                    curves[ENERGY].steps, curves[ENERGY].values, thresholds[ENERGY]
                ),
                "forces": steps_to_threshold(
                    curves[FORCES].steps, curves[FORCES].values, thresholds[FORCES]
                ),
            },
        }
    result["speedup"] = {
        kind: ratio(
            result["scratch"]["steps_to_threshold"][kind],
            result["pretrained"]["steps_to_threshold"][kind],
        )
        for kind in ("energy", "forces")
    }
    return result


def compare_denoising(baseline_dir: Path, centred_dir: Path, name: str) -> dict[str, Any]:
    """Fig. 7 in small: best errors by both definitions, and steps to the baseline's best error."""
    result: dict[str, Any] = {"subset": name}
    for key, short in ((OWN, "own_labels"), (FAIR, "fair")):
        baseline, centred = curve(baseline_dir, name, key), curve(centred_dir, name, key)
        steps = steps_to_threshold(centred.steps, centred.values, best(baseline))
        slow = steps_to_threshold(baseline.steps, baseline.values, best(baseline))
        result[short] = {
            "baseline_ang": best(baseline),
            "centred_ang": best(centred),
            "baseline_steps": slow,
            "centred_steps_to_baseline": steps,
            "speedup": ratio(slow, steps),
        }
    return result


def largest_force(structure: Structure) -> float:
    """Length of the largest labelled force in eV/Å; infinite where there is none."""
    if structure.forces is None:
        return float("inf")
    return float(np.linalg.norm(structure.forces, axis=1).max())


def relax_one(run_dir: Path, structure: Structure, fmax: float = 0.1) -> dict[str, Any]:
    """Relax a structure's positions with a run's best model (FIRE, at most 150 steps)."""
    from ase.optimize import FIRE

    atoms = structure.to_atoms()
    atoms.calc = LaMMCalculator(run_dir)
    energies: list[float] = []
    forces: list[float] = []

    def note() -> None:
        energies.append(float(atoms.get_potential_energy()))
        forces.append(float(np.linalg.norm(atoms.get_forces(), axis=1).max()))

    optimizer = FIRE(atoms, logfile=None)
    optimizer.attach(note)
    converged = optimizer.run(fmax=fmax, steps=150)
    return {
        "formula": atoms.get_chemical_formula(),
        "id": structure.id,
        "converged": bool(converged),
        "steps": len(energies) - 1,
        "fmax_ev_per_ang": fmax,
        "energy_ev": energies,
        "largest_force_ev_per_ang": forces,
    }


FOLDERS = ("pretrain", "scratch", "finetune", "denoising-baseline", "denoising-centred")


class Clock:
    """Seconds of each named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block and say so in the log."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        logger.info("%s took %.0f s", name, self.seconds[name])


def run_demo(config: DemoConfig, to: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Run the whole demonstration and write ``results.json`` and ``report.html``.

    Args:
        config: what to do.
        to: folder of everything that is written; it must be empty or not exist.
        quiet: without progress bars.

    Returns:
        What ``results.json`` holds.

    Raises:
        LaMMError: data or configuration can't be used, or the folder isn't empty.
    """
    from lamm.demo.report import write_report

    started, clock = time.perf_counter(), Clock()
    if to.exists() and any(to.iterdir()):
        raise ConfigError(f"{to}: not empty. Choose another folder, or replace it by --force.")
    joint = JointDataset(config.data, config.seed)
    downstream = JointDataset(config.downstream.data, config.seed)
    folders = {name: to / name for name in FOLDERS}
    scratch = config.scratch(folders["scratch"])

    base = config.base
    if base is None:
        base = folders["pretrain"]
        with clock("pre-training"):
            pretrain(config.pretraining(base), quiet=quiet)
    with clock("fine-tuning, with and without pre-training"):
        pretrain(scratch, quiet=quiet, title="from scratch")
        finetune(config.finetuning(folders["finetune"], base), quiet=quiet)
    with clock("denoising, baseline and centred"):
        denoising = run_denoising(config, joint, folders, quiet)
    with clock("test errors and relaxation"):
        comparison = compare_downstream(
            scratch, folders["scratch"], folders["finetune"], config.downstream.name
        )
        calmest = min(downstream.structures("test"), key=largest_force)
        relaxation = relax_one(folders["finetune"], calmest)

    results: dict[str, Any] = {
        "subsets": subset_rows(joint),
        "downstream": comparison,
        "denoising": denoising,
        "relaxation": relaxation,
        "seconds_by_part": clock.seconds,
        "seed": config.seed,
        "seconds": time.perf_counter() - started,
    }
    write_report(config, joint, downstream, folders, results, to / "report.html")
    results["seconds"] = time.perf_counter() - started
    write_json(to / "results.json", results)
    return results


def run_denoising(
    config: DemoConfig, joint: JointDataset, folders: dict[str, Path], quiet: bool
) -> dict[str, Any] | None:
    """Fig. 7 in small, on the first subset that carries the denoising task; None without one."""
    for subset in joint.subsets:
        if subset.denoising is None:
            continue
        for kind, centred in (("denoising-baseline", False), ("denoising-centred", True)):
            run = config.denoising_run(
                folders[kind], subset.name, subset.denoising, centred=centred
            )
            pretrain(run, quiet=quiet, title=kind)
        return compare_denoising(
            folders["denoising-baseline"], folders["denoising-centred"], subset.name
        )
    return None


def clear(folder: Path) -> None:
    """Remove an earlier demonstration, and nothing that isn't one.

    Raises:
        ConfigError: the folder holds something else.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not ((folder / "pretrain").is_dir() or (folder / "finetune").is_dir()):
        raise ConfigError(
            f"{folder}: not a demonstration's folder, so it is not removed. Choose another by --to."
        )
    shutil.rmtree(folder)
