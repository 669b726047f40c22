"""Fig. 7: objectives of denoising beside each other, over several seeds, by every definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from lamm.config import RunConfig, merged
from lamm.data.denoising import DenoisingConfig
from lamm.data.joint import DataConfig, JointDataset
from lamm.demo.config import StageConfig
from lamm.demo.run import FAIR, OWN, best, curve
from lamm.errors import nearest_names
from lamm.evaluate.curves import Series, mean_curve, ratio
from lamm.evaluate.figures import denoising_curves
from lamm.loss import LossConfig
from lamm.models.potential import ModelConfig
from lamm.reproduce.outcome import Outcome, Picture, Table
from lamm.reproduce.runs import Runner, Training
from lamm.reproduce.settings import Experiment, paper_values
from lamm.reproduce.spread import seeds_text, speed_up, spread, spread_text
from lamm.schema import Frozen, parse
from lamm.train.checkpoint import load
from lamm.train.distributed import World, choose_device
from lamm.train.validation import validate

DEFINITIONS = {"own_labels": OWN, "fair": FAIR}


class Objective(Frozen):
    """One way to denoise."""

    denoising: DenoisingConfig
    """Its noise and labels."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Changes of `training` that it needs, such as ``optim: {lr: 1.0e-3}``."""


class DenoisingStudy(Experiment):
    """What is compared."""

    data: DataConfig
    """A joint data set that has the subset."""
    unlabelled: str
    """The subset that is denoised; no other is used."""
    model: ModelConfig
    training: StageConfig
    objectives: dict[str, Objective]
    """By name; null leaves one out."""
    baseline: str
    """The objective that the others are compared with."""
    common_noise: DenoisingConfig
    """Noise on which all are judged at the end, whatever they were trained on."""
    threshold_factors: Annotated[list[PositiveFloat], Field(min_length=1)]
    """Thresholds: the baseline's best error times these."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_there(self) -> Self:
        for entry, name, known in (
            ("unlabelled", self.unlabelled, self.data.subsets),
            ("baseline", self.baseline, self.objectives),
        ):
            if name not in known:
                raise ValueError(f"{entry}: no '{name}'. {nearest_names(name, known)}")
        noises = {name: one.denoising for name, one in self.objectives.items()}
        for name, noise in {**noises, "common_noise": self.common_noise}.items():
            if not noise.gives_displacement:
                raise ValueError(
                    f"'{name}' has elastic labels, and no error in Å that Fig. 7 could compare. "
                    "Compare it by fine-tuning, as an arm of table3."
                )
        return self

    def data_with(self, noise: DenoisingConfig) -> DataConfig:
        """The unlabelled subset alone, with a noise."""
        subset = self.data.subsets[self.unlabelled].model_copy(update={"denoising": noise})
        return self.data.model_copy(update={"subsets": {self.unlabelled: subset}})

    def run_config(self, name: str, seed: int, to: Path) -> RunConfig:
        """The training of an objective with a seed."""
        objective = self.objectives[name]
        stage = self.training
        if objective.training:
            mapping = merged(stage.model_dump(mode="json"), objective.training)
            stage = parse(StageConfig, mapping, f"objectives.{name}.training")
        entries = {
            "to": to,
            "seed": seed,
            "data": self.data_with(objective.denoising),
            "model": self.model,
            **stage.parts(),
        }
        return parse(RunConfig, entries, f"training of {name}")


def compare_objectives(study: DenoisingStudy, runner: Runner) -> Outcome:
    """Train every objective with every seed and compare with the baseline's runs, seed by seed."""
    trainings = {
        (name, seed): _training(study, name, seed)
        for seed in study.seeds
        for name in study.objectives
    }
    runner.run(list(trainings.values()))
    folders = {key: runner.folder / one.name for key, one in trainings.items()}
    common = {
        (name, seed): _on_common_noise(study, folder, seed)
        for (name, seed), folder in folders.items()
    }
    found = {
        name: _compared(study, folders, name) | _compared_on_common_noise(study, common, name)
        for name in study.objectives
    }
    shown = {
        name: {
            short: mean_curve([_curve(study, folders[name, seed], key) for seed in study.seeds])
            for short, key in (("own", OWN), ("fair", FAIR))
        }
        for name in study.objectives
    }
    picture = Picture(
        "fig7",
        denoising_curves(shown),
        _rows(study, folders),
        f"Validation errors of denoising (as Fig. 7), means over {seeds_text(study.seeds)}.",
    )
    return Outcome({"denoising": found}, _tables(study, found), [picture])


def _training(study: DenoisingStudy, name: str, seed: int) -> Training:
    return Training(f"{name}-seed-{seed}", lambda to: study.run_config(name, seed, to))


def _curve(study: DenoisingStudy, folder: Path, key: str) -> Series:
    return curve(folder, study.unlabelled, key)


