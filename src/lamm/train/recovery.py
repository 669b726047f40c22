"""What a run does about a step that failed: redo it in smaller parts, or leave it out.

**Out of memory.** A rank whose forward or backward ran out of memory still takes part in the sum
of the gradients, with a flag in it that costs no message of its own (`lamm.train.gradients`). Where
the flag is up, no rank changes anything (`lamm.train.step`), and all redo the mini-batch: each cuts
its GPU batch into parts within a budget, which is half of what was too much. The denominators of
Eq. (5) are those of the mini-batch whatever the parts, so nothing else changes. The budget is kept
in the run's state, and later GPU batches above it are cut beforehand. A structure that doesn't fit
alone stops the run, or is set aside and counts as one whose error is zero.

**Loss or gradient not finite.** All ranks leave the step out, and the structures that alone give
such a loss or gradient are named.

Either is known to the host only when the device has done the step. To keep a GPU busy meanwhile,
the host looks at a step after it has given the device forward and backward of the next one, and
before the next update: if the step has to be redone, the next one's gradients are thrown away and
computed again, so that the order of the updates is the planned one. The alternatives were weighed:
reading the flag in its own step drains the device's queue at every step; agreeing among the hosts
by a second process group costs a message per step that grows with the number of ranks; and one sum
after backward instead of pieces during it would make it easy to abandon a mini-batch, but all of
the gradients' way over the network would be waiting time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lamm.data.joint import JointDataset
from lamm.errors import BadAnswerError, DataError
from lamm.files import write_text
from lamm.graph.batch import GraphBatch
from lamm.loss import LossTerms
from lamm.train.batches import PlannedStep
from lamm.train.checkpoint import TrainState
from lamm.train.parts import graph_size, select, split_batch
from lamm.train.recipe import Recipe
from lamm.train.step import Outcome, Step, StepResult

logger = logging.getLogger(__name__)

SET_ASIDE = "set_aside.jsonl"
ADVICE = (
    "Lower `optim.lr` or `optim.clip_norm`, lengthen `optim.warmup_steps`, "
    "or look for wrong labels with `lamm data info`."
)
_MOST_NAMES = 10


@dataclass
class _Task:
    """A mini-batch that is being worked on."""

    planned: PlannedStep
    factor: float
    parts: list[GraphBatch]
    signal_number: int = 0
    loss: LossTerms | None = None
    failed_part: int | None = None
    result: StepResult | None = None
    size_before: int = 0
    """Atoms and edges of this rank's largest part of the step before, where the optimizer ran out
    of memory after it."""


@dataclass(frozen=True)
class _Failure:
    """What a rank had no memory for."""

    rank: int
    structures: int
    size: int
    """Atoms and edges."""
    alone: dict[str, Any] | None
    """The structure, where it is one alone."""


class Recovery:
    """Does the steps of a run, and again those for which a rank had no memory.

    Args:
        step: the step proper.
        state: of the run; the budget and what was set aside are kept in it.
        joint: knows the structures' names.
        recipe: what to do about structures that are too large, and when to give up.
        run_dir: where the structures that were set aside are listed.
        done: is told of each update, made or skipped.
        look_later: look at a step after the next one's backward, as a GPU wants it.
    """

    def __init__(
        self,
        step: Step,
        state: TrainState,
        joint: JointDataset,
        recipe: Recipe,
        run_dir: Path,
        done: Callable[[StepResult], None],
        *,
        look_later: bool,
    ) -> None:
        self.step, self.state, self.joint, self.recipe = step, state, joint, recipe
        self.run_dir, self.done, self.look_later = run_dir, done, look_later
        self.world = step.world
        self._pending: _Task | None = None
        self._tight_size = 0
        self.signal_number = 0
        """Signal that some rank was sent, as all ranks know it; 0 without one."""

    def do(self, planned: PlannedStep, factor: float, signal_number: int = 0) -> None:
        """Do a step, and see to the one before it.

        Args:
            planned: the mini-batch.
            factor: share of the peak learning rate.
            signal_number: signal that this rank was sent, of which the others are told.

        Raises:
            BadAnswerError: too many steps in a row were skipped.
            DataError: a rank can't read its structures; or a structure doesn't fit into the memory,
                and the run is to stop then.
        """
        task = _Task(planned, factor, self._parts(planned.batch), signal_number=signal_number)
        self._compute(task)
        if self.settle():
            task.parts = self._parts(planned.batch)
            self._compute(task)
        self._update(task)
        self._pending = task
        if not self.look_later:
            self.settle()

    def settle(self) -> bool:
        """See to the latest step, if nobody has: wait for it, redo it, or note that it was skipped.

        Returns:
            Whether it was redone, so that the weights are others now.

        Raises:
            BadAnswerError: too many steps in a row were skipped.
            DataError: a structure doesn't fit into the memory, and the run is to stop then.
        """
        task, self._pending = self._pending, None
        if task is None:
            return False
        outcome, redone = self._read(task), False
        while outcome.failed:
            self._make_room(task)
            task.parts = self._parts(task.planned.batch)
            self._compute(task)
            self._update(task)
            outcome, redone = self._read(task), True
        if outcome.skipped:
            self._note_skipped(task, outcome.loss)
        else:
            self.state.skipped_in_a_row = 0
        return redone

    def _parts(self, batch: GraphBatch) -> list[GraphBatch]:
        aside = self.state.set_aside
        # A batch of fewer atoms holds none of them: no need to wait for its ids.
        may_hold = aside and len(batch.atomic_numbers) >= min(one["atoms"] for one in aside)
        without = {one["joint_id"] for one in aside} if may_hold else set()
        return split_batch(batch, self.state.budget, without)

    def _compute(self, task: _Task) -> None:
        planned = task.planned
        task.size_before, self._tight_size = self._tight_size, 0  # told with these gradients
        task.loss, task.failed_part = self.step.compute(
            planned.step,
            task.parts,
            planned.counts,
            unreadable=planned.fault is not None,
            signal_number=task.signal_number,
        )

    def _update(self, task: _Task) -> None:
        assert task.loss is not None
        task.result, was_tight = self.step.update(task.planned.step, task.factor, task.loss)
        if was_tight:
            self._tight_size = max(map(graph_size, task.parts))
        self.done(task.result)

    def _read(self, task: _Task) -> Outcome:
        assert task.result is not None
        outcome = task.result.read()
        self.signal_number = self.signal_number or outcome.signal_number
        if outcome.unreadable:
            faults = [one for one in self.world.gather(task.planned.fault) if one is not None]
            raise DataError(f"step {task.planned.step}: {faults[0]}")
        if outcome.tight:
            sizes = self.world.gather(task.size_before)
            self._lower_budget(
                min(size for size in sizes if size),
                f"step {task.planned.step - 1}: out of memory in the optimizer's step, which "
                f"was done again, on rank {[rank for rank, size in enumerate(sizes) if size]}",
            )
        return outcome

    def _make_room(self, task: _Task) -> None:
        """Lower the budget or set structures aside, the same on all ranks."""
        mine = None
        if task.failed_part is not None:
            part = task.parts[task.failed_part]
            alone = self._describe(part, 0) if part.num_structures == 1 else None
            mine = _Failure(self.world.rank, part.num_structures, graph_size(part), alone)
        failures = [one for one in self.world.gather(mine) if one is not None]
        step = task.planned.step
        if any(one.structures == 0 for one in failures):
            raise DataError(
                f"step {step}: out of memory without any structure. Use a smaller model."
            )
        together = [one for one in failures if one.alone is None]
        if together:
            least = min(together, key=lambda one: one.size)
            self._lower_budget(
                least.size,
                f"step {step}: out of memory on rank {least.rank} with {least.structures} "
                f"structures of {least.size} atoms and edges; the mini-batch is split and redone",
            )
        for one in failures:
            if one.alone is not None:
                self._oversized({**one.alone, "size": one.size, "step": step})

    def _lower_budget(self, size: int, what: str) -> None:
        half = max(size // 2, 1)
        self.state.budget = half if self.state.budget is None else min(self.state.budget, half)
        if self.world.is_main:
            logger.warning(
                "%s; GPU batches of more than %d atoms and edges are split from now on",
                what,
                self.state.budget,
            )

    def _oversized(self, structure: dict[str, Any]) -> None:
        named = _name(structure)
        if self.recipe.balance.oversized == "stop":
            raise DataError(
                f"step {structure['step']}: {named} doesn't fit into the memory alone "
                f"({structure['size']} atoms and edges).\n"
                "  Leave such structures out with `max_atoms` of the subset, set them aside with "
                "`balance.oversized=set_aside`, or use a smaller model or a larger device."
            )
        self.state.set_aside.append(structure)
        if not self.world.is_main:
            return
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in self.state.set_aside)
        write_text(self.run_dir / SET_ASIDE, lines)
        logger.warning(
            "step %d: %s doesn't fit into the memory alone and is set aside (%s)",
            structure["step"],
            named,
            SET_ASIDE,
        )

    def _describe(self, batch: GraphBatch, number: int) -> dict[str, Any]:
        joint_id, subset = int(batch.ids[number]), int(batch.subset_index[number])
        return {
            "subset": self.joint.names[subset],
            "id": self.joint.structure(joint_id).id,
            "atoms": int(batch.num_atoms[number]),
            "joint_id": joint_id,
        }

    def _note_skipped(self, task: _Task, loss: float) -> None:
        """Name the structures, and give up where this was one too many in a row."""
        self.state.skipped_in_a_row += 1
        step, count = task.planned.step, self.state.skipped_in_a_row
        names = [name for names in self.world.gather(self._culprits(task)) for name in names]
        if self.world.is_main:
            said = "; ".join(names[:_MOST_NAMES]) or "none of its structures alone"
            more = len(names) - _MOST_NAMES
            logger.warning(
                "step %d is skipped: its loss is %g, loss or gradient isn't finite: %s%s",
                step,
                loss,
                said,
                f" and {more} more" if more > 0 else "",
            )
        if count >= self.recipe.train.max_skipped:
            raise BadAnswerError(
                f"the loss is {loss} at step {step}, and {count} steps in a row were skipped "
                f"because loss or gradient weren't finite (`train.max_skipped`). {ADVICE}"
            )

    def _culprits(self, task: _Task) -> list[str]:
        """This rank's structures that alone give a loss or a gradient which isn't finite."""
        parameters = self.step.gradients.parameters
        names = []
        for part in task.parts:
            for number in range(part.num_structures):
                loss = self.step.loss(select(part, [number]), task.planned.counts).total
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                values = [loss.detach(), *(one for one in gradients if one is not None)]
                if not all(bool(torch.isfinite(one).all()) for one in values):
                    names.append(_name(self._describe(part, number)))
        return names


def _name(structure: dict[str, Any]) -> str:
    return (
        f"subset '{structure['subset']}', structure '{structure['id']}' "
        f"of {structure['atoms']} atoms"
    )
