"""The trainings of an experiment: a folder each; finished ones are kept, others resumed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamm.config import FinetuneConfig, RunConfig
from lamm.errors import ConfigError, InterruptedRunError
from lamm.files import write_json
from lamm.finetune import finetune
from lamm.schema import load_yaml, parse
from lamm.train.checkpoint import TrainState
from lamm.train.run import CONFIG, pretrain

logger = logging.getLogger(__name__)

DONE = "done.json"
"""Written in a run's folder when the run is over."""


@dataclass(frozen=True)
class Training:
    """One training of an experiment."""

    name: str
    """Its folder below that of the runs."""
    config: Callable[[Path], RunConfig | FinetuneConfig]
    """The configuration for a folder."""


class Runner:
    """Trains what is missing in a folder of runs.

    A run that is finished is used as it is; one that was stopped goes on from its last checkpoint.
    A run whose configuration isn't what is asked for now stops the experiment, since its numbers
    would be of something else.
    """

    def __init__(self, folder: Path, *, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet

    def run(self, trainings: Sequence[Training]) -> None:
        """Train all, in order, and say in the log what remains.

        Raises:
            ConfigError: a run of another configuration is in the way.
            InterruptedRunError: a signal stopped a training; a checkpoint was saved.
        """
        configs = {one.name: one.config(self.folder / one.name) for one in trainings}
        for config in configs.values():
            check_same(config)
        missing = [name for name, config in configs.items() if not (config.to / DONE).exists()]
        logger.info(
            "%d trainings, %d of them finished before", len(configs), len(configs) - len(missing)
        )
        for number, name in enumerate(missing):
            logger.info(
                "training %d of %d: %s; then %s",
                number + 1,
                len(missing),
                name,
                _listed(missing[number + 1 :]),
            )
            try:
                state = self._train(configs[name], name)
            except InterruptedRunError as error:
                raise InterruptedRunError(
                    error.signal_number,
                    f"stopped in training {number + 1} of {len(missing)}, {name}; the same command "
                    "goes on with it",
                ) from error
            write_json(
                configs[name].to / DONE,
                {"step": state.step, "epoch": state.epoch, "seconds": state.seconds},
            )

    def _train(self, config: RunConfig | FinetuneConfig, title: str) -> TrainState:
        resume = (config.to / "last").exists()
        if not resume and (config.to / CONFIG).exists():
            shutil.rmtree(config.to)  # it was stopped before anything was saved
        if isinstance(config, FinetuneConfig):
            return finetune(config, resume=resume, quiet=self.quiet)
        return pretrain(config, resume=resume, quiet=self.quiet, title=title)


def _listed(names: Sequence[str], most: int = 4) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_same(config: RunConfig | FinetuneConfig) -> None:
    """Refuse to use, or go on with, a run of another configuration.

    Raises:
        ConfigError: entries of the configuration in its folder differ, or it is no run.
    """
    file = config.to / CONFIG
    if not file.exists():
        if config.to.exists() and (not config.to.is_dir() or any(config.to.iterdir())):
            raise ConfigError(
                f"{config.to}: found something that is no run, expected a run or nothing. Choose "
                "another folder by --to."
            )
        return
    # Parsed, so that an entry that has come since then has its default there too.
    there = parse(type(config), load_yaml(file), str(file))
    before, now = (_flat(one.model_dump(mode="json")) for one in (there, config))
    different = [
        f"{key} was {before.get(key)!r}, asked for is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if key not in ("to", "base") and before.get(key) != now.get(key)
    ]
    if different:
        raise ConfigError(
            f"{config.to}: there is a run of another configuration: {'; '.join(different[:4])}.\n"
            "  Choose another folder by --to, or remove that run."
        )


def _flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
