"""Checkpoints: whole or not there, and refused with the reason when they don't fit."""

import json
from pathlib import Path

import pytest
import torch

from lamm.errors import CheckpointError
from lamm.files import replaced_folder
from lamm.models.potential import build
from lamm.train.checkpoint import (
    TrainState,
    load,
    load_weights,
    save_checkpoint,
    save_potential,
    saved_steps,
)
from lamm.train.ema import AveragedWeights
from lamm.train.optim import OptimConfig, build_optimizer
from small import small_config


@pytest.fixture
def saved(tmp_path: Path):
    config = small_config(tmp_path)
    model = build(config.model, ["one", "two"], seed=1)
    model.energy_scale[1] = 2.5
    optimizer = build_optimizer(model, model.encoder, OptimConfig())
    averaged = AveragedWeights(model, 0.9)
    with torch.no_grad():
        model.encoder.embedding.weight += 1
    for step in (1, 2, 3, 4):
        state = TrainState(step=step)
        save_checkpoint(tmp_path / "run", model, optimizer, averaged, state, is_best=step == 2)
    return tmp_path / "run", model, averaged


def test_loading_prefers_the_best_step_and_its_averaged_weights(saved):
    run, model, averaged = saved
    loaded = load(run)
    assert loaded.subsets == ("one", "two")
    assert loaded.energy_scale[1] == 2.5
    found = loaded.encoder.embedding.weight
    assert torch.equal(found, averaged.state_dict()["encoder.embedding.weight"])
    own = load(run, averaged=False).encoder.embedding.weight
    assert torch.equal(own, model.encoder.embedding.weight)
    assert not loaded.training


def test_old_steps_go_but_the_best_stays(saved):
    run, _, _ = saved
    assert [folder.name for folder in saved_steps(run)] == ["step-2", "step-3", "step-4"]
    assert (run / "best").resolve().name == "step-2"
    assert (run / "last").resolve().name == "step-4"


def test_weights_of_another_architecture_are_refused(saved, tmp_path: Path):
    run, _, _ = saved
    other = small_config(
        tmp_path, model={"encoder": {"name": "painn", "channels": 24, "num_layers": 2}}
    )
    with pytest.raises(CheckpointError, match="another architecture"):
        load_weights(build(other.model, ["one", "two"]), run / "last" / "model.safetensors")


def test_a_truncated_file_is_refused(saved):
    run, _, _ = saved
    path = run / "best" / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"ema.safetensors.*not a readable"):
        load(run)


def test_a_missing_checkpoint_offers_near_names(saved):
    run, _, _ = saved
    with pytest.raises(CheckpointError, match=r"no such run.*'run'"):
        load(run.parent / "runn")
    with pytest.raises(CheckpointError, match="has saved a step"):
        load(run.parent)


def test_a_later_format_is_refused(saved):
    run, _, _ = saved
    path = run / "last" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"format_version": 99}))
    from lamm.train.checkpoint import read_state

    with pytest.raises(CheckpointError, match="format_version is 99"):
        read_state(run / "last")


def test_a_failed_save_leaves_the_old_folder_and_nothing_else(tmp_path: Path):
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "old").write_text("kept")

    def fail() -> None:
        with replaced_folder(folder) as temporary:
            (temporary / "new").write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert (folder / "old").read_text() == "kept"


def test_a_potential_alone_in_a_file_loads_back(saved, tmp_path: Path):
    _, model, _ = saved
    save_potential(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
