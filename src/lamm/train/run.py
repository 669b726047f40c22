"""A run folder: the resolved configuration, the environment, and what training leaves there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lamm
from lamm.config import RunConfig, TrainingConfig, to_yaml
from lamm.data.joint import JointDataset
from lamm.data.references import Normalisation
from lamm.errors import ConfigError
from lamm.files import write_json, write_text
from lamm.models.potential import Potential, build
from lamm.runtime import tune_cpu
from lamm.train.checkpoint import TrainState
from lamm.train.distributed import World, join, leave
from lamm.train.engine import train

PACKAGES = ("torch", "numpy", "pyarrow", "ase", "vesin", "pydantic", "safetensors", "scipy")


def environment(world: World, seed: int, settings: dict[str, object]) -> dict[str, Any]:
    """Versions, device and seed of a run: what a reader needs to run it again."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "lamm": lamm.__version__,
        "git_commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "ranks": world.size,
        "device": str(world.device),
        "device_name": (
            torch.cuda.get_device_name(world.device)
            if world.device.type == "cuda"
            else platform.processor() or platform.machine()
        ),
        "cpu_count": os.cpu_count(),
        "cpu_settings": settings,
        "seed": seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def prepare_folder(config: TrainingConfig, world: World, settings: dict[str, object]) -> None:
    """Make the run folder and write down what is about to run.

    Raises:
        ConfigError: the folder already holds a run.
    """
    if (config.to / "metrics.jsonl").exists():
        raise ConfigError(
            f"{config.to}: there is a run in this folder already.\n"
            "  Go on with it by --resume, or choose another folder with to=DIR."
        )
    write_text(config.to / "config.yaml", to_yaml(config))
    write_json(config.to / "environment.json", environment(world, config.seed, settings))


def set_normalisation(model: Potential, normalisations: list[Normalisation]) -> None:
    """Give each output of the model its subset's reference energies and scales (Sec. 3.2)."""
    for column, fitted in enumerate(normalisations):
        model.set_normalisation(
            column,
            torch.from_numpy(fitted.reference_energies),
            torch.from_numpy(fitted.known),
            fitted.energy_scale,
            fitted.force_scale,
        )


def run_training(
    config: TrainingConfig,
    model: Potential,
    joint: JointDataset,
    world: World,
    *,
    resume: bool = False,
    title: str,
    quiet: bool = False,
) -> TrainState:
    """Train in the run folder of a configuration, from the start or from its last checkpoint."""
    settings = tune_cpu()
    if world.is_main and not resume:
        prepare_folder(config, world, settings)
    world.wait()
    return train(
        model,
        joint,
        config.recipe(),
        config.to,
        world,
        resume=resume,
        title=title,
        quiet=quiet,
    )


def pretrain(
    config: RunConfig, *, resume: bool = False, quiet: bool = False, title: str = "pre-training"
) -> TrainState:
    """Pre-train a potential on a joint data set.

    Raises:
        LaMMError: the configuration, the data or the checkpoint can't be used.
        BadAnswerError: the loss isn't finite.
        InterruptedRunError: a signal stopped the run; a checkpoint was saved.
    """
    world = join(config.train.device)
    try:
        joint = JointDataset(config.data, config.seed)
        model = build(config.model, joint.names, seed=config.seed)
        set_normalisation(model, [subset.normalisation() for subset in joint.subsets])
        return run_training(config, model, joint, world, resume=resume, title=title, quiet=quiet)
    finally:
        leave(world)
