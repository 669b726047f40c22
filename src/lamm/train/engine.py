"""The training loop, from the first step to the last checkpoint, for every model and every task.

Pre-training and fine-tuning differ in the model and the data that are passed in, never here.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator

from lamm.balance.settings import BalanceConfig
from lamm.data.joint import JointDataset
from lamm.errors import BadAnswerError, CheckpointError, ConfigError, InterruptedRunError
from lamm.keyed import key_of
from lamm.loss import LossConfig, Normalised, normalise, universal_loss
from lamm.models.potential import Potential
from lamm.schema import Frozen
from lamm.train.batches import Schedule
from lamm.train.checkpoint import TrainState, resume_checkpoint, save_checkpoint
from lamm.train.distributed import World, share_gradients
from lamm.train.ema import AveragedWeights
from lamm.train.optim import (
    OptimConfig,
    build_optimizer,
    learning_rate_factor,
    set_learning_rate,
)
from lamm.train.report import MetricsFile, ProgressLine, memory_mib
from lamm.train.stopping import StopRequest
from lamm.train.validation import validate

logger = logging.getLogger(__name__)


class TrainConfig(Frozen):
    """Length of a run, precision, and how often it reports, validates and saves."""

    epochs: NonNegativeInt | None = None
    """Passes over the joint data set; give this or `steps`."""
    steps: NonNegativeInt | None = None
    """Optimizer steps; give this or `epochs`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes the encoder in it by autocast; sums and weights stay in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: NonNegativeInt = 1
    """Processes per rank that read structures and build graphs."""
    deterministic: bool = False
    """Refuse GPU kernels whose sums depend on timing; a CPU run is always reproducible."""
    log_every: PositiveInt = 10
    validate_every: PositiveInt | None = None
    """Steps between validations; ten in a run where left out. The last step always validates."""
    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints; as `validate_every` where left out."""
    keep_checkpoints: PositiveInt = 2
    """How many of the latest checkpoints stay, beside the best."""
    val_atoms_per_batch: PositiveInt = 1024

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give the length of the run as `epochs` or as `steps`, one of the two")
        return self


@dataclass
class Recipe:
    """What the loop is told beside model and data."""

    loss: LossConfig
    optim: OptimConfig
    balance: BalanceConfig
    train: TrainConfig
    seed: int


class _Totals:
    """Sums since the last report, kept on the device so that no step waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.terms = torch.zeros(3, dtype=torch.float64, device=device)
        self.norm = torch.zeros((), device=device)
        self.start = time.perf_counter()
        self.steps = self.structures = self.atoms = 0
        self.wait = self.imbalance = 0.0


