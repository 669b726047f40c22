"""The page of one or several training runs: curves, errors, speed and provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lamm.errors import ConfigError, DataError
from lamm.evaluate.curves import (
    LearningCurve,
    Series,
    learning_curve,
    read_metrics,
    train_series,
    validation_loss,
    validation_series,
)
from lamm.evaluate.figures import (
    finetuning_curves,
    pretraining_curves,
    speed_curves,
    subset_colours,
    training_curves,
)
from lamm.evaluate.page import Page

ERRORS = (
    ("energy_mae_mev_per_atom", "Energy MAE (meV/atom)"),
    ("energy_rmse_mev_per_atom", "Energy RMSE (meV/atom)"),
    ("forces_mae_mev_per_ang", "Forces MAE (meV/Å)"),
    ("forces_rmse_mev_per_ang", "Forces RMSE (meV/Å)"),
    ("stress_mae_mev_per_ang3", "Stress MAE (meV/Å³)"),
    ("denoising_mae_own_ang", "Noise MAE, own (Å)"),
    ("denoising_mae_fair_ang", "Noise MAE, fair (Å)"),
)
_SPEED = (
    ("structures_per_s", "Throughput (structures/s)", 1.0),
    ("atoms_per_s", "Throughput (atoms/s)", 1.0),
    ("data_wait", "Waiting for data (% of time)", 100.0),
    ("imbalance", "Planned load of the busiest rank over the mean", 1.0),
    ("memory_mib", "Peak memory (MiB)", 1.0),
)


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    path: Path
    name: str
    lines: list[dict[str, Any]]
    config: str | None
    """Text of ``config.yaml``."""
    environment: dict[str, Any]
    """``environment.json``; empty where there is none."""

    @property
    def train(self) -> list[dict[str, Any]]:
        """Lines about training."""
        return [line for line in self.lines if line["kind"] == "train"]

    @property
    def validations(self) -> list[dict[str, Any]]:
        """Lines about validation."""
        return [line for line in self.lines if line["kind"] == "validation"]

    @property
    def best(self) -> dict[str, Any] | None:
        """The validation with the lowest loss."""
        return min(self.validations, key=lambda line: float(line["loss"]), default=None)


def read_run(path: Path, name: str | None = None) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: there is no run, or it has no metrics yet.
        DataError: a file of it can't be read.
    """
    lines = read_metrics(path)
    if not lines:
        raise ConfigError(f"{path}: no metrics yet. Wait until the run has reported a step.")
    config, environment = path / "config.yaml", path / "environment.json"
    text = config.read_text(encoding="utf-8") if config.is_file() else None
    try:
        if text is not None:
            yaml.safe_load(text)
        known = json.loads(environment.read_text("utf-8")) if environment.is_file() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: a file of this run can't be read: {error}") from error
    return Run(path, name or path.resolve().name, lines, text, known)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders and give each a name of its own: its folder's, or with the parent's.

    Raises:
        ConfigError: a folder is named twice, or holds no run.
    """
    resolved = [path.expanduser().resolve() for path in paths]
    if len(set(resolved)) != len(resolved):
        raise ConfigError("the same run is named twice. Name each once.")
    short = [path.name for path in resolved]
    names = [
        name if short.count(name) == 1 else f"{path.parent.name}/{name}"
        for name, path in zip(short, resolved, strict=True)
    ]
    return [read_run(path, name) for path, name in zip(paths, names, strict=True)]


def report_page(runs: Sequence[Run]) -> Page:
    """One page: a section per run and, with several, their curves beside each other first.

    Raises:
        ConfigError: no run.
    """
    if not runs:
        raise ConfigError("no run to report. Name at least one run folder.")
    if len(runs) == 1:
        page = Page(f"Run {runs[0].name}", _subtitle(runs[0]))
        page.facts(_facts(runs[0]))
        _add_run(page, runs[0])
        return page
    page = Page(f"{len(runs)} runs", ", ".join(run.name for run in runs))
    _add_comparison(page, runs)
    for run in runs:
        page.section(f"Run {run.name}", _subtitle(run))
        page.facts(_facts(run))
        _add_run(page, run, level=3)
    return page


def summary(run: Run) -> dict[str, Any]:
    """The numbers of a run that its page shows, as JSON can hold them."""
    last = run.train[-1] if run.train else {}
    return {
        "run": str(run.path),
        "steps": max(line["step"] for line in run.lines),
        "epoch": last.get("epoch"),
        "seconds": max((line.get("seconds") or 0.0) for line in run.lines),
        "last_loss": last.get("loss"),
        "best_step": run.best["step"] if run.best else None,
        "best_loss": run.best["loss"] if run.best else None,
        "subsets": run.best["subsets"] if run.best else {},
        "peak_memory_mib": max((line.get("memory_mib") or 0.0 for line in run.train), default=None),
        "median": {key: _median(run, key) for key, _, _ in _SPEED if key != "memory_mib"},
    }


def duration(seconds: float) -> str:
    """A time as a person says it: 42 s, 3 min 20 s, 5 h 7 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _subtitle(run: Run) -> str:
    environment = run.environment
    config = yaml.safe_load(run.config) if run.config else None
    model = config.get("model") if isinstance(config, dict) else None
    words = []
    if isinstance(model, dict) and isinstance(model.get("encoder"), dict):
        encoder = model["encoder"]
        words.append(
            f"{encoder.get('name')}, {encoder.get('num_layers')} layers, "
            f"{encoder.get('channels')} channels"
        )
    if isinstance(config, dict) and config.get("base"):
        words.append(f"fine-tuned from {config['base']}")
    if environment.get("device_name"):
        words.append(f"{environment.get('ranks', 1)} × {environment['device_name']}")
    return "; ".join(words)


