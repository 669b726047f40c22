"""Every kind of model through the whole product: pre-train, fine-tune, resume, and use."""

import json
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from safetensors.torch import load_file

from lamm.cli.main import run
from lamm.config import FinetuneConfig
from lamm.demo.config import read_demo_config
from lamm.errors import CheckpointError, InterruptedRunError
from lamm.finetune import check_architecture, finetune
from lamm.models import ModelConfig, build
from lamm.models.presets import PRESETS
from lamm.train import engine
from lamm.train.checkpoint import load
from lamm.train.run import pretrain
from small import SMALL_MODELS, small_config, small_store

SHORT = {"steps": 6, "workers": 0, "log_every": 2, "validate_every": 3}


@pytest.fixture(scope="module", params=SMALL_MODELS)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short pre-training in ``run``, and another data set in ``downstream``."""
    folder = tmp_path_factory.mktemp(request.param)
    pretrain(small_config(folder, model=SMALL_MODELS[request.param], train=SHORT), quiet=True)
    small_store(folder / "downstream", count=24, seed=5)
    return folder


def finetuning(home: Path, to: Path, **changes: Any) -> FinetuneConfig:
    mapping = {
        "to": to,
        "base": home / "run",
        "data": {"subsets": {"new": {"store": str(home / "downstream")}}, "val_fraction": 0.2},
        "optim": {"lr": 1e-3, "warmup_steps": 1, "ema_decay": 0.9},
        "balance": {"batch_size": 6},
        "train": SHORT,
    }
    return FinetuneConfig.model_validate(mapping | changes)


def test_fine_tuning_resumes_to_the_same_bits(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finetune(finetuning(home, tmp_path / "whole"), quiet=True)
    halves = finetuning(home, tmp_path / "halves")
    with monkeypatch.context() as patch:
        reports = iter([0, 15])  # the ranks notice the signal after step 4
        patch.setattr(engine.World, "largest", lambda world, number: next(reports))
        with pytest.raises(InterruptedRunError, match="step 4 of 6"):
            finetune(halves, quiet=True)
    finetune(halves, quiet=True, resume=True)
    for name in ("model.safetensors", "ema.safetensors"):
        expected = load_file(tmp_path / "whole" / "last" / name)
        for key, value in load_file(halves.to / "last" / name).items():
            assert torch.equal(value, expected[key]), key


def test_fine_tuning_starts_from_the_encoder_of_its_base(home: Path, tmp_path: Path):
    config = finetuning(home, tmp_path / "tuned")
    finetune(
        config.model_copy(update={"train": config.train.model_copy(update={"steps": 1})}),
        quiet=True,
    )
    base = load(home / "run")
    moved = load(config.to).encoder.state_dict()
    for name, weight in base.encoder.state_dict().items():
        assert torch.allclose(moved[name], weight, rtol=0, atol=2e-3), name


def lamm(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lamm", *map(str, words)])
    try:
        run()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize(
    "words",
    [
        ("predict",),
        ("relax", "--steps", 2, "--fmax", 1e3),
        ("md", "--steps", 2, "--temperature", 10),
    ],
    ids=lambda words: words[0],
)
def test_a_checkpoint_serves_every_verb(
    words: tuple[Any, ...], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ase.io.write(tmp_path / "in.xyz", molecule("H2O"))
    verb, *options = words
    to = tmp_path / "out.extxyz"
    place = (home / "run", tmp_path / "in.xyz", "--to", to, "--head", "both")
    assert lamm(monkeypatch, verb, *place, *options) == 0
    written = ase.io.read(to, -1)
    assert np.isfinite(written.get_potential_energy())
    assert np.isfinite(written.get_forces()).all()


def test_a_checkpoint_is_evaluated_and_described(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    store = home / "downstream"
    words = ("evaluate", home / "run", store, "--head", "both", "--split", "all", "--json")
    assert lamm(monkeypatch, *words) == 0
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert errors["structures"] == 24
    assert np.isfinite(errors["forces_mae_mev_per_ang"])
    assert lamm(monkeypatch, "models", home / "run", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["parameters"] == load(home / "run").num_parameters


def test_working_in_larger_blocks_is_no_other_architecture():
    encoder = SMALL_MODELS["equiformer_v2"]["encoder"]
    base = build({"encoder": encoder}, ["one"], seed=0)
    check_architecture(base, ModelConfig.model_validate({"encoder": {**encoder, "edge_block": 7}}))
    other = ModelConfig.model_validate({"encoder": {**encoder, "edge_block": 7, "m_max": 2}})
    with pytest.raises(CheckpointError, match=r"m_max is 1, expected 2\.") as refused:
        check_architecture(base, other)
    assert "edge_block" not in str(refused.value)


@pytest.mark.parametrize("name", ["lamm-xs", "lamm-xs-eq"])
def test_the_demonstration_takes_a_presets_own_lengths_and_the_users_before_them(
    name: str, tmp_path: Path
):
    config = read_demo_config(model=name)
    assert config.model == PRESETS[name]
    assert config.data == read_demo_config().data
    changes = tmp_path / "changes.yaml"
    changes.write_text("pretrain: {train: {steps: 33}, optim: {warmup_steps: 3}}\n")
    changed = read_demo_config(changes, name)
    assert changed.pretrain.train.steps == 33
    assert changed.pretrain.optim.lr == config.pretrain.optim.lr
    assert changed.finetune == config.finetune


def test_both_counts_of_parameters_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert lamm(monkeypatch, "models", "lamm-l") == 0
    said = capsys.readouterr().out
    assert "31,145,492 with 10 outputs" in said
    assert "33,801,719 with the constants" in said
    assert "as the paper counts" in said
