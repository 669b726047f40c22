"""What a run carries from step to step, and what it does between steps: report, validate, save."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lamm.data.joint import JointDataset
from lamm.errors import BadAnswerError, ConfigError
from lamm.models.potential import Potential
from lamm.train.batches import PlannedStep
from lamm.train.checkpoint import TrainState, resume_checkpoint, save_checkpoint, tidy
from lamm.train.distributed import World
from lamm.train.ema import AveragedWeights
from lamm.train.optim import build_optimizer
from lamm.train.recipe import Recipe
from lamm.train.recovery import ADVICE
from lamm.train.report import MetricsFile, memory_mib
from lamm.train.step import StepResult
from lamm.train.validation import validate
from lamm.typing import JSONDict

logger = logging.getLogger(__name__)

PLANNERS_OF_RANKS = ("paper", "paper_shuffled")
"""Planners whose mini-batches, not only who works on what, depend on the number of ranks."""
MOST_SAID = 4
"""Subsets whose validation errors have room in a line."""
KEPT = {
    "structures": "`data` (its subsets, splits, filters or weights)",
    "temperature": "`data.sampling.temperature`",
    "seed": "`seed`",
}
"""What a run can't change while it goes on, by its key in the plan's basis."""


class Totals:
    """Sums over the steps since the last report, kept on the device so that no step waits."""

    def __init__(self, device: torch.device) -> None:
        self.terms = torch.zeros(3, dtype=torch.float64, device=device)
        self.norm = torch.zeros((), device=device)
        self.updates = torch.zeros((), device=device)
        self.start = time.perf_counter()
        self.steps = self.structures = self.atoms = 0
        self.wait = self.imbalance = 0.0
        self.paused = 0.0
        """Seconds since `start` that are no step's."""

    def add_update(self, result: StepResult) -> None:
        """Count an update, unless the step was skipped."""
        skipped = result.skip.bool()
        terms = torch.stack([term.detach() for term in result.loss]).to(self.terms)
        self.terms += torch.where(skipped, 0, terms)
        self.norm += torch.where(skipped, 0, result.norm)
        self.updates += 1 - result.skip

    def add(self, planned: PlannedStep) -> None:
        """Count what was planned for a step."""
        self.steps += 1
        self.structures += planned.structures
        self.atoms += planned.batch.atomic_numbers.shape[0]
        self.wait += planned.wait
        self.imbalance += planned.imbalance


def said_of(validation: Mapping[str, Any]) -> str:
    """A validation in a line: the loss, and the errors of each subset, of few at least."""
    subsets = validation["subsets"]
    if len(subsets) > MOST_SAID:
        return f"validation loss {validation['loss']:.4g}"
    units = {
        "energy_mae_mev_per_atom": ("E", "meV/atom"),
        "forces_mae_mev_per_ang": ("F", "meV/Å"),
        "denoising_mae_fair_ang": ("noise", "Å"),
    }
    parts = []
    for name, errors in subsets.items():
        known = [
            f"{short} {errors[key]:.4g} {unit}"
            for key, (short, unit) in units.items()
            if errors.get(key) is not None
        ]
        parts.append(f"{name} {', '.join(known)}" if known else name)
    return f"validation loss {validation['loss']:.4g}; {'; '.join(parts)}"