def _facts(run: Run) -> list[tuple[str, Any, str]]:
    numbers = summary(run)
    facts: list[tuple[str, Any, str]] = [("Steps", numbers["steps"], "")]
    if numbers["epoch"] is not None:
        facts.append(("Epochs", numbers["epoch"], "passes over the joint data set"))
    facts.append(("Time", duration(numbers["seconds"]), "training and validation"))
    if numbers["best_loss"] is not None:
        facts.append(("Best validation loss", numbers["best_loss"], f"step {numbers['best_step']}"))
    if numbers["median"]["structures_per_s"] is not None:
        facts.append(("Throughput", numbers["median"]["structures_per_s"], "structures/s, median"))
    if numbers["peak_memory_mib"]:
        facts.append(("Peak memory", f"{numbers['peak_memory_mib']:,.0f} MiB", "of a rank"))
    return facts


def _add_run(page: Page, run: Run, level: int = 2) -> None:
    """Sections of one run; what it has no data for is said, not left out."""
    page.section("Errors", _ERRORS_TEXT, level=level)
    if run.best is None:
        page.text("This run hasn't validated yet.")
    else:
        _add_errors(page, run)
    page.section("Course", level=level)
    if run.train:
        page.figure(
            training_curves(
                train_series(run.lines, "loss"),
                validation_loss(run.lines),
                train_series(run.lines, "lr"),
            ),
            "Loss of Eq. (5) during training and on the validation split, and the learning rate.",
        )
        series = _speed(run)
        if series:
            page.section("Speed", level=level)
            page.figure(speed_curves(series), "Speed and memory, as reported during training.")
    else:
        page.text("No training step has been reported yet.")
    page.section("Provenance", level=level)
    if run.config is None and not run.environment:
        page.text("The run folder has neither `config.yaml` nor `environment.json`.")
    if run.config is not None:
        page.details("Configuration, resolved", run.config)
    if run.environment:
        text = yaml.safe_dump(run.environment, sort_keys=False, allow_unicode=True)
        page.details("Versions, device and seed", text)


_ERRORS_TEXT = (
    "Errors on the validation split at the step with the lowest validation loss, whose weights are "
    "those in `best`. Energies per atom; forces by component over free atoms. The fair error of "
    "noise leaves out each structure's translation (Fig. 7)."
)


def _add_errors(page: Page, run: Run) -> None:
    best = run.best
    assert best is not None
    columns = [(k, title) for k, title in ERRORS if any(k in e for e in best["subsets"].values())]
    page.table(
        ["Subset", "Structures", *(title for _, title in columns)],
        [
            [name, errors.get("structures"), *(errors.get(key) for key, _ in columns)]
            for name, errors in best["subsets"].items()
        ],
        f"Validation errors at step {best['step']:,}.",
    )
    validation = validation_series(run.lines)
    if any(len(series.steps) > 1 for errors in validation.values() for series in errors.values()):
        page.figure(
            pretraining_curves(validation, subset_colours(list(validation))),
            "Validation errors of each subset.",
        )


def _add_comparison(page: Page, runs: Sequence[Run]) -> None:
    """Errors of several runs in one table, and curves of the subset that all of them share."""
    rows, columns = [], [(k, t) for k, t in ERRORS if _anywhere(runs, k)]
    for run in runs:
        for name, errors in (run.best["subsets"] if run.best else {}).items():
            step = run.best["step"] if run.best else None
            rows.append([run.name, name, step, *(errors.get(key) for key, _ in columns)])
    page.section("Comparison", "Each run at the step with its lowest validation loss.")
    if not rows:
        page.text("None of these runs has validated yet.")
        return
    page.table(
        ["Run", "Subset", "Step", *(title for _, title in columns)], rows, "Validation errors."
    )
    for name, curves in _shared_curves(runs).items():
        page.figure(
            finetuning_curves(curves, step_label="training step"),
            f"Validation errors of subset '{name}'.",
        )


def _shared_curves(runs: Sequence[Run]) -> dict[str, list[LearningCurve]]:
    """Learning curves of each subset with labels that every run has."""
    subsets = [validation_series(run.lines) for run in runs]
    shared = {}
    for name in subsets[0]:
        if not all(name in others for others in subsets):
            continue
        curves = [learning_curve(run.name, run.lines, name) for run in runs]
        if any(curve.energy is not None or curve.forces is not None for curve in curves):
            shared[name] = curves
    return shared


def _anywhere(runs: Sequence[Run], key: str) -> bool:
    return any(key in errors for run in runs if run.best for errors in run.best["subsets"].values())


def _speed(run: Run) -> list[tuple[str, Series]]:
    panels = []
    for key, title, factor in _SPEED:
        steps, values = train_series(run.lines, key)
        if len(steps):
            panels.append((title, Series(steps, factor * values)))
    return panels


def _median(run: Run, key: str) -> float | None:
    values = sorted(train_series(run.lines, key).values.tolist())
    return values[len(values) // 2] if values else None
