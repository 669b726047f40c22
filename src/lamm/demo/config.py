"""What the demonstration does: its data, its four trainings, and how a user changes them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import NonNegativeInt, PositiveInt

from lamm.balance.settings import BalanceConfig
from lamm.config import FinetuneConfig, RunConfig, merged
from lamm.data.denoising import DenoisingConfig
from lamm.data.joint import DataConfig, SubsetConfig
from lamm.loss import LossConfig
from lamm.models.potential import ModelConfig
from lamm.schema import Frozen, load_yaml, parse
from lamm.train.checkpoint import read_description, weights_file
from lamm.train.optim import OptimConfig
from lamm.train.recipe import TrainConfig
from lamm.train.run import run_config_file


class StageConfig(Frozen):
    """Loss, optimizer, batches and length of one training."""

    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    balance: BalanceConfig = BalanceConfig()
    train: TrainConfig

    def parts(self) -> dict[str, Any]:
        """These entries of a run's configuration."""
        return {
            "loss": self.loss,
            "optim": self.optim,
            "balance": self.balance,
            "train": self.train,
        }


class DenoisingStageConfig(StageConfig):
    """The comparison of Fig. 7: noise that is centred, and noise that isn't."""

    model: ModelConfig


class DownstreamConfig(Frozen):
    """The small data set that the pre-trained model is fine-tuned on."""

    name: str
    subset: SubsetConfig
    train_structures: PositiveInt | None = None
    """Use this many training structures (the first by the hash of their id); all if left out."""
    val_fraction: float = 0.1
    test_fraction: float = 0.2

    @property
    def data(self) -> DataConfig:
        """It as a joint data set of one subset."""
        return DataConfig(
            subsets={self.name: self.subset},
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            max_train_structures=self.train_structures,
        )


class DemoConfig(Frozen):
    """The whole demonstration."""

    seed: NonNegativeInt = 0
    base: Path | None = None
    """Checkpoint to fine-tune; where left out, `pretrain` makes one."""
    model: ModelConfig
    data: DataConfig
    downstream: DownstreamConfig
    pretrain: StageConfig
    finetune: StageConfig
    denoising: DenoisingStageConfig

    def pretraining(self, to: Path) -> RunConfig:
        """The pre-training run."""
        run = {"to": to, "seed": self.seed, "data": self.data, "model": self.model}
        return parse(RunConfig, run | self.pretrain.parts(), "pretrain")

    def scratch(self, to: Path) -> RunConfig:
        """Training on the downstream set alone, from random weights."""
        run = {"to": to, "seed": self.seed, "data": self.downstream.data, "model": self.model}
        return parse(RunConfig, run | self.finetune.parts(), "finetune")

    def finetuning(self, to: Path, base: Path) -> FinetuneConfig:
        """The same training, from the pre-trained encoder."""
        run = {"to": to, "seed": self.seed, "data": self.downstream.data, "base": base}
        return parse(FinetuneConfig, run | self.finetune.parts(), "finetune")

    def denoising_run(
        self, to: Path, name: str, noise: DenoisingConfig, *, centred: bool
    ) -> RunConfig:
        """Denoising alone, on one unlabelled subset, with centred noise or the baseline's."""
        changed = self.data.subsets[name].model_copy(
            update={"denoising": noise.model_copy(update={"centred": centred})}
        )
        data = self.data.model_copy(update={"subsets": {name: changed}})
        run = {"to": to, "seed": self.seed, "data": data, "model": self.denoising.model}
        return parse(RunConfig, run | self.denoising.parts(), "denoising")


def read_demo_config(
    changes: Path | None = None, model: str | None = None, base: Path | None = None
) -> DemoConfig:
    """The shipped demonstration with a user's data or model in it.

    Args:
        changes: YAML file with any of the top-level entries of ``configs/demo.yaml``; `data` and
            `downstream` replace the shipped ones, the others are merged into them.
        model: preset of the model.
        base: checkpoint to start from in place of pre-training; its model and data are then the
            demonstration's.

    Raises:
        ConfigError: the file, a key in it or the preset is wrong.
        CheckpointError: the base can't be used.
    """
    mapping = _shipped("demo.yaml")
    where = "configs/demo.yaml"
    if model is not None:
        name = f"demo_{model}.yaml"
        if (files("lamm") / "configs" / name).is_file():
            mapping = merged(mapping, _shipped(name))
        mapping["model"] = model
    if base is not None:
        mapping = _from_base(mapping, base)
    if changes is not None:
        where = str(changes)
        for key, value in load_yaml(changes).items():
            replaced = key in ("data", "downstream") or not isinstance(value, dict)
            mapping[key] = value if replaced else merged(mapping.get(key), value)
        if model is not None:
            mapping["model"] = model
    return parse(DemoConfig, mapping, where)


def _from_base(mapping: dict[str, Any], base: Path) -> dict[str, Any]:
    """The demonstration with a checkpoint's architecture, and the data of its pre-training."""
    description = read_description(weights_file(base))
    changed: dict[str, Any] = merged(mapping, _shipped("demo_from.yaml"))
    changed |= {"base": str(base), "model": description["config"]}
    file = run_config_file(base)
    if file is not None:
        changed["data"] = load_yaml(file)["data"]
    return changed


def _shipped(name: str) -> dict[str, Any]:
    text = (files("lamm") / "configs" / name).read_text(encoding="utf-8")
    mapping: dict[str, Any] = yaml.safe_load(text)
    return mapping
