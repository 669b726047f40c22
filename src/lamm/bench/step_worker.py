"""One rank of `lamm.bench.step`: does the steps of a plan and notes what each took."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from lamm.config import read_run_config
from lamm.data.joint import JointDataset
from lamm.files import write_json
from lamm.models.potential import build
from lamm.runtime import tune_cpu
from lamm.train.batches import PlannedStep, Schedule
from lamm.train.distributed import World, join, leave
from lamm.train.ending import run_to_the_end
from lamm.train.optim import build_optimizer
from lamm.train.start import set_normalisation
from lamm.train.step import Step, loss_of

COLUMNS = ("step", "own", "own_cpu", "others", "data", "atoms")
"""Seconds of the whole step, of this rank's forward and backward, the same by its CPU time, of
waiting for the other ranks' gradients, and for the batch; and the batch's atoms."""


def main() -> None:
    """Do the steps; rank 0 writes what all ranks noted."""
    from lamm.bench.step import warm_up_steps

    path, steps, answer = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    config = read_run_config(path)
    tune_cpu()
    world = join("cpu")
    try:
        joint = JointDataset(config.data, config.seed)
        model = build(config.model, joint.names, seed=config.seed).train()
        set_normalisation(model, [subset.normalisation() for subset in joint.subsets])
        optimizer = build_optimizer(model, model.encoder, config.optim)
        step = Step(model, optimizer, None, config.recipe(), world)
        first = warm_up_steps(steps)
        schedule = Schedule(joint, config.balance, model.graph_config, world, config.seed)
        rows = [
            _do(step, planned) for planned in schedule.steps(0, first + steps, config.train.workers)
        ]
        _write(rows[first:], answer, world)
    finally:
        leave(world)


def _do(step: Step, planned: PlannedStep) -> list[float]:
    """One step, and what `COLUMNS` say of it."""
    start, cpu = time.perf_counter(), time.thread_time()
    step.gradients.zero()
    loss = loss_of(step.model, planned.batch, planned.counts, step.recipe)
    step.gradients.backward(loss.total, is_last=True)
    own, own_cpu = time.perf_counter() - start, time.thread_time() - cpu
    waiting = time.perf_counter()
    step.gradients.finish()
    others = time.perf_counter() - waiting
    step.update(planned.step, 0.1, loss)
    whole = time.perf_counter() - start + planned.wait
    return [whole, own, own_cpu, others, planned.wait, float(len(planned.batch.atomic_numbers))]


def _write(rows: list[list[float]], answer: Path, world: World) -> None:
    everybody = torch.tensor(world.gather(rows), dtype=torch.float64)  # (ranks, steps, columns)
    if world.is_main:
        of_column = everybody.permute(2, 1, 0).tolist()
        write_json(answer, dict(zip(COLUMNS, of_column, strict=True)))


if __name__ == "__main__":
    run_to_the_end(main)