def train(
    model: Potential,
    joint: JointDataset,
    recipe: Recipe,
    run_dir: Path,
    world: World,
    *,
    resume: bool = False,
    title: str = "training",
    quiet: bool = False,
) -> TrainState:
    """Train a potential and leave checkpoints and metrics in a run folder.

    Args:
        model: the potential, its normalisation set; trained in place.
        joint: the data.
        recipe: loss, optimizer, batches, length.
        run_dir: where metrics and checkpoints go.
        world: this process and the other ranks.
        resume: go on from the folder's last checkpoint, to the same bits as without the stop.
        title: what the progress bar says.
        quiet: without progress bar.

    Returns:
        Where the run ended. The model holds its last weights.

    Raises:
        BadAnswerError: the loss isn't finite.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    config = recipe.train
    torch.use_deterministic_algorithms(config.deterministic)
    model.to(world.device).train()
    optimizer = build_optimizer(model, model.encoder, recipe.optim)
    averaged = AveragedWeights(model, recipe.optim.ema_decay) if recipe.optim.ema_decay else None
    state = TrainState(seed=recipe.seed)
    if resume:
        state = resume_checkpoint(_last(run_dir), model, optimizer, averaged)
    schedule = Schedule(joint, recipe.balance, model.graph_config, world, recipe.seed)
    num_steps = config.steps
    if num_steps is None:
        num_steps = (config.epochs or 0) * schedule.steps_per_epoch
    validate_every = config.validate_every or max(num_steps // 10, 1)
    checkpoint_every = config.checkpoint_every or validate_every
    shared = share_gradients(model, world)
    scales = (model.reference_energies, model.energy_scale, model.force_scale)
    metrics = MetricsFile(run_dir, state.step) if world.is_main else None
    visible = world.is_main and not quiet

    def check(step: int) -> bool:
        """Validate with the averaged weights; say whether this is the best step so far."""
        result = _validate(model, averaged, joint, recipe, world)
        if metrics is not None:
            metrics.write({"kind": "validation", "step": step, "seconds": state.seconds, **result})
        loss = result["loss"]
        if not math.isfinite(loss):
            raise BadAnswerError(f"step {step}: the validation loss is {loss}. {_ADVICE}")
        if state.best_loss is None or loss < state.best_loss:
            state.best_loss, state.best_step = loss, step
            return True
        return False

    def save(is_best: bool) -> None:
        if world.is_main:
            save_checkpoint(
                run_dir,
                model,
                optimizer,
                averaged,
                state,
                is_best=is_best,
                keep=config.keep_checkpoints,
            )
        world.wait()

    started = time.perf_counter() - state.seconds
    totals = _Totals(world.device)
    with StopRequest() as stop, ProgressLine(title, num_steps, state.step, visible=visible) as bar:
        if state.step == 0:
            save(check(0))
        for planned in schedule.steps(state.step, num_steps, config.workers):
            batch = planned.batch
            set_learning_rate(
                optimizer, learning_rate_factor(planned.step, num_steps, recipe.optim)
            )
            torch.manual_seed(key_of("dropout", recipe.seed, planned.step, world.rank))
            with torch.autocast(
                world.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
            ):
                prediction = shared(batch, subset_index=batch.subset_index, normalised=True)
            predicted = Normalised(prediction.energy.squeeze(-1), prediction.forces.squeeze(1))
            target = normalise(batch.energy, batch.forces, batch, *scales)
            loss = universal_loss(predicted, target, batch, planned.counts, recipe.loss)
            # Gradients are averaged over the ranks; Eq. (5) is a sum over them.
            (loss.total * world.size).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if averaged is not None:
                averaged.update(planned.step)

            state.step = planned.step + 1
            state.epoch = state.step / schedule.steps_per_epoch
            state.cursor += planned.structures
            state.seconds = time.perf_counter() - started
            totals.terms += torch.stack([term.detach() for term in loss]).to(totals.terms)
            totals.norm += norm
            totals.steps += 1
            totals.structures += planned.structures
            totals.atoms += batch.atomic_numbers.shape[0]
            totals.wait += planned.wait
            totals.imbalance += planned.imbalance
            bar.update(state.step)

            last = state.step == num_steps
            stopping = False
            if state.step % config.log_every == 0 or last:
                line = _report(totals, state, optimizer, world)
                if metrics is not None:
                    metrics.write(line)
                bar.update(state.step, f"loss {line['loss']:.4f} {line['atoms_per_s']:.0f} atoms/s")
                totals = _Totals(world.device)
                stopping = world.any(stop.signal_number is not None)
            is_best = False
            if state.step % validate_every == 0 or last:
                is_best = check(state.step)
                totals.start = time.perf_counter()
            if state.step % checkpoint_every == 0 or last or is_best or stopping:
                save(is_best)
            if stopping and not last:
                break
    if metrics is not None:
        metrics.close()
    if stop.signal_number is not None and state.step < num_steps:
        raise InterruptedRunError(
            stop.signal_number,
            f"stopped at step {state.step} of {num_steps}; go on with --resume",
        )
    return state


_ADVICE = (
    "Lower `optim.lr` or `optim.clip_norm`, lengthen `optim.warmup_steps`, "
    "or look for wrong labels with `lamm data info`."
)


def _last(run_dir: Path) -> Path:
    link = run_dir / "last"
    if not link.exists():
        raise CheckpointError(f"{run_dir}: no checkpoint to resume from. Start without --resume.")
    return link.resolve()


def _validate(
    model: Potential,
    averaged: AveragedWeights | None,
    joint: JointDataset,
    recipe: Recipe,
    world: World,
) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        return validate(
            model, joint, recipe.loss, world, atoms_per_batch=recipe.train.val_atoms_per_batch
        )

    if len(joint.ids("val")) == 0:
        raise ConfigError(
            "no structure is left for validation. Raise `data.val_fraction`, or give splits."
        )
    if averaged is None:
        return run()
    with averaged.applied():
        return run()


def _report(
    totals: _Totals, state: TrainState, optimizer: torch.optim.Optimizer, world: World
) -> dict[str, Any]:
    """A line of metrics about the steps since the last one; only this waits for the device."""
    sums = torch.cat([totals.terms, totals.terms.new_tensor([totals.atoms, totals.wait])])
    loss, energy, forces, atoms, wait = world.sum(sums).tolist()
    if not math.isfinite(loss):
        raise BadAnswerError(
            f"the loss is {loss} within the {totals.steps} steps up to {state.step}. {_ADVICE}"
        )
    seconds = time.perf_counter() - totals.start
    steps = totals.steps
    return {
        "kind": "train",
        "step": state.step,
        "epoch": state.epoch,
        "seconds": state.seconds,
        "loss": loss / steps,
        "energy_loss": energy / steps,
        "force_loss": forces / steps,
        "lr": max(float(group["lr"]) for group in optimizer.param_groups),
        "grad_norm": float(totals.norm) / steps,
        "structures_per_s": totals.structures / seconds,
        "atoms_per_s": atoms / seconds,
        "step_ms": 1000 * seconds / steps,
        "data_wait": wait / world.size / seconds,
        "imbalance": totals.imbalance / steps,
        "memory_mib": memory_mib(world.device),
    }
