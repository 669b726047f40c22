"""Fine-tuning that goes on after a stop, within its time, and on several ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.io import write

from lamm.cli.main import run as command
from lamm.config import FinetuneConfig
from lamm.errors import DataError, InterruptedRunError
from lamm.evaluate.curves import read_metrics
from lamm.finetune import Request, config_for, finetune
from lamm.finetune import request as request_module
from lamm.finetune.request import config_on_every_rank
from lamm.train.checkpoint import load
from lamm.train.distributed import World
from lamm.train.optim import OptimConfig, learning_rate_factor
from lamm.train.pace import Pace
from lamm.train.recipe import TrainConfig
from lamm.train.run import pretrain
from launching import stop_after, torchrun
from small import small_config, small_structure

WORDS = ["train.workers=0", "train.log_every=2", "optim.warmup_steps=2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    pretrain(small_config(folder, train={"steps": 4, "workers": 0}), quiet=True)
    return folder / "run"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(11)
    structures = [small_structure(rng, f"mine/{number}") for number in range(30)]
    path = tmp_path / "my.extxyz"
    write(path, [one.to_atoms() for one in structures], format="extxyz")
    return path


def lamm(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lamm", *map(str, words)])
    try:
        command()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_timed_run_that_goes_on_keeps_the_rate_that_it_had_come_to():
    config, optim = TrainConfig(max_seconds=100), OptimConfig(warmup_steps=5)
    pace = Pace(config, steps_per_epoch=10, step=80, seconds=80.0)
    assert pace.num_steps == 100
    assert learning_rate_factor(80, pace.num_steps, optim) < 0.15
    assert Pace(config, steps_per_epoch=10, step=80, seconds=101.0).num_steps == 80
    assert Pace(config, steps_per_epoch=10, step=0, seconds=0.0).num_steps == pace.most


def stopped_in_time(
    request: Request, monkeypatch: pytest.MonkeyPatch
) -> tuple[FinetuneConfig, float]:
    """A run that stops at step 6 when all but half a second of its time is over; and its limit."""
    config = config_for(request)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(InterruptedRunError, match="step 6 of"):
            finetune(config, quiet=True)
    limit = yaml.safe_load((request.to / "config.yaml").read_text())["train"]["max_seconds"]
    assert 300 < limit < 400
    state = request.to / "last" / "state.json"
    saved = json.loads(state.read_text())
    assert 0 < saved["seconds"] < 60
    state.write_text(json.dumps(saved | {"seconds": limit - 0.5}))
    return config, limit


def test_the_time_before_the_stop_counts_after_it(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    to = tmp_path / "run"
    request = Request(data=data, to=to, base=base, max_seconds=400.0, words=WORDS)
    _, limit = stopped_in_time(request, monkeypatch)
    assert lamm(monkeypatch, "finetune", "--resume", "--to", to, "--json") == 0
    assert (to / "card.md").is_file()
    lines = read_metrics(to)
    assert limit - 0.5 < lines[-1]["seconds"] < limit + 60  # else it would take minutes
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates[-1] < 0.5 * rates[0]


def test_a_timed_run_that_torchrun_starts_again_goes_on(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one launch")
    to = tmp_path / "run"
    request = Request(data=data, to=to, base=base, max_seconds=400.0, words=WORDS)
    config, limit = stopped_in_time(request, monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert config_on_every_rank(request).train.max_seconds == limit
    assert config.train.max_seconds >= limit  # as a configuration file still says
    state = finetune(config, quiet=True)
    assert 6 < state.step < 20
    assert state.seconds < limit + 60


def test_a_run_that_goes_on_has_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("finetune", "--resume", "--to", tmp_path, "--max-time", "10m", "--lora", 4)
    assert lamm(monkeypatch, *words) == 2
    assert "keeps its settings; leave out --lora --max-time" in capsys.readouterr().err
    assert lamm(monkeypatch, "finetune", "--resume", "--to", tmp_path) == 2
    assert "no run to resume" in capsys.readouterr().err


def on_two_ranks(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *torchrun(2), "-m", "lamm", "finetune", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_ranks_prepare_the_data_once_and_train_together(base: Path, data: Path, tmp_path: Path):
    to = tmp_path / "run"
    source = ("--from", base, "--data", data, "--to", to)
    limits = ("--max-time", "200s", "train.steps=3", "train.log_every=1", "train.workers=0")
    done = on_two_ranks(*source, "--lora", 2, *limits, "optim.warmup_steps=1", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 3
    assert json.loads((to / "environment.json").read_text())["ranks"] == 2
    card = json.loads((to / "card.json").read_text())
    assert sum(card["data"][0]["splits"].values()) == 30
    per_rank = yaml.safe_load((to / "config.yaml").read_text())["balance"]["batch_size"]
    assert card["training"]["batch_size"] == 2 * per_rank
    assert load(to).subsets == ("my",)


def test_what_rank_0_finds_wrong_ends_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Second(World):
        def gather(self, mine):
            assert mine is None
            return [DataError("what rank 0 found"), mine]

    second = Second(1, 2, torch.device("cpu"))
    monkeypatch.setattr(request_module, "join", lambda device: second)
    with pytest.raises(DataError, match="what rank 0 found"):
        config_on_every_rank(Request(data=tmp_path / "my.xyz", to=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
