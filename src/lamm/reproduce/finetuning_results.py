"""Table 3 and Fig. 9 from the trainings of a study: errors, thresholds, speed-ups, curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lamm.data.joint import JointDataset
from lamm.demo.run import ENERGY, FORCES, best, curve
from lamm.evaluate.curves import (
    LearningCurve,
    mean_curve,
    ratio,
    read_metrics,
    train_series,
)
from lamm.evaluate.evaluation import evaluate_structures
from lamm.evaluate.figures import finetuning_curves, finetuning_rows
from lamm.files import write_json
from lamm.reproduce.finetuning_study import FinetuningStudy
from lamm.reproduce.outcome import Outcome, Picture, Table
from lamm.reproduce.runs import Runner
from lamm.reproduce.settings import paper_values
from lamm.reproduce.spread import seeds_text, speed_up, spread, spread_text
from lamm.train.checkpoint import load
from lamm.train.distributed import choose_device

KINDS = {"energy": ENERGY, "forces": FORCES}
MEDIANS = {"energy": "energy_median_mev_per_atom", "forces": "forces_median_mev_per_ang"}
UNITS = {"energy": "meV/atom", "forces": "meV/Å"}
TEST = "test.json"
"""Test errors of a run, beside its weights."""


def compare_pretraining(study: FinetuningStudy, runner: Runner) -> Outcome:
    """Train what is missing, and compare every arm with training from scratch, seed by seed."""
    runner.run(study.trainings(runner.folder))
    found = {model: _model_results(study, runner.folder, model) for model in study.models}
    outcome = Outcome({"downstream": found})
    for model, arms in found.items():
        outcome.tables += _tables(study, model, arms)
        for name, wanted in study.figures.items():
            picture = _picture(study, runner.folder, model, name, wanted)
            if picture is not None:
                outcome.pictures.append(picture)
    return outcome


# ---- numbers -----------------------------------------------------------------------------------


def _model_results(study: FinetuningStudy, runs: Path, model: str) -> dict[str, Any]:
    """What every arm of a model came to, by name."""
    by_seed = {
        arm: [_seed_results(study, runs, model, arm, seed) for seed in study.seeds]
        for arm in study.arms
    }
    return {arm: _arm_results(seeds, by_seed[study.scratch]) for arm, seeds in by_seed.items()}


def _seed_results(
    study: FinetuningStudy, runs: Path, model: str, arm: str, seed: int
) -> dict[str, Any]:
    """One run: test errors, best validation errors, and how soon it met the thresholds."""
    folder = runs / study.finetuning_name(model, arm, seed)
    scratch = runs / study.finetuning_name(model, study.scratch, seed)
    name = study.downstream.name
    lines = [line for line in read_metrics(folder) if line["kind"] == "validation"]
    steps, seconds = ([line[key] for line in lines] for key in ("step", "seconds"))
    result: dict[str, Any] = {"seed": seed, **test_errors(study, folder, seed)}
    result |= {"validation_best": {}, "thresholds": {}, "steps_to_threshold": {}}
    result |= {"seconds_to_threshold": {}, "speedup": {}}
    for kind, key in KINDS.items():
        ours, other = curve(folder, name, key), curve(scratch, name, key)
        one = speed_up(other, ours, study.threshold_factor * best(other))
        result["validation_best"][kind] = best(ours)
        result["thresholds"][kind] = one["threshold"]
        result["steps_to_threshold"][kind] = one["steps"]
        result["speedup"][kind] = one["speedup"]
        result["seconds_to_threshold"][kind] = (
            None if one["steps"] is None else float(np.interp(one["steps"], steps, seconds))
        )
    return result


def test_errors(study: FinetuningStudy, folder: Path, seed: int) -> dict[str, float]:
    """Errors of a run's best model on the test structures; kept in its folder once computed."""
    path = folder / TEST
    if not path.exists():
        joint = JointDataset(study.downstream.data, seed)
        model = load(folder, choose_device("auto"))
        column = model.subsets.index(study.downstream.name)
        write_json(path, evaluate_structures(model, joint.structures("test"), column).errors)
    errors: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return errors


