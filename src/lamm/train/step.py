"""One optimizer step: forward, loss, backward, the sum over the ranks, clip, update, average.

Nothing here waits for the device. Whether the step may change anything is itself a number on the
device, `skip`: 1 where the loss or the gradient of the mini-batch isn't finite, or a rank ran out
of memory. The fused optimizer and the averaged weights take it and then leave everything as it was,
as under a gradient scaler. The host learns of it from a copy that it reads later
(`StepResult.read`).
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lamm.graph.batch import GraphBatch
from lamm.keyed import key_of
from lamm.loss import LabelCounts, LossTerms, Normalised, normalise, universal_loss
from lamm.models.potential import Potential
from lamm.train.distributed import World
from lamm.train.ema import AveragedWeights
from lamm.train.gradients import SharedGradients
from lamm.train.memory import is_out_of_memory, release_memory
from lamm.train.optim import set_learning_rate
from lamm.train.recipe import Recipe

FAILED, TIGHT, LOSS, UNREADABLE, INTERRUPTS, TERMINATIONS = range(6)
"""The notes that travel beside the gradients (`lamm.train.gradients`): how many ranks had no memory
in this step, had none in the update of the one before, the loss, how many couldn't read their
structures, and how many were sent SIGINT or SIGTERM."""
NUM_NOTES = TERMINATIONS + 1


class Outcome(NamedTuple):
    """What became of a step, the same on all ranks."""

    failed: bool
    """A rank ran out of memory in forward or backward: the mini-batch has to be redone."""
    skipped: bool
    """Nothing was changed: `failed`, or loss or gradient isn't finite."""
    tight: bool
    """A rank ran out of memory in the update of the step before and did it a second time."""
    loss: float
    unreadable: bool
    """A rank couldn't read its structures: the run can't go on."""
    signal_number: int
    """Signal that asks the run to stop, whichever rank it was sent to; 0 without one."""


@dataclass
class StepResult:
    """What a step leaves on the device."""

    loss: LossTerms
    """This rank's share."""
    norm: Tensor
    """Norm of the whole gradient before clipping."""
    skip: Tensor
    """1 where nothing was changed, else 0."""
    _copy: Tensor = field(repr=False)
    _copied: torch.cuda.Event | None = field(repr=False)

    def read(self) -> Outcome:
        """What became of the step; waits until the device has done it."""
        if self._copied is not None:
            self._copied.synchronize()
        skipped, *notes = self._copy.tolist()
        number = signal.SIGTERM if notes[TERMINATIONS] else 0
        return Outcome(
            failed=notes[FAILED] > 0,
            skipped=skipped > 0,
            tight=notes[TIGHT] > 0,
            loss=notes[LOSS],
            unreadable=notes[UNREADABLE] > 0,
            signal_number=int(number or (signal.SIGINT if notes[INTERRUPTS] else 0)),
        )