def _compared(
    study: DenoisingStudy, folders: Mapping[tuple[str, int], Path], name: str
) -> dict[str, Any]:
    """An objective beside the baseline: best errors, thresholds and speed-ups of every seed."""
    result: dict[str, Any] = {}
    for short, key in DEFINITIONS.items():
        ours = {seed: _curve(study, folders[name, seed], key) for seed in study.seeds}
        other = {seed: _curve(study, folders[study.baseline, seed], key) for seed in study.seeds}
        ups = {
            factor: [speed_up(other[s], ours[s], factor * best(other[s])) for s in study.seeds]
            for factor in study.threshold_factors
        }
        result[short] = {
            "best_ang": spread([best(one) for one in ours.values()]),
            "beside_baseline": spread([ratio(best(ours[s]), best(other[s])) for s in study.seeds]),
            "steps_to_threshold": {
                f"{factor:g}": spread([one["steps"] for one in each])
                for factor, each in ups.items()
            },
            "speedup": {
                f"{factor:g}": spread([one["speedup"] for one in each])
                for factor, each in ups.items()
            },
        }
    return result


def _compared_on_common_noise(
    study: DenoisingStudy, common: Mapping[tuple[str, int], float], name: str
) -> dict[str, Any]:
    """Fair errors of an objective where all meet the same noise, and beside the baseline's."""
    return {
        "fair_on_common_noise_ang": spread([common[name, seed] for seed in study.seeds]),
        "fair_on_common_noise_beside_baseline": spread(
            [ratio(common[name, seed], common[study.baseline, seed]) for seed in study.seeds]
        ),
    }


def _on_common_noise(study: DenoisingStudy, folder: Path, seed: int) -> float:
    """Fair error in Å of a run's best model on the noise that all objectives are judged by."""
    world = World(0, 1, choose_device(study.training.train.device))
    joint = JointDataset(study.data_with(study.common_noise), seed)
    model = load(folder, world.device)
    found = validate(model, joint, LossConfig(energy=0, forces=1), world)
    return float(found["subsets"][study.unlabelled][FAIR])


def _rows(study: DenoisingStudy, folders: Mapping[tuple[str, int], Path]) -> list[dict[str, Any]]:
    return [
        {"objective": name, "seed": seed, "error": short, "step": float(step), "mae_ang": float(v)}
        for (name, seed), folder in folders.items()
        for short, key in DEFINITIONS.items()
        for step, v in zip(*_curve(study, folder, key), strict=True)
    ]


def _tables(study: DenoisingStudy, found: Mapping[str, Any]) -> list[Table]:
    paper = paper_values("fig7")
    errors = Table(
        (
            "objective",
            "own labels (Å)",
            "fair (Å)",
            "fair beside baseline",
            "fair, common noise (Å)",
            "beside baseline",
        ),
        [
            (
                name,
                spread_text(one["own_labels"]["best_ang"]),
                spread_text(one["fair"]["best_ang"]),
                spread_text(one["fair"]["beside_baseline"], "×"),
                spread_text(one["fair_on_common_noise_ang"]),
                spread_text(one["fair_on_common_noise_beside_baseline"], "×"),
            )
            for name, one in found.items()
        ],
        f"Best validation errors per component, means over {seeds_text(study.seeds)} (least to "
        "largest). Own labels: what the objective was trained for, as the paper's Fig. 7 has it. "
        "Fair: labels centred and the mean of the prediction removed, so that the translation, "
        "which nobody can predict, doesn't count. Common noise: the same, with the noise "
        f"{_noise(study.common_noise)} for all.",
    )
    factors = [f"{factor:g}" for factor in study.threshold_factors]
    speeds = Table(
        ("objective", "error", *(f"to {factor}×" for factor in factors), "paper"),
        [
            (
                name,
                words,
                *(spread_text(one[short]["speedup"][factor], "×") for factor in factors),
                f"{paper['speedup']:.2f}× (to {paper['threshold_ang']} Å)"
                if (name, short) == ("centred", "own_labels")
                else None,
            )
            for name, one in found.items()
            for short, words in (("own_labels", "own labels"), ("fair", "fair"))
        ],
        f"How many times fewer steps than `{study.baseline}` to a threshold, which is the best "
        "error of the baseline's run of the same seed times the factor. Paper: "
        f"{paper['epochs_to_threshold']['baseline']} and "
        f"{paper['epochs_to_threshold']['centred']} epochs of {paper['data']}.",
    )
    return [errors, speeds]


def _noise(noise: DenoisingConfig) -> str:
    least, largest = noise.std_range
    size = f"{least:g}" if least == largest else f"{least:g} to {largest:g}"
    return f"of {size} Å, {'centred' if noise.centred else 'not centred'},"
