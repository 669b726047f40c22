"""One step: it asks the device nothing, skips whole or not at all, and parts add up."""

from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamm.data.joint import JointDataset
from lamm.models import messages
from lamm.models.potential import Potential, build
from lamm.train.batches import Schedule
from lamm.train.distributed import World
from lamm.train.ema import AveragedWeights
from lamm.train.gradients import SharedGradients
from lamm.train.memory import is_out_of_memory
from lamm.train.optim import build_optimizer
from lamm.train.parts import cut, graph_size, select, split_batch, structure_sizes
from lamm.train.start import set_normalisation
from lamm.train.step import LOSS, NUM_NOTES, Step
from small import SMALL_MODELS, small_config, without_dropout

WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
}
"""Operators that hand a number to Python, for which the host has to wait for the device."""


class Operators(TorchDispatchMode):
    """Notes every operator that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.called.append(function)
        return function(*args, **(kwargs or {}))


def small_step(folder: Path, model_name: str = "painn", blocks: bool = True) -> tuple[Step, Any]:
    model_config = without_dropout(SMALL_MODELS[model_name])
    if not blocks and "edge_block" in model_config["encoder"]:
        model_config["encoder"]["edge_block"] = None
    config = small_config(folder, model=model_config)
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=3).train()
    set_normalisation(model, [subset.normalisation() for subset in joint.subsets])
    optimizer = build_optimizer(model, model.encoder, config.optim)
    world = World(0, 1, torch.device("cpu"))
    step = Step(model, optimizer, AveragedWeights(model, 0.9), config.recipe(), world)
    schedule = Schedule(joint, config.balance, model.graph_config, world, config.seed)
    return step, list(schedule.steps(0, 2, workers=0))


@pytest.mark.parametrize("model_name", SMALL_MODELS)
def test_forward_and_backward_away_from_the_cpu_ask_for_no_number(
    tmp_path: Path, model_name: str, monkeypatch: pytest.MonkeyPatch
):
    # A meta tensor has a shape and no numbers: whatever would make a GPU wait fails on it. On a CPU
    # the models take shortcuts of their own that look at numbers.
    # Their device knows no autocast, which is off here and which working in blocks asks about.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    step, (planned, _) = small_step(tmp_path, model_name, blocks=False)
    step.model.to("meta")
    step.gradients = SharedGradients(step.model.parameters(), step.world, num_notes=NUM_NOTES)
    loss, failed_part = step.compute(0, [planned.batch.to("meta")], planned.counts)
    assert failed_part is None
    assert all(one.grad is not None for one in step.gradients.parameters)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        loss.total.item()


def test_a_step_asks_for_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step, planned = small_step(tmp_path)
    monkeypatch.setattr(Potential, "_check_elements", lambda *_: None)  # only on a CPU, as
    monkeypatch.setattr(messages, "find_bands", lambda *_: ())  # this is
    with Operators() as operators:
        for one in planned:
            loss, failed_part = step.compute(one.step, [one.batch], one.counts)
            result, _ = step.update(one.step, 1.0, loss)
    assert failed_part is None
    assert torch.ops.aten._fused_adamw_.default in operators.called  # it does see the step
    assert WAITING.isdisjoint(operators.called)
    assert not result.read().skipped
    with Operators() as operators:
        float(loss.total)
    assert not WAITING.isdisjoint(operators.called)  # and would see a wait


def everything(step: Step) -> list[Tensor]:
    assert step.averaged is not None
    kept = [one.detach() for one in step.model.parameters()]
    kept += step.averaged.state_dict().values()
    for state in step.optimizer.state.values():
        kept += state.values()
    return [one.clone() for one in kept]


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_skipped_step_leaves_weights_moments_and_averages_as_they_were(
    tmp_path: Path, bad: str, monkeypatch: pytest.MonkeyPatch
):
    step, (first, second) = small_step(tmp_path)
    loss, _ = step.compute(0, [first.batch], first.counts)
    result, _ = step.update(0, 1.0, loss)
    assert not result.read().skipped
    before = everything(step)

    loss, _ = step.compute(1, [second.batch], second.counts)
    if bad == "loss":
        step.gradients.notes[LOSS] = float("inf")
    else:
        step.gradients.parameters[0].grad[0] = float("nan")
    result, _ = step.update(1, 1.0, loss)
    assert result.read().skipped
    assert not result.read().failed
    assert all(torch.equal(a, b) for a, b in zip(before, everything(step), strict=True))

    loss, _ = step.compute(1, [second.batch], second.counts)
    result, _ = step.update(1, 1.0, loss)
    assert not result.read().skipped
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(step), strict=True))


@pytest.mark.parametrize("model_name", SMALL_MODELS)
def test_the_gradients_of_the_parts_add_up_to_those_of_the_whole(tmp_path: Path, model_name: str):
    step, (planned, _) = small_step(tmp_path, model_name)
    step.model.double()
    batch = planned.batch.to(dtype=torch.float64)
    whole, _ = step.compute(0, [batch], planned.counts)
    expected = [one.grad.clone() for one in step.gradients.parameters]
    parts = split_batch(batch, graph_size(batch) // 3)
    assert len(parts) > 2
    assert sum(part.num_structures for part in parts) == batch.num_structures
    sums, _ = step.compute(0, parts, planned.counts)
    assert sums.total.item() == pytest.approx(whole.total.item(), abs=1e-10)
    for parameter, gradient in zip(step.gradients.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-10)


def test_a_batch_within_its_budget_is_not_touched(tmp_path: Path):
    _, (planned, _) = small_step(tmp_path)
    batch = planned.batch
    assert split_batch(batch, None) == [batch]
    assert split_batch(batch, graph_size(batch)) == [batch]
    assert sum(structure_sizes(batch)) == graph_size(batch)
    everyone = set(batch.ids.tolist())
    (empty,) = split_batch(batch, None, without=everyone)
    assert empty.num_structures == 0
    rest = split_batch(batch, None, without={int(batch.ids[0])})
    assert rest[0].ids.tolist() == batch.ids.tolist()[1:]


def test_all_structures_selected_are_the_batch(tmp_path: Path):
    _, (planned, _) = small_step(tmp_path)
    same = select(planned.batch, range(planned.batch.num_structures))
    for entry in fields(same):
        value = getattr(same, entry.name)
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(planned.batch, entry.name)), entry.name


def test_parts_hold_what_fits_and_a_large_structure_is_alone():
    assert cut([3, 3, 9, 1, 2], 6) == [[0, 1], [2], [3, 4]]
    assert cut([3, 3], None) == [[0, 1]]
    assert cut([], 6) == []


def test_only_allocators_errors_mean_out_of_memory():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("Connection closed by peer"))
    assert not is_out_of_memory(ValueError("out of memory"))
