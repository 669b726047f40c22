"""The trainings of Table 3 and Fig. 9: from scratch, and from models that were pre-trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from lamm.config import RESET, FinetuneConfig, RunConfig, merged
from lamm.data.denoising import DenoisingConfig
from lamm.data.joint import DataConfig, SubsetConfig, store_path
from lamm.data.store import Store
from lamm.demo.config import DownstreamConfig, StageConfig
from lamm.errors import ConfigError, nearest_names
from lamm.models.potential import ModelConfig
from lamm.reproduce.runs import Training
from lamm.reproduce.settings import Experiment
from lamm.schema import Frozen, parse


class Arm(Frozen):
    """One way to come to a model for the downstream set; without pre-training, from scratch."""

    pretrain: Literal["all", "labelled", "unlabelled"] | None = None
    """Subsets of the pre-training: all, those with labels, or those of the denoising task."""
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the pre-training's length; 0 takes the weights before the first step."""
    denoising: DenoisingConfig | None = None
    """Noise of the denoising subsets in this pre-training; their own where left out."""
    pretraining: dict[str, Any] = Field(default_factory=dict)
    """Changes of the model's `pretrain` for this arm, such as ``loss: {relative: 20}``."""
    base: Path | None = None
    """A checkpoint to start from, in place of a pre-training of this study."""
    head: str = RESET
    """Where the output starts; see `lamm.config.FinetuneConfig`."""
    finetune: dict[str, Any] = Field(default_factory=dict)
    """Changes of the model's `finetune` for this arm, such as ``optim: {layer_decay: 0.7}``."""
    paper: Literal["scratch", "early", "full"] | None = None
    """The stage of the paper's Table 3 that it stands for."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.base is not None and self.pretrain is not None:
            raise ValueError("give `pretrain` or `base`, one of the two")
        if self.pretraining and self.pretrain is None:
            raise ValueError("`pretraining` changes the pre-training, and `pretrain` isn't given")
        if self.from_scratch and self.head != RESET:
            raise ValueError("a head needs a model to start from, by `pretrain` or `base`")
        return self

    @property
    def from_scratch(self) -> bool:
        """Whether it starts from random weights."""
        return self.pretrain is None and self.base is None


class ModelStudy(Frozen):
    """One model with its pre-training and fine-tuning."""

    model: ModelConfig
    paper: Literal["LaMM-S", "LaMM-L"]
    """The paper's model that it is a small one of."""
    pretrain: StageConfig
    finetune: StageConfig


