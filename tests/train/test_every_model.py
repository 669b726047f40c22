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
from lamm.train.checkpoint import load
from lamm.train.run import pretrain
from launching import stop_after
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


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}}], ids=["all", "lora"])
def test_fine_tuning_resumes_to_the_same_bits(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
):
    finetune(finetuning(home, tmp_path / "whole", **changes), quiet=True)
    halves = finetuning(home, tmp_path / "halves", **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(InterruptedRunError, match="step 4 of 6"):
            finetune(halves, quiet=True)
    finetune(halves, quiet=True, resume=True)
    for name in ("model.safetensors", "ema.safetensors"):
        expected = load_file(tmp_path / "whole" / "last" / name)
        assert not any("adapter" in key for key in expected)
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


def test_adapters_are_trained_in_place_of_the_encoder_and_end_in_its_weights(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = finetuning(home, tmp_path / "tuned", lora={"rank": 2})
    with caplog.at_level("INFO", logger="lamm"):
        finetune(config, quiet=True)
    base, last = load(home / "run"), load(config.to / "last", averaged=False)
    assert last.adapters is None
    adapters = load_file(config.to / "last" / "adapters.safetensors")
    before, after = base.encoder.state_dict(), last.encoder.state_dict()
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert len(changed) > 10
    for name, weight in before.items():
        key = "adapters.of." + name.replace(".", "/")
        if f"{key}.b" not in adapters:
            assert torch.equal(weight, after[name]), name
            continue
        assert torch.equal(weight, adapters[f"encoder.{name}"])
        product = adapters[f"{key}.b"] @ adapters[f"{key}.a"]
        torch.testing.assert_close(after[name] - weight, 2 * product, rtol=0, atol=1e-6)

    optimizer = torch.load(config.to / "last" / "training.pt", weights_only=True)
    kept = sum(state["exp_avg"].numel() for state in optimizer["state"].values())
    heads = sum(weight.numel() for _, weight in last.head_parameters())
    small = sum(t.numel() for key, t in adapters.items() if key.startswith("adapters."))
    assert kept == heads + small
    assert f"{kept:,} of {last.num_parameters:,} parameters are trained" in caplog.text
    card = json.loads((config.to / "card.json").read_text())
    assert card["training"]["trained_parameters"] == kept
    assert card["training"]["lora"]["rank"] == 2
    assert "LoRA) of rank 2" in (config.to / "card.md").read_text()
    assert "LoRA) of rank 2" in (config.to / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "frozen"}, "`encoder` says: frozen"),
        ({"optim": {"layer_decay": 0.7}}, "leave out `optim.encoder_lr_factor`"),
        ({"base": None, "model": SMALL_MODELS["painn"]}, "need a checkpoint in `base`"),
        ({"lora": {"rank": 0}}, "rank"),
    ],
)
def test_adapters_that_cannot_be_are_refused(changes: dict[str, Any], message: str):
    data = {"subsets": {"new": {"store": "new"}}}
    mapping = {"to": "run", "base": "base", "lora": {"rank": 2}, "data": data}
    mapping |= {"train": {"steps": 500}}
    with pytest.raises(ValueError, match=message):
        FinetuneConfig.model_validate(mapping | changes)


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
