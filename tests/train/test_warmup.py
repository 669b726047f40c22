"""The step before the first: it finds what fits and changes nothing that is trained."""

from pathlib import Path

import pytest
import torch

from lamm.data.joint import JointDataset
from lamm.data.loader import PlannedBatches
from lamm.models.potential import build
from lamm.train.batches import Schedule
from lamm.train.checkpoint import TrainState, read_state
from lamm.train.distributed import World
from lamm.train.optim import build_optimizer
from lamm.train.parts import graph_size, structure_sizes
from lamm.train.run import pretrain
from lamm.train.step import Step
from lamm.train.warmup import warm_up
from small import small_config

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def ready(tmp_path: Path) -> tuple[Step, Schedule]:
    config = small_config(tmp_path, balance={"batch_size": 6})
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=0)
    optimizer = build_optimizer(model, model.encoder, config.optim)
    schedule = Schedule(joint, config.balance, model.graph_config, ALONE, config.seed)
    return Step(model, optimizer, None, config.recipe(), ALONE), schedule


def memory_for(step: Step, limit: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let batches above `limit` atoms and edges run out of memory; gives the sizes tried."""
    loss, tried = step.loss, []

    def limited(batch, counts):
        tried.append(graph_size(batch))
        if tried[-1] > limit:
            raise RuntimeError("CUDA out of memory")
        return loss(batch, counts)

    monkeypatch.setattr(step, "loss", limited)
    return tried


def test_weights_are_the_same_bits_with_and_without(tmp_path: Path):
    found = []
    for name, warm in (("with", True), ("without", False)):
        config = small_config(
            tmp_path, balance={"batch_size": 6, "warm_up": warm}, train={"steps": 3, "workers": 0}
        )
        run = config.model_copy(update={"to": tmp_path / name})
        pretrain(run, quiet=True)
        found.append((run.to / "last" / "model.safetensors").read_bytes())
        assert read_state(run.to / "last").budget is None
    assert found[0] == found[1]


def test_the_largest_planned_load_is_tried(ready, monkeypatch: pytest.MonkeyPatch):
    step, schedule = ready
    tried = memory_for(step, 10**9, monkeypatch)
    warm_up(step, schedule, TrainState())
    planned = [one.batch for one in schedule.steps(0, schedule.steps_per_epoch, workers=0)]
    index = schedule.index
    loads = [int(index.cost[index.find(batch.ids.numpy())].sum()) for batch in planned]
    assert tried == [graph_size(planned[loads.index(max(loads))])]
    gradients = [parameter.grad for parameter in step.model.parameters()]
    assert not any(one is not None and one.any() for one in gradients)


def test_what_does_not_fit_is_tried_in_smaller_parts(ready, monkeypatch, caplog):
    step, schedule = ready
    state = TrainState()
    batch = PlannedBatches(schedule.joint, schedule.graph_config)[schedule.largest_part(0)]
    limit = graph_size(batch) // 2
    tried = memory_for(step, limit, monkeypatch)
    warm_up(step, schedule, state)
    assert tried[0] > limit >= tried[-1]
    assert tried == sorted(tried, reverse=True)
    assert state.budget is not None
    assert state.budget >= 0.8 * limit
    assert "warm-up: out of memory" in caplog.text


def test_structures_that_do_not_fit_alone_are_left_to_the_run(ready, monkeypatch, caplog):
    step, schedule = ready
    tried = memory_for(step, 0, monkeypatch)
    warm_up(step, schedule, TrainState())
    assert "with a structure alone" in caplog.text
    assert len(tried) < 40


def test_structures_that_were_set_aside_are_left_out(ready, monkeypatch):
    step, schedule = ready
    batch = PlannedBatches(schedule.joint, schedule.graph_config)[schedule.largest_part(0)]
    sizes = structure_sizes(batch)
    number = sizes.index(max(sizes))
    state = TrainState(set_aside=[{"joint_id": int(batch.ids[number])}])
    tried = memory_for(step, graph_size(batch) - 1, monkeypatch)
    warm_up(step, schedule, state)
    assert tried == [graph_size(batch) - sizes[number]]
    assert state.budget is None