def copy_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy in host memory that is there once its event has come; nothing waits for it here."""
    if values.device.type != "cuda":
        return values.clone(), None
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return copy, copied


def loss_of(model: Potential, batch: GraphBatch, counts: LabelCounts, recipe: Recipe) -> LossTerms:
    """A batch's share of Eq. (5), in the precision of the run.

    Args:
        model: the potential.
        batch: on the model's device.
        counts: labels in the whole mini-batch.
        recipe: precision and coefficients.
    """
    bfloat16 = recipe.train.precision == "bfloat16"
    with torch.autocast(batch.positions.device.type, torch.bfloat16, enabled=bfloat16):
        prediction = model(batch, subset_index=batch.subset_index, normalised=True)
    predicted = Normalised(prediction.energy.squeeze(-1), prediction.forces.squeeze(1))
    scales = (model.reference_energies, model.energy_scale, model.force_scale)
    target = normalise(batch.energy, batch.forces, batch, *scales)
    return universal_loss(predicted, target, batch, counts, recipe.loss)


class Step:
    """The step of one run on this rank."""

    def __init__(
        self,
        model: Potential,
        optimizer: torch.optim.Optimizer,
        averaged: AveragedWeights | None,
        recipe: Recipe,
        world: World,
    ) -> None:
        self.model, self.optimizer, self.averaged = model, optimizer, averaged
        self.recipe, self.world = recipe, world
        self.gradients = SharedGradients(model.parameters(), world, num_notes=NUM_NOTES)
        self._tight = False

    def loss(self, batch: GraphBatch, counts: LabelCounts) -> LossTerms:
        """A batch's share of Eq. (5) in a mini-batch with these label counts."""
        return loss_of(self.model, batch, counts, self.recipe)

    def compute(
        self,
        step: int,
        parts: Sequence[GraphBatch],
        counts: LabelCounts,
        *,
        unreadable: bool = False,
        signal_number: int = 0,
    ) -> tuple[LossTerms, int | None]:
        """The gradients of a mini-batch, summed over the parts and over the ranks.

        Args:
            step: number of the step, from which dropout is drawn.
            parts: this rank's GPU batch, whole or cut.
            counts: labels in the whole mini-batch.
            unreadable: this rank couldn't read its structures; all ranks are told.
            signal_number: signal that this rank was sent; all ranks are told.

        Returns:
            This rank's share of the loss, and the number of the part at which its memory ran out.
        """
        self.gradients.zero()
        torch.manual_seed(key_of("dropout", self.recipe.seed, step, self.world.rank))
        zero = self.gradients.notes.new_zeros(())
        done, failed_part = LossTerms(zero, zero, zero), None
        for number, part in enumerate(parts):
            try:
                terms = self.loss(part, counts)
                self.gradients.backward(terms.total, is_last=number == len(parts) - 1)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed_part = number
                break
            terms = LossTerms(*(term.detach() for term in terms))
            done = terms if number == 0 else LossTerms(*map(torch.add, done, terms))
        if failed_part is not None:
            release_memory(self.world.device)  # outside the handler, whose error holds the graph
        notes = self.gradients.notes
        notes[FAILED] = float(failed_part is not None)
        notes[TIGHT] = float(self._tight)
        notes[LOSS] = done.total
        notes[UNREADABLE] = float(unreadable)
        notes[INTERRUPTS] = float(signal_number == signal.SIGINT)
        notes[TERMINATIONS] = float(signal_number == signal.SIGTERM)
        self._tight = False
        self.gradients.finish()
        return done, failed_part

    def update(self, step: int, factor: float, loss: LossTerms) -> tuple[StepResult, bool]:
        """Clip, change the weights and their average, all of it unless the step is to be skipped.

        Args:
            step: number of the step.
            factor: share of the peak learning rate.
            loss: this rank's share, as `compute` gave it.

        Returns:
            What is known on the device, and whether the optimizer of this rank ran out of memory
            at first.
        """
        set_learning_rate(self.optimizer, factor)
        norm = torch.nn.utils.clip_grad_norm_(
            self.gradients.parameters, self.recipe.optim.clip_norm, foreach=True
        )
        notes = self.gradients.notes
        good = torch.isfinite(norm) & torch.isfinite(notes[LOSS])
        good &= (notes[FAILED] == 0) & (notes[UNREADABLE] == 0)
        skip = (~good).to(torch.float32)
        self._change_weights(skip)
        if self.averaged is not None:
            self.averaged.update(step, skip)
        copy, copied = copy_to_host(torch.cat([skip.reshape(1).to(notes), notes]))
        return StepResult(loss, norm, skip, copy, copied), self._tight

    def _change_weights(self, skip: Tensor) -> None:
        """The optimizer's step, unless `skip` is 1; a second time where memory ran out.

        The gradients are there, and all that the optimizer keeps was made before the first step, so
        it runs out before it changes anything or not at all: freeing the caches is enough, and no
        other rank has to do anything but hear of it at the next step.
        """
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._tight = True
        if self._tight:
            release_memory(self.world.device)
            self.optimizer.step()
