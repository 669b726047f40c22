"""The schedule: plans stream by windows, and only those that the run comes to are made."""

import os
import subprocess
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from lamm.balance import planners
from lamm.balance.plan import plan_epoch
from lamm.data.joint import JointDataset
from lamm.models.potential import build
from lamm.train.batches import Schedule
from lamm.train.distributed import World, join
from small import small_config


def schedule_of(folder: Path) -> Schedule:
    config = small_config(folder, balance={"batch_size": 4, "planner": "greedy"})
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=3)
    world: World = join("cpu")
    return Schedule(joint, config.balance, model.graph_config, world, config.seed)


@pytest.fixture
def schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Schedule:
    """Windows of two steps."""
    monkeypatch.setattr(planners, "_STEPS_AT_ONCE", 2)
    return schedule_of(tmp_path)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many structures each window had that was planned."""
    sizes: list[int] = []
    rank_window = planners.rank_window

    def noted(pairs, entries, *others):
        sizes.append(len(entries))
        return rank_window(pairs, entries, *others)

    monkeypatch.setattr(planners, "rank_window", noted)
    return sizes


def test_steps_are_those_of_the_plans_of_the_epochs(schedule: Schedule):
    count = schedule.steps_per_epoch
    assert count > 4
    seen = list(schedule.steps(1, 2 * count, workers=0))
    assert [one.step for one in seen] == list(range(1, 2 * count))
    for one in seen:
        epoch, step = divmod(one.step, count)
        plan = plan_epoch(
            schedule.index,
            schedule.joint.config.sampling,
            seed=schedule.seed,
            epoch=epoch,
            ranks=1,
            batch_size=4,
            planner="greedy",
        )
        assert one.batch.ids.tolist() == plan.ids[plan.part(step, 0)].tolist()
        assert one.counts == (plan.num_energy[step], plan.num_forces[step])
        assert one.structures == np.diff(plan.step_rank_offsets)[step]


def test_the_number_of_steps_needs_no_plan(planned: list[int], schedule: Schedule):
    assert schedule.steps_per_epoch > 4
    assert planned == []


def test_a_run_plans_the_window_that_it_starts_in_and_none_before(
    planned: list[int], schedule: Schedule
):
    last = schedule.steps_per_epoch
    assert len(list(schedule.steps(last - 1, last, workers=0))) == 1
    assert len(planned) == 1


def test_no_steps_are_left_of_a_run_that_is_done(planned: list[int], schedule: Schedule):
    assert list(schedule.steps(5, 5, workers=0)) == []
    assert planned == []


def test_the_same_worker_processes_prepare_windows_and_epochs(
    monkeypatch: pytest.MonkeyPatch, schedule: Schedule
):
    started: list[int] = []
    start = BaseProcess.start

    def noted(process: BaseProcess) -> None:
        started.append(threading.active_count())
        start(process)

    monkeypatch.setattr(BaseProcess, "start", noted)
    threads = threading.active_count()
    count = 2 * schedule.steps_per_epoch
    alone = [one.batch.ids.tolist() for one in schedule.steps(0, count, workers=0)]
    assert [one.batch.ids.tolist() for one in schedule.steps(0, count, workers=2)] == alone
    assert started == [threads, threads], "workers are forked once, while no thread plans"


def test_batches_that_nobody_takes_to_the_end_keep_no_process_alive(tmp_path: Path):
    small_config(tmp_path)
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_batches import schedule_of\n"
        "steps = schedule_of(Path(sys.argv[2])).steps(0, 40, workers=2)\n"
        "next(steps)\n"
        "print('leaving')\n"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(here), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "leaving\n", done.stderr
    assert done.returncode == 0