class FinetuningStudy(Experiment):
    """What Table 3 compares."""

    data: DataConfig
    """Of pre-training."""
    models: Annotated[dict[str, ModelStudy], Field(min_length=1)]
    downstream: DownstreamConfig
    arms: dict[str, Arm]
    """By name; null leaves one out."""
    scratch: str
    """The arm that thresholds and speed-ups come from."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Of fine-tuning; arms with the same seed are compared."""
    pretraining_seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Of pre-training; the fine-tuning seeds take them in turn."""
    threshold_factor: PositiveFloat
    """A threshold is the best validation error from scratch with the same seed, times this."""
    figures: dict[str, list[str]] = Field(default_factory=dict)
    """Name of each figure to the arms that it shows; those that are left out aren't drawn."""

    @model_validator(mode="after")
    def _scratch_is_there(self) -> Self:
        if self.scratch not in self.arms or not self.arms[self.scratch].from_scratch:
            raise ValueError(
                f"scratch: '{self.scratch}' is no arm that starts from random weights. "
                f"{nearest_names(self.scratch, self.arms)}"
            )
        return self

    # ---- data ----------------------------------------------------------------------------------

    def pretraining_data(self, arm: Arm) -> DataConfig:
        """The subsets of an arm's pre-training.

        Raises:
            ConfigError: none of the subsets is of the kind.
        """
        chosen = {}
        for name, subset in self.data.subsets.items():
            unlabelled = subset.denoising is not None or _is_denoised(subset)
            if arm.pretrain != "all" and unlabelled != (arm.pretrain == "unlabelled"):
                continue
            noise = arm.denoising if unlabelled and arm.denoising else subset.denoising
            chosen[name] = subset.model_copy(update={"denoising": noise})
        if not chosen:
            raise ConfigError(
                f"arms: none of the subsets {', '.join(self.data.subsets)} is {arm.pretrain}. "
                "Give one `denoising: {std: 0.1}`, or leave the arm out by `arms.NAME=null`."
            )
        return self.data.model_copy(update={"subsets": chosen})

    # ---- trainings -----------------------------------------------------------------------------

    def pretraining_seed(self, seed: int) -> int:
        """The seed of the pre-training that a fine-tuning seed starts from."""
        return self.pretraining_seeds[self.seeds.index(seed) % len(self.pretraining_seeds)]

    def pretraining_name(self, model: str, arm: str, seed: int) -> str:
        """Folder of an arm's pre-training; arms with the same one share it."""
        mine = self._pretraining_of(self.arms[arm])
        first = next(name for name, one in self.arms.items() if self._pretraining_of(one) == mine)
        return f"{model}/pretrain-{first}-seed-{self.pretraining_seed(seed)}"

    @staticmethod
    def _pretraining_of(arm: Arm) -> tuple[Any, ...]:
        return arm.pretrain, arm.share, arm.denoising, arm.pretraining

    def pretraining(self, model: str, arm: str, seed: int, to: Path) -> RunConfig:
        """The pre-training of an arm; its own length, its learning rate falling over it."""
        study, one = self.models[model], self.arms[arm]
        stage = _changed(study.pretrain, one.pretraining, f"arms.{arm}.pretraining")
        entries = {
            "to": to,
            "seed": self.pretraining_seed(seed),
            "data": self.pretraining_data(one),
            "model": study.model,
            **_shortened(stage, one.share).parts(),
        }
        return parse(RunConfig, entries, f"pre-training of {model}, {arm}")

    def finetuning_name(self, model: str, arm: str, seed: int) -> str:
        """Folder of an arm's training on the downstream set."""
        return f"{model}/{arm}-seed-{seed}"

    def finetuning(self, model: str, arm: str, seed: int, runs: Path, to: Path) -> FinetuneConfig:
        """An arm's training on the downstream set, the same for all but the start."""
        study, one = self.models[model], self.arms[arm]
        stage = _changed(study.finetune, one.finetune, f"arms.{arm}.finetune")
        base = runs / self.pretraining_name(model, arm, seed) if one.pretrain else one.base
        entries = {
            "to": to,
            "seed": seed,
            "data": self.downstream.data,
            "base": base,
            "model": None if one.base is not None else study.model,
            "head": one.head,
            **stage.parts(),
        }
        return parse(FinetuneConfig, entries, f"fine-tuning of {model}, {arm}")

    def trainings(self, runs: Path) -> list[Training]:
        """All trainings, seed by seed so that a study that is cut short has whole seeds."""
        found: dict[str, Training] = {}
        for seed in self.seeds:
            for model in self.models:
                for arm, one in self.arms.items():
                    if one.pretrain is not None:
                        name = self.pretraining_name(model, arm, seed)
                        found.setdefault(name, self._pretraining_training(name, model, arm, seed))
                    name = self.finetuning_name(model, arm, seed)
                    found[name] = self._finetuning_training(name, model, arm, seed, runs)
        return list(found.values())

    def _pretraining_training(self, name: str, model: str, arm: str, seed: int) -> Training:
        return Training(name, lambda to: self.pretraining(model, arm, seed, to))

    def _finetuning_training(
        self, name: str, model: str, arm: str, seed: int, runs: Path
    ) -> Training:
        return Training(name, lambda to: self.finetuning(model, arm, seed, runs, to))


def _is_denoised(subset: SubsetConfig) -> bool:
    """Whether the card of a subset's store says that it is for denoising."""
    return Store.open(store_path(subset.store)).card.task == "denoising"


def _changed(stage: StageConfig, changes: dict[str, Any], where: str) -> StageConfig:
    if not changes:
        return stage
    return parse(StageConfig, merged(stage.model_dump(mode="json"), changes), where)


def _shortened(stage: StageConfig, share: float) -> StageConfig:
    """A stage of a share of its length; it warms up for half of it at most.

    Raises:
        ConfigError: its length isn't given in steps.
    """
    if share == 1:
        return stage
    if stage.train.steps is None:
        raise ConfigError("models: the length of `pretrain` has to be given as train.steps.")
    steps = round(share * stage.train.steps)
    train = stage.train.model_copy(update={"steps": steps, "validate_every": max(steps, 1)})
    warmup = min(stage.optim.warmup_steps, steps // 2)
    optim = stage.optim.model_copy(update={"warmup_steps": warmup})
    return stage.model_copy(update={"train": train, "optim": optim})
