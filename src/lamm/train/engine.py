"""The training loop, from the first step to the last checkpoint, for every model and every task.

Pre-training and fine-tuning differ in the model and the data that are passed in, never here.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from lamm.data.joint import JointDataset
from lamm.errors import InterruptedRunError
from lamm.models.potential import Potential
from lamm.train.batches import Schedule
from lamm.train.checkpoint import TrainState
from lamm.train.distributed import World
from lamm.train.optim import learning_rate_factor
from lamm.train.pace import Pace
from lamm.train.recipe import Recipe
from lamm.train.recovery import Recovery
from lamm.train.report import ProgressLine
from lamm.train.session import Session
from lamm.train.step import Step
from lamm.train.stopping import StopRequest
from lamm.train.warmup import warm_up

logger = logging.getLogger(__name__)


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
        BadAnswerError: the loss isn't finite, step after step.
        DataError: a structure doesn't fit into the memory.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    config = recipe.train
    torch.use_deterministic_algorithms(config.deterministic)
    session = world.together(lambda: Session(model, joint, recipe, run_dir, world, resume))
    state = session.state
    schedule = Schedule(
        joint,
        recipe.balance,
        model.graph_config,
        world,
        recipe.seed,
        mini_batch_size=session.mini_batch_size(),
    )
    advice = schedule.advice() if recipe.advises_on_planner and world.is_main else None
    if advice is not None:
        logger.warning(advice)
    session.check_plan(schedule.basis(), schedule.steps_per_epoch)
    pace = Pace(config, schedule.steps_per_epoch, state.step, state.seconds)
    step = Step(model, session.optimizer, session.averaged, recipe, world)
    on_gpu = world.device.type == "cuda"
    recovery = Recovery(
        step,
        state,
        joint,
        recipe,
        run_dir,
        session.count_update,
        look_later=on_gpu,
    )
    visible, signal_number = world.is_main and not quiet, 0

    with StopRequest() as stop, ProgressLine(title, pace.most, state.step, visible=visible) as bar:
        if state.ended == config.length():
            if world.is_main:
                logger.info("%s: the run had come to its end at step %d", run_dir, state.step)
            return state
        if state.step == 0:
            is_best = session.validate()
            session.save(is_best)
            pace.note_validation(0, pace.seconds())
            if visible:
                logger.info(session.said)
        if state.step < pace.most and (
            on_gpu if recipe.balance.warm_up is None else recipe.balance.warm_up
        ):
            warm_up(step, schedule, state)
        session.start_clock()
        for planned in schedule.steps(state.step, pace.most, config.workers):
            factor = learning_rate_factor(planned.step, pace.num_steps, recipe.optim)
            recovery.do(planned, factor, stop.signal_number or 0)
            session.count(planned, schedule.steps_per_epoch)
            bar.update(state.step)

            if config.max_seconds and state.step % config.log_every == 0:
                pace.estimate(state.step, pace.seconds())
                pace.agree(world.largest(pace.num_steps), world.largest(pace.fewest_between))
                bar.expect(pace.num_steps)
            last = state.step >= pace.num_steps
            reports = state.step % config.log_every == 0 or last
            validates = pace.validates(state.step) or last
            every = config.checkpoint_every
            saves = (state.step % every == 0 if every else validates) or last
            if reports or validates or saves or recovery.signal_number:
                recovery.settle()
            signal_number = 0 if last else recovery.signal_number
            if reports or signal_number:
                bar.update(state.step, session.report())
            is_best = False
            if validates:
                before = pace.seconds()
                is_best = session.validate()
                pace.note_validation(state.step, pace.seconds() - before)
                if visible:
                    logger.info(session.said)
            waited = config.patience and session.has_waited(config.patience * pace.validate_every)
            if waited and not last and visible:
                logger.info(
                    "no better validation since step %s: the run ends (train.patience=%s)",
                    state.best_step,
                    config.patience,
                )
            if last or waited:
                state.ended = config.length()
            if saves or is_best or signal_number or waited:
                session.save(is_best)
            if signal_number or last or waited:
                break
    session.close()
    if signal_number:
        raise InterruptedRunError(
            signal_number, f"stopped at step {state.step} of {pace.num_steps}; go on with --resume"
        )
    return state