def _arm_results(seeds: list[dict[str, Any]], scratch: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, spreads, and ratios to the runs from scratch of the same seeds."""
    result: dict[str, Any] = {}
    for key in (*KINDS.values(), *MEDIANS.values()):
        values = [one[key] for one in seeds]
        result[key] = float(np.mean(values))
        result[f"{key}_spread"] = spread(values)
        result[f"{key}_beside_scratch"] = spread(
            [ratio(one[key], other[key]) for one, other in zip(seeds, scratch, strict=True)]
        )
    for key in ("steps_to_threshold", "seconds_to_threshold", "speedup"):
        spreads = {kind: spread([one[key][kind] for one in seeds]) for kind in KINDS}
        result[key] = {
            kind: None if found["missing"] else found["mean"] for kind, found in spreads.items()
        }
        result[f"{key}_spread"] = spreads
    return {**result, "seeds": seeds}


# ---- tables ------------------------------------------------------------------------------------


def _paper_row(study: FinetuningStudy, model: str, arm: str) -> dict[str, Any]:
    """The row of the paper's Table 3 that an arm stands for; empty where there is none."""
    paper, stage = paper_values("table3"), study.arms[arm].paper
    row = paper["stages"][study.models[model].paper].get(stage)
    found: dict[str, Any] = paper["rows"].get(row, {})
    return found


def _tables(study: FinetuningStudy, model: str, arms: dict[str, Any]) -> list[Table]:
    """Errors of energies and forces, then steps to the thresholds of both."""
    make = (_error_table, _speed_table)
    return [one(study, model, arms, kind) for one in make for kind in KINDS]


def _error_table(study: FinetuningStudy, model: str, arms: dict[str, Any], kind: str) -> Table:
    published, key = paper_values("table3"), KINDS[kind]
    name = study.models[model].paper
    scratch = published["rows"][published["stages"][name]["scratch"]][key]
    rows = []
    for arm, one in arms.items():
        theirs = _paper_row(study, model, arm).get(key)
        rows.append(
            (
                arm,
                spread_text(one[f"{key}_spread"]),
                one[MEDIANS[kind]],
                spread_text(one[f"{key}_beside_scratch"], "×"),
                theirs,
                None if theirs is None else f"{theirs / scratch:.2f}×",
            )
        )
    columns = (
        f"{model}, {kind}",
        f"MAE ({UNITS[kind]})",
        f"median ({UNITS[kind]})",
        "of scratch",
        "MAE, paper",
        "of scratch, paper",
    )
    return Table(
        columns,
        rows,
        f"Errors of {model} on the test structures of {study.downstream.name}, {kind}, means over "
        f"{seeds_text(study.seeds)} (least–largest), as Table 3 has them. Of scratch: divided by "
        "the error from scratch with the same seed, smaller is better. Median: of absolute errors, "
        f"which a few extreme structures don't rule. Paper: {name} on HME21, another data set, so "
        "that only the ratios compare.",
    )


def _speed_table(study: FinetuningStudy, model: str, arms: dict[str, Any], kind: str) -> Table:
    published, name = paper_values("table3"), study.models[model].paper
    rows = [
        (
            arm,
            spread_text(one["steps_to_threshold_spread"][kind]),
            spread_text(one["seconds_to_threshold_spread"][kind]),
            spread_text(one["speedup_spread"][kind], "×"),
            f"{published['speedup'][name][kind]:.2f}×" if study.arms[arm].paper == "full" else None,
        )
        for arm, one in arms.items()
    ]
    mean = np.mean([one["thresholds"][kind] for one in arms[study.scratch]["seeds"]])
    return Table(
        (f"{model}, {kind}", "steps", "seconds", "speed-up", "speed-up, paper"),
        rows,
        f"Fine-tuning steps and seconds to the threshold of {kind}, means over the seeds "
        "(least–largest), and how many times fewer steps than from scratch with the same seed. A "
        "threshold is the best validation error from scratch with that seed times "
        f"{study.threshold_factor:g}, {mean:.3g} {UNITS[kind]} in the mean; the paper's is "
        f"{published['thresholds'][name][KINDS[kind]]} {UNITS[kind]} on HME21.",
    )


# ---- figures -----------------------------------------------------------------------------------


def _picture(
    study: FinetuningStudy, runs: Path, model: str, name: str, wanted: list[str]
) -> Picture | None:
    """Learning curves of the arms that a figure shows, means over the seeds."""
    arms = [arm for arm in wanted if arm in study.arms]
    if len(arms) < 2:
        return None
    subset = study.downstream.name
    folders = {
        arm: [runs / study.finetuning_name(model, arm, seed) for seed in study.seeds]
        for arm in arms
    }
    means = [
        LearningCurve(
            arm,
            energy=mean_curve([curve(folder, subset, ENERGY) for folder in those]),
            forces=mean_curve([curve(folder, subset, FORCES) for folder in those]),
            loss=mean_curve([train_series(read_metrics(folder), "loss") for folder in those]),
        )
        for arm, those in folders.items()
    ]
    rows = [
        {"seed": seed, **row}
        for arm, those in folders.items()
        for seed, folder in zip(study.seeds, those, strict=True)
        for row in finetuning_rows(
            [
                LearningCurve(
                    arm,
                    energy=curve(folder, subset, ENERGY),
                    forces=curve(folder, subset, FORCES),
                    loss=train_series(read_metrics(folder), "loss"),
                )
            ]
        )
    ]
    return Picture(
        f"{name}_{model}",
        finetuning_curves(means, window=5),
        rows,
        f"Fine-tuning of {model} on {subset} (as Fig. 9), validation errors and training loss, "
        f"means over {seeds_text(study.seeds)}.",
    )
