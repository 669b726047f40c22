"""A run folder: the resolved configuration, the environment, and what training leaves there."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import lamm
from lamm.config import RunConfig, TrainingConfig, to_yaml
from lamm.data.joint import JointDataset
from lamm.errors import CheckpointError, ConfigError
from lamm.evaluate.curves import METRICS
from lamm.files import write_json, write_text
from lamm.models.potential import Potential
from lamm.runtime import tune_cpu
from lamm.shipped import checkpoint_path
from lamm.train.checkpoint import TrainState, read_state
from lamm.train.distributed import World, join, leave
from lamm.train.engine import train
from lamm.train.preflight import check_run, settle_balance
from lamm.train.start import pretraining_model

logger = logging.getLogger(__name__)

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
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
        "launch": launch_key(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def launch_key() -> str | None:
    """What stays the same while one `torchrun` starts its processes again and again."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"parent {os.getppid()}" if name == "none" else name


def run_config_file(checkpoint: Path) -> Path | None:
    """The configuration of the run that a checkpoint belongs to; None where none is beside it.

    Args:
        checkpoint: a run folder, a saved step, a link to one, a file of weights, or the name of a
            model that the package ships.
    """
    path = checkpoint_path(checkpoint).resolve()
    found = (folder / CONFIG for folder in (path, *path.parents[:3]))
    return next((file for file in found if file.is_file()), None)


def prepare_folder(config: TrainingConfig, world: World, settings: dict[str, object]) -> None:
    """Make the run folder and write down what is about to run."""
    write_text(config.to / CONFIG, to_yaml(config))
    write_json(config.to / ENVIRONMENT, environment(world, config.seed, settings))


def goes_on(config: TrainingConfig, resume: bool) -> bool:
    """Whether a run starts from the last checkpoint of its folder, or from the beginning.

    It goes on where that is asked for, and where `torchrun` started the processes again because one
    of them died. A run that was killed before it saved anything begins anew.

    Raises:
        ConfigError: the folder already holds a run that isn't to go on, or another one.
        CheckpointError: there is no run to go on with.
    """
    folder = config.to
    saved = (folder / "last").exists()
    if not resume and restarted_here(folder):
        if (folder / CONFIG).read_text(encoding="utf-8") != to_yaml(config):
            raise ConfigError(
                f"{folder}: its {CONFIG} was changed since the run began.\n"
                "  Start in another folder with to=DIR, or go on by --resume."
            )
        resume = True
        logger.info("started again after a process died: going on with the run in %s", folder)
    if resume:
        if not saved and not (folder / CONFIG).exists():
            raise CheckpointError(
                f"{folder}: no checkpoint to resume from. Start without --resume."
            )
        if not saved:
            logger.warning("%s: nothing was saved yet; the run begins anew", folder)
        return saved
    if (folder / METRICS).exists():
        raise ConfigError(
            f"{folder}: there is a run in this folder already.\n"
            "  Go on with it by --resume, or choose another folder with to=DIR."
        )
    return False


def note_changes(config: TrainingConfig) -> None:
    """Say which entries a run goes on with that aren't those it began with; write them down."""
    path = config.to / CONFIG
    before = _entries(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.exists() else {}
    now = _entries(config.model_dump(mode="json"))
    changed = {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }
    for key, (old, new) in changed.items():
        logger.warning("%s: %s was %s and is now %s", path, key, old, new)
    if changed:
        write_text(path, to_yaml(config))


def _entries(mapping: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping by their dotted names."""
    if not isinstance(mapping, dict) or not mapping:
        return {prefix.removesuffix("."): mapping}
    parts = [_entries(value, f"{prefix}{key}.") for key, value in mapping.items()]
    return {key: value for part in parts for key, value in part.items()}


def restarted_here(folder: Path) -> bool:
    """Whether `torchrun` has started this process again, and began the run in this folder."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return False
    try:
        before = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8")).get("launch")
    except (OSError, ValueError):
        return False
    return before is not None and before == launch_key()


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
    check_run(model, joint)

    def begins() -> bool:
        going_on = goes_on(config, resume)
        if going_on:
            note_changes(config)
        else:
            prepare_folder(config, world, settings)
        return going_on

    resumes = world.from_main(begins)
    kept = world.from_main(lambda: read_state((config.to / "last").resolve())) if resumes else None
    balance = settle_balance(config, model, joint, world, kept=kept)
    return train(
        model,
        joint,
        replace(config.recipe(), balance=balance),
        config.to,
        world,
        resume=resumes,
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
        joint = world.together(lambda: JointDataset(config.data, config.seed))
        model = world.together(lambda: pretraining_model(config, joint))
        return run_training(config, model, joint, world, resume=resume, title=title, quiet=quiet)
    finally:
        leave(world)
