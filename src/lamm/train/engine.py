"""The training loop, from the first step to the last checkpoint, for every model and every task.

Pre-training and fine-tuning differ in the model and the data that are passed in, never here.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lamm.data.joint import JointDataset
from lamm.errors import InterruptedRunError
from lamm.keyed import key_of
from lamm.loss import Normalised, normalise, universal_loss
from lamm.models.potential import Potential
from lamm.train.batches import Schedule
from lamm.train.checkpoint import TrainState
from lamm.train.distributed import World, share_gradients
from lamm.train.optim import learning_rate_factor, set_learning_rate
from lamm.train.recipe import Recipe
from lamm.train.report import ProgressLine
from lamm.train.session import Session
from lamm.train.stopping import StopRequest


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
    config, optim, device = recipe.train, recipe.optim, world.device
    torch.use_deterministic_algorithms(config.deterministic)
    session = Session(model, joint, recipe, run_dir, world, resume)
    state, optimizer, averaged = session.state, session.optimizer, session.averaged
    schedule = Schedule(joint, recipe.balance, model.graph_config, world, recipe.seed)
    num_steps = config.num_steps(schedule.steps_per_epoch)
    validate_every = config.validate_every or max(num_steps // 10, 1)
    checkpoint_every = config.checkpoint_every or validate_every
    scales = (model.reference_energies, model.energy_scale, model.force_scale)
    shared = share_gradients(model, world)
    visible = world.is_main and not quiet

    with StopRequest() as stop, ProgressLine(title, num_steps, state.step, visible=visible) as bar:
        if state.step == 0:
            session.save(session.validate())
        for planned in schedule.steps(state.step, num_steps, config.workers):
            batch = planned.batch
            factor = learning_rate_factor(planned.step, num_steps, optim)
            set_learning_rate(optimizer, factor)
            torch.manual_seed(key_of("dropout", recipe.seed, planned.step, world.rank))
            with torch.autocast(
                device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
            ):
                prediction = shared(batch, subset_index=batch.subset_index, normalised=True)
            predicted = Normalised(prediction.energy.squeeze(-1), prediction.forces.squeeze(1))
            target = normalise(batch.energy, batch.forces, batch, *scales)
            loss = universal_loss(predicted, target, batch, planned.counts, recipe.loss)
            # Gradients are averaged over the ranks; Eq. (5) is a sum over them.
            (loss.total * world.size).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if averaged is not None:
                averaged.update(planned.step)
            session.count(planned, schedule.steps_per_epoch, loss, norm)
            bar.update(state.step)

            last, stopping, is_best = state.step == num_steps, False, False
            if state.step % config.log_every == 0 or last:
                line = session.report()
                bar.update(state.step, f"loss {line['loss']:.4f} {line['atoms_per_s']:.0f} atoms/s")
                stopping = world.any(stop.signal_number is not None) and not last
            if state.step % validate_every == 0 or last:
                is_best = session.validate()
            if state.step % checkpoint_every == 0 or is_best or last or stopping:
                session.save(is_best)
            if stopping:
                break
    session.close()
    if stop.signal_number is not None and state.step < num_steps:
        raise InterruptedRunError(
            stop.signal_number,
            f"stopped at step {state.step} of {num_steps}; go on with --resume",
        )
    return state
