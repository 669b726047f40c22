"""Further ranks of a command on this machine: how many, and how they begin and end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.io import write

from lamm.finetune import Request
from lamm.finetune.request import ranks_by_rule
from lamm.finetune.rules import batch_size_per_rank
from lamm.finetune.run import ranks_of_run
from lamm.train import local_ranks
from lamm.train.local_ranks import processors, ranks_here
from small import SMALL_MODELS, small_structure


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", 2), ("150000 100000\n", 1), ("50000 100000", 1), ("400000 100000", 2)],
)
def test_a_containers_quota_counts(text: str, expected: int, tmp_path: Path):
    (tmp_path / "cpu.max").write_text(text)
    assert torch.get_num_threads() == 2
    assert processors(tmp_path / "cpu.max") == expected
    assert processors(tmp_path / "none") == 2


def test_a_launcher_or_a_gpu_leaves_nothing_to_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_ranks, "processors", lambda: 8)
    monkeypatch.setattr(local_ranks, "MOST", 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ranks_here("auto") == ranks_here("cpu") == 4
    assert ranks_here("cuda") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (ranks_here("auto"), ranks_here("cpu")) == (1, 4)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks_here("cpu") == 1


def test_short_runs_and_those_with_batches_of_their_own_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lamm.finetune.request.ranks_here", lambda device: 3)

    def ranks(*words: str, seconds: float | None = None) -> int:
        data, to = tmp_path / "my.xyz", tmp_path / "run"
        return ranks_by_rule(Request(data=data, to=to, words=words, max_seconds=seconds))

    assert ranks() == ranks("train.steps=200") == ranks(seconds=60.0) == 3
    assert ranks("train.steps=20") == ranks(seconds=20.0) == ranks("balance.batch_size=4") == 1


@pytest.mark.parametrize(
    ("size", "ranks", "each"), [(6, 1, 6), (6, 2, 3), (5, 2, 3), (4, 3, 1), (1, 4, 1), (32, 4, 8)]
)
def test_a_mini_batch_is_shared_out(size: int, ranks: int, each: int):
    assert batch_size_per_rank(size, ranks) == each


@pytest.mark.parametrize(("had", "here", "expected"), [(2, 4, 2), (8, 4, 4), (1, 4, 1), (2, 1, 1)])
def test_a_run_goes_on_with_the_ranks_that_it_had_if_it_can(
    had: int, here: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lamm.finetune.run.ranks_here", lambda device: here)
    config = SimpleNamespace(to=tmp_path, train=SimpleNamespace(device="auto"))
    assert ranks_of_run(config) == 1  # nothing says how many it had
    (tmp_path / "environment.json").write_text(json.dumps({"ranks": had}))
    assert ranks_of_run(config) == expected


def python(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A training from scratch on 30 structures by two ranks."""
    rng = np.random.default_rng(11)
    atoms = [small_structure(rng, f"mine/{number}").to_atoms() for number in range(30)]
    write(tmp_path / "my.extxyz", atoms, format="extxyz")
    data, model = tmp_path / "my.extxyz", json.dumps(SMALL_MODELS["painn"])
    start = ["finetune", "--from-scratch", "lamm-xs", "--data", str(data)]
    return [*start, "--to", str(tmp_path / "run"), "--ranks", "2", "--json", f"model={model}"]


def test_two_ranks_train_as_one_command(words: list[str], tmp_path: Path):
    done = python("-m", "lamm", *words, "train.steps=4", "optim.warmup_steps=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 4
    assert "planner" not in done.stderr  # of mini-batches that the rules chose
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (environment["ranks"], environment["cpu_settings"]["threads"]) == (2, 1)
    assert "workers: 0" in (tmp_path / "run" / "config.yaml").read_text()


def test_ctrl_c_ends_both_ranks_with_a_checkpoint_and_the_run_goes_on(
    words: list[str], tmp_path: Path
):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "lamm", *words, "train.steps=3000", "train.log_every=1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        metrics, until = run / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < until:
            if metrics.is_file() and len(metrics.read_bytes().splitlines()) > 8:
                break
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of the command's
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, said[-3000:]
    assert "Traceback" not in said
    assert 0 < json.loads((run / "last" / "state.json").read_text())["step"] < 3000
    config = (run / "config.yaml").read_text().replace("steps: 3000", "steps: 90")
    (run / "config.yaml").write_text(config)
    again = python("-m", "lamm", "finetune", "--resume", "--to", run, "--json", "--ranks", 2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads(again.stdout)["steps"] >= 90


def test_a_wrong_request_is_said_once(tmp_path: Path):
    words = ("--from-scratch", "lamm-xs", "--data", tmp_path / "no.xyz", "--to", tmp_path / "run")
    done = python("-m", "lamm", "finetune", *words, "--ranks", 2, "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("no such file or store") == 1
    assert not (tmp_path / "run").exists()


def test_ranks_are_not_started_by_a_rank_of_a_launcher(monkeypatch: pytest.MonkeyPatch):
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(local_ranks.ConfigError, match="Leave --ranks out"),
        local_ranks.local_ranks(2, ["models"]),
    ):
        pass


def test_the_environment_is_as_before_when_the_ranks_have_ended():
    before, threads = dict(os.environ), torch.get_num_threads()
    with local_ranks.local_ranks(2, ["--version"]):
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "2")
        assert torch.get_num_threads() == 1
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads


WAITS = """
import time
from lamm.train import local_ranks
local_ranks.GRACE = 0.5
with local_ranks.local_ranks(2, ["no-such-verb"]):
    time.sleep(120)
"""


def test_a_rank_that_dies_alone_ends_the_command_with_its_last_words():
    done = python("-c", WAITS)
    assert done.returncode == 1
    assert "rank 1 ended with status 2; the others can't go on without it." in done.stderr
    assert "No such command" in done.stderr
