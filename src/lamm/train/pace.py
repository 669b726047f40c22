"""How many steps a run has, where steps or the time limit it, and when it validates."""

from __future__ import annotations

import time

from lamm.train.recipe import TrainConfig

VALIDATIONS = 10
"""Validations of a run whose configuration doesn't say how often."""
VALIDATION_SHARE, FEWEST_VALIDATIONS = 0.1, 3
"""Share of a time limit that they may take, and how many there are however long they take."""


class Pace:
    """The length of a run; under a time limit it is estimated anew whenever ranks report.

    Learning rate and validations follow `num_steps`, so a cosine ends when the time does. Where
    validation takes long there are fewer. Between reports the estimates don't change, and all ranks
    take the largest of theirs (`agree`).
    """

    def __init__(
        self, config: TrainConfig, steps_per_epoch: int, step: int, seconds: float
    ) -> None:
        """Begin.

        Args:
            config: limits.
            steps_per_epoch: steps of a pass over the joint data set.
            step: steps that an earlier session did.
            seconds: time that it took.
        """
        self.most = config.num_steps(steps_per_epoch)
        self.num_steps = self.most
        self.limit = config.max_seconds
        self.fewest_between = 1
        """Steps that a validation has to wait for, so that all of them take little of the time."""
        self._validate_every = config.validate_every
        self._begin, self._begin_step, self._before = time.perf_counter(), step, seconds
        self._last_validation, self._reserve = step, 0.0
        if self.limit is not None and step:  # at the pace of before, until it is known anew
            left = max(self.limit - seconds, 0.0)
            self.num_steps = min(step + int(left * step / max(seconds, 1e-9)), self.most)

    @property
    def validate_every(self) -> int:
        """Steps between validations."""
        return self._validate_every or max(self.num_steps // VALIDATIONS, self.fewest_between)

    def validates(self, step: int) -> bool:
        """Whether to validate after this many steps."""
        if self._validate_every is not None or self.limit is None:
            return step % self.validate_every == 0
        return step - self._last_validation >= self.validate_every

    def note_validation(self, step: int, seconds: float) -> None:
        """Keep the time of one more validation for the end of the run."""
        self._last_validation = step
        self._reserve = max(self._reserve, seconds)

    def seconds(self) -> float:
        """Time of all sessions of the run so far."""
        return self._before + time.perf_counter() - self._begin

    def estimate(self, step: int, seconds: float) -> None:
        """Say anew how many steps fit into the time.

        Args:
            step: steps done.
            seconds: as `seconds` says.
        """
        done = step - self._begin_step
        if self.limit is None or not done:
            return
        per_step = max(seconds - self._before, 1e-9) / done
        left = max(self.limit - seconds - self._reserve, 0.0)
        self.num_steps = min(step + int(left / per_step), self.most)
        cheap = int(self._reserve / (VALIDATION_SHARE * per_step))
        self.fewest_between = max(min(cheap, self.num_steps // FEWEST_VALIDATIONS), 1)

    def agree(self, num_steps: int, fewest_between: int) -> None:
        """Take the estimates that all ranks take."""
        self.num_steps, self.fewest_between = num_steps, fewest_between
