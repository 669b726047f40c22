"""The recipe of a training: loss, optimizer, batches, length; the same for every model and task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lamm.balance.settings import BalanceConfig
from lamm.loss import LossConfig
from lamm.schema import Frozen
from lamm.train.optim import OptimConfig

LENGTHS = ("epochs", "steps", "max_seconds", "patience")
MOST_STEPS = 2**31 - 1
"""Steps of a run that only the time limits."""


class TrainConfig(Frozen):
    """Length of a run, precision, and how often it reports, validates and saves."""

    epochs: NonNegativeFloat | None = None
    """Passes over the joint data set; give this or `steps`."""
    steps: NonNegativeInt | None = None
    """Optimizer steps; give this or `epochs`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes the layers in it by autocast; sums and weights stay in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: NonNegativeInt = 1
    """Processes per rank that read structures and build graphs."""
    deterministic: bool = False
    """Refuse GPU kernels whose sums depend on timing; a CPU run is always reproducible."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics."""
    validate_every: PositiveInt | None = None
    """Steps between validations; ten in a run where left out. The last step always validates."""
    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints; as `validate_every` where left out."""
    keep_checkpoints: PositiveInt = 2
    """How many of the latest checkpoints stay, beside the best."""
    max_seconds: PositiveFloat | None = None
    """Time that the run may take, validations included; alone or beside a length. The learning rate
    falls with the time, so that it has come to its end when the time has."""
    patience: PositiveInt | None = None
    """Validations without a new best after which the run ends; never where left out."""
    max_skipped: PositiveInt = 10
    """Steps in a row that may be skipped because their loss or gradient isn't finite."""
    val_atoms_per_batch: PositiveInt = 1024
    """Atoms of a validation batch; a larger structure is one alone."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = (self.epochs is not None) + (self.steps is not None)
        if lengths > 1 or (not lengths and self.max_seconds is None):
            raise ValueError(
                "give the length of the run as `epochs` or as `steps`, one of the two, or as "
                "`max_seconds`"
            )
        return self

    def length(self) -> dict[str, float | None]:
        """What says how long the run is."""
        return {name: getattr(self, name) for name in LENGTHS}

    def num_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run; the most that there can be where only the time limits it."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None:
            return MOST_STEPS
        return round(self.epochs * steps_per_epoch)


@dataclass(frozen=True)
class Recipe:
    """What the loop is told beside model and data."""

    loss: LossConfig
    optim: OptimConfig
    balance: BalanceConfig
    train: TrainConfig
    seed: int
    unjudged: tuple[str, ...] = ()
    """Subsets that don't decide which step is the best."""
    advises_on_planner: bool = True
    """Whether the log says so where another planner would make more even mini-batches."""
