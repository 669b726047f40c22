"""The configuration of a run: every component's own, composed; read from YAML; overridden by words.

``lamm pretrain configs/lamm_s.yaml train.steps=100 optim.lr=1e-4`` is all the syntax there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeInt, model_validator

from lamm.balance.settings import BalanceConfig
from lamm.data.joint import DataConfig
from lamm.errors import ConfigError
from lamm.loss import LossConfig
from lamm.models.lora import LoRAConfig
from lamm.models.potential import ModelConfig
from lamm.schema import Frozen, load_yaml, parse
from lamm.train.optim import OptimConfig
from lamm.train.recipe import Recipe, TrainConfig

RESET, BEST = "reset", "best"
"""Where an output starts in fine-tuning, beside the names of pre-training subsets."""


class TrainingConfig(Frozen):
    """What pre-training and fine-tuning have in common."""

    to: Path
    """The run folder."""
    seed: NonNegativeInt = 0
    """Seed of the weights, the plan and the noise."""
    data: DataConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    balance: BalanceConfig = BalanceConfig()
    train: TrainConfig

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Self:
        steps = self.train.steps
        if steps and self.optim.warmup_steps >= steps:
            raise ValueError(
                f"optim.warmup_steps is {self.optim.warmup_steps}, expected fewer than the "
                f"{steps} of train.steps"
            )
        return self

    def recipe(self) -> Recipe:
        """What the training loop is told beside model and data."""
        return Recipe(self.loss, self.optim, self.balance, self.train, self.seed)


class RunConfig(TrainingConfig):
    """A pre-training run."""

    start_from: Path | None = None
    """Checkpoint to go on from: its encoder, and its outputs of subsets of the same names, stay as
    they are before the first step; ``null`` starts anew."""
    model: ModelConfig
    """The architecture, which the checkpoint must have, too."""


class FinetuneConfig(TrainingConfig):
    """A fine-tuning run: training that starts from a checkpoint (Sec. 4.4)."""

    base: Path | None
    """Checkpoint whose encoder is kept: a run folder, a saved step or a file; ``null`` trains
    `model` from scratch."""
    model: ModelConfig | None = None
    """The architecture that the checkpoint must have; its own where left out."""
    head: str = RESET
    """Where outputs start that `heads` doesn't name: ``reset`` anew, as in the paper; ``best`` from
    the base's head that suits the training structures best; or a pre-training subset's name."""
    heads: dict[str, str] = Field(default_factory=dict)
    """New subset to pre-training subset whose head it starts from."""
    replay: list[str] = Field(default_factory=list)
    """Subsets that the base knows already: their outputs, references and scales stay as they are
    before the first step, so that the errors tell what is forgotten."""
    encoder: Literal["trained", "frozen"] = "trained"
    """``frozen``: the heads alone are trained."""
    lora: LoRAConfig | None = None
    """Low-rank adapters of the encoder's linear layers; they and the heads alone are trained."""

    def recipe(self) -> Recipe:
        """What the training loop is told beside model and data.

        Neither replayed nor unlabelled structures decide which step is the best, as long as there
        are others. A fine-tuning has small mini-batches whose composition counts, so that it gets
        no advice to make them more even.
        """
        others = [
            name
            for name, subset in self.data.subsets.items()
            if name in self.replay or subset.denoising is not None
        ]
        unjudged = tuple(others) if len(others) < len(self.data.subsets) else ()
        return replace(super().recipe(), unjudged=unjudged, advises_on_planner=False)

    @model_validator(mode="after")
    def _something_to_start_from(self) -> Self:
        if self.base is None and self.model is None:
            raise ValueError("without a checkpoint in `base`, give `model` to train from scratch")
        kept = self.encoder == "frozen" or self.lora is not None
        if self.base is None and (self.head != RESET or self.heads or kept):
            raise ValueError("head, heads, lora and a frozen encoder need a checkpoint in `base`")
        return self

    @model_validator(mode="after")
    def _adapters_alone(self) -> Self:
        if self.lora is None:
            return self
        if self.encoder == "frozen":
            raise ValueError("`lora` trains adapters of the encoder, and `encoder` says: frozen")
        if (self.optim.encoder_lr_factor, self.optim.layer_decay) != (1, 1):
            raise ValueError(
                "with `lora` all that is trained has one rate: leave out "
                "`optim.encoder_lr_factor` and `optim.layer_decay`"
            )
        return self


def override(mapping: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """A copy of a configuration with dotted ``key=value`` words put in; values are YAML.

    Raises:
        ConfigError: a word has no ``=``, its value isn't YAML, or it goes below a plain value.
    """
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(mapping, sort_keys=False))
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{word}' is not an override. Write key=value, as train.steps=100.")
        try:
            value = _scalar(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"override '{word}': the value is not YAML ({error}).") from error
        *parents, last = key.split(".")
        place = result
        for parent in parents:
            inner = place.setdefault(parent, {})
            if isinstance(inner, str) and parent == "model":  # a preset's name, now with changes
                inner = place[parent] = {"preset": inner}
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"override '{word}': '{parent}' holds {inner!r}, which has no keys below it."
                )
            place = inner
        place[last] = value
    return result


def merged(base: Any, changes: dict[str, Any]) -> Any:
    """A mapping with the entries of another put in, level by level; lists are replaced whole."""
    if not isinstance(base, dict):
        return changes
    return {
        **base,
        **{
            key: merged(base.get(key), value) if isinstance(value, dict) else value
            for key, value in changes.items()
        },
    }


def _scalar(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; a person means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def read_run_config(path: Path, words: Sequence[str] = ()) -> RunConfig:
    """A pre-training configuration from a YAML file and overrides.

    Raises:
        ConfigError: the file is missing or isn't YAML, or a key or value is wrong.
    """
    return parse(RunConfig, override(load_yaml(path), words), str(path))


def read_finetune_config(path: Path, words: Sequence[str] = ()) -> FinetuneConfig:
    """A fine-tuning configuration from a YAML file and overrides.

    Raises:
        ConfigError: the file is missing or isn't YAML, or a key or value is wrong.
    """
    return parse(FinetuneConfig, override(load_yaml(path), words), str(path))


def to_yaml(config: Frozen) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a pre-training configuration, for editors that complete from one."""
    return RunConfig.model_json_schema()