class Session:
    """Model, optimizer, averaged weights and progress of one run on this rank."""

    def __init__(
        self,
        model: Potential,
        joint: JointDataset,
        recipe: Recipe,
        run_dir: Path,
        world: World,
        resume: bool,
    ) -> None:
        self.model = model.to(world.device).train()
        self.joint, self.recipe, self.run_dir, self.world = joint, recipe, run_dir, world
        self.optimizer = build_optimizer(model, model.encoder, recipe.optim)
        decay = recipe.optim.ema_decay
        self.averaged = AveragedWeights(model, decay) if decay else None
        self.state = TrainState(seed=recipe.seed)
        if resume:
            folder = (run_dir / "last").resolve()
            self.state = resume_checkpoint(folder, model, self.optimizer, self.averaged)
            if world.is_main:
                tidy(run_dir, self.state)
        self.said = ""
        """The latest validation, for a person."""
        self.metrics = MetricsFile(run_dir, self.state.step) if world.is_main else None
        self._started = time.perf_counter() - self.state.seconds
        self.start_clock()

    def start_clock(self) -> None:
        """Count steps and their time from now on."""
        self._totals = Totals(self.world.device)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Time that doesn't count as that of the steps."""
        begun = time.perf_counter()
        yield
        self._totals.paused += time.perf_counter() - begun

    def mini_batch_size(self) -> int:
        """G: that of the run, however many ranks go on with it."""
        state, world = self.state, self.world
        configured = world.size * self.recipe.balance.structures_per_rank
        size = state.mini_batch_size or configured
        if size != configured and world.is_main:
            logger.info(
                "mini-batches keep the %d structures that the run began with: %.3g on each of the "
                "%d ranks",
                size,
                size / world.size,
                world.size,
            )
        state.mini_batch_size = size
        return size

    def check_plan(self, basis: JSONDict, steps_per_epoch: int) -> None:
        """Refuse to go on with a plan that would lose structures or use them twice.

        Args:
            basis: what the plan depends on now.
            steps_per_epoch: of the plan.

        Raises:
            ConfigError: data, sampling or seed aren't those that the run began with; or inside an
                epoch, the planner, or the ranks of a planner that depends on them.
        """
        before, inside = self.state.plan, self.state.step % steps_per_epoch
        if before is not None:
            changed = [words for key, words in KEPT.items() if before[key] != basis[key]]
            if changed:
                raise ConfigError(
                    f"{self.run_dir}: the run began with other settings of {' and '.join(changed)} "
                    "than those that it is to go on with; its epochs would be other structures.\n"
                    "  Go on with those in its config.yaml, or start another run."
                )
            if inside and before["planner"] != basis["planner"]:
                raise ConfigError(
                    f"{self.run_dir}: the run is {inside} steps into an epoch that "
                    f"'{before['planner']}' planned; the rest of it by '{basis['planner']}' would "
                    "be other structures.\n"
                    f"  Go on with balance.planner={before['planner']}, at least up to the end of "
                    f"the epoch (step {self.state.step - inside + steps_per_epoch})."
                )
        if self.state.step and inside and (before is None or before["version"] != basis["version"]):
            logger.warning(
                "the epoch was planned by another version of LaMM: what is left of it may have "
                "structures that were used already, in place of some that weren't"
            )
        self._check_ranks(inside, steps_per_epoch)
        self.state.plan, self.state.ranks = basis, self.world.size

    def _check_ranks(self, inside: int, steps_per_epoch: int) -> None:
        before, ranks = self.state.ranks, self.world.size
        planner = self.recipe.balance.planner
        if before not in (None, ranks) and inside and planner in PLANNERS_OF_RANKS:
            raise ConfigError(
                f"the run is {inside} steps into an epoch that '{planner}' planned for {before} "
                f"ranks; on {ranks} the rest of it would be other structures.\n"
                f"  Go on with {before} ranks up to the end of the epoch (step "
                f"{self.state.step - inside + steps_per_epoch}), or plan runs that are to move "
                "with `balance.planner=balanced`."
            )

    def count_update(self, result: StepResult) -> None:
        """Note that the weights were updated, or that the step was skipped."""
        self._totals.add_update(result)

    def count(self, planned: PlannedStep, steps_per_epoch: int) -> None:
        """Note that a step was done."""
        self.state.step = planned.step + 1
        self.state.epoch = self.state.step / steps_per_epoch
        self.state.cursor += planned.structures
        self.state.seconds = time.perf_counter() - self._started
        self._totals.add(planned)

    def report(self) -> str:
        """Write a line about the steps since the last one; only this waits for the device.

        Returns:
            Loss and rate for a person. Skipped steps are in no mean, and steps that all were
            skipped have no line.
        """
        totals = self._totals
        updates = float(totals.updates)
        mine = torch.cat([totals.terms, totals.terms.new_tensor([totals.atoms, totals.wait])])
        loss, energy, forces, atoms, wait = self.world.sum(mine).tolist()
        self.start_clock()
        steps, state = totals.steps, self.state
        if not updates:
            return f"{steps} steps skipped"
        seconds = self._totals.start - totals.start - totals.paused
        line = {
            "kind": "train",
            "step": state.step,
            "epoch": state.epoch,
            "seconds": state.seconds,
            "loss": loss / updates,
            "energy_loss": energy / updates,
            "force_loss": forces / updates,
            "lr": max(float(group["lr"]) for group in self.optimizer.param_groups),
            "grad_norm": float(totals.norm) / updates,
            "structures_per_s": totals.structures / seconds,
            "atoms_per_s": atoms / seconds,
            "step_ms": 1000 * seconds / steps,
            "data_wait": wait / self.world.size / seconds,
            "imbalance": totals.imbalance / steps,
            "memory_mib": memory_mib(self.world.device),
            "skipped": steps - round(updates),
        }
        if self.metrics is not None:
            self.metrics.write(line)
        return f"loss {line['loss']:.4f} {line['atoms_per_s']:.0f} atoms/s"

    def validate(self) -> bool:
        """Validate with the averaged weights and write a line.

        Returns:
            Whether this is the best step so far.

        Raises:
            BadAnswerError: the validation loss isn't finite.
        """
        with self._pause(), nullcontext() if self.averaged is None else self.averaged.applied():
            result = self._validate()
        state, loss = self.state, result["loss"]
        if not math.isfinite(loss):
            raise BadAnswerError(f"step {state.step}: the validation loss is {loss}. {ADVICE}")
        if self.metrics is not None:
            self.metrics.write(
                {"kind": "validation", "step": state.step, "seconds": state.seconds, **result}
            )
        is_best = state.best_loss is None or loss < state.best_loss
        if is_best:
            state.best_loss, state.best_step = loss, state.step
        self.said = f"step {state.step}: {said_of(result)}{' (best)' if is_best else ''}"
        return is_best

    def has_waited(self, steps: int) -> bool:
        """Whether so many steps have gone by since the best validation."""
        best = self.state.best_step
        return best is not None and self.state.step - best >= steps

    def _validate(self) -> dict[str, Any]:
        return validate(
            self.model,
            self.joint,
            self.recipe.loss,
            self.world,
            atoms_per_batch=self.recipe.train.val_atoms_per_batch,
            unjudged=self.recipe.unjudged,
        )

    def save(self, is_best: bool) -> None:
        """Save a checkpoint; all ranks wait until it is there."""
        with self._pause():
            self.world.from_main(
                lambda: save_checkpoint(
                    self.run_dir,
                    self.model,
                    self.optimizer,
                    self.averaged,
                    self.state,
                    is_best=is_best,
                    keep=self.recipe.train.keep_checkpoints,
                )
            )

    def close(self) -> None:
        """Put the metrics on the disk."""
        if self.metrics is not None:
            self.metrics.close()
