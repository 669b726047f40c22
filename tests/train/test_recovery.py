"""Faults of one rank: all ranks agree on what to do, and the result is the planned one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lamm.evaluate.curves import read_metrics
from lamm.train.checkpoint import read_state
from launching import torchrun
from small import small_config

HERE = Path(__file__).parent


def faulty(folder: Path, kind: str, ranks: int = 2) -> tuple[Path, subprocess.CompletedProcess]:
    to = folder / kind.replace(" ", "-")
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            sys.executable,
            *(torchrun(2) if ranks == 2 else []),
            HERE / "faults.py",
            folder,
            to,
            kind,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return to, done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``none``, in which nothing fails."""
    folder = tmp_path_factory.mktemp("faults")
    small_config(folder)  # makes the stores
    _, done = faulty(folder, "none")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def assert_same_weights(run: Path, other: Path) -> None:
    for name in ("model.safetensors", "ema.safetensors"):
        expected = load_file(other / "last" / name)
        for key, value in load_file(run / "last" / name).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "backward", "optimizer", "optimizer twice", "later"])
def test_a_mini_batch_for_which_one_rank_has_no_memory_is_redone_in_parts(home: Path, kind: str):
    run, done = faulty(home, kind)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if "out of memory" in line]
    assert lines, done.stderr
    assert all("split from now on" in line for line in lines)
    steps = {re.search(r"step (\d)", line)[1] for line in lines}
    assert steps == ({"2", "3"} if kind == "optimizer twice" else {"2"})
    budget = read_state(run / "last").budget
    assert budget is not None
    assert f"more than {budget} atoms" in lines[-1]
    assert_same_weights(run, home / "none")
    losses = [
        [line["loss"] for line in read_metrics(one) if line["kind"] == "train"]
        for one in (run, home / "none")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_structure_that_does_not_fit_alone_stops_the_run_by_name(home: Path):
    _, done = faulty(home, "stop")
    assert done.returncode != 0
    assert re.search(r"DataError: step \d+: subset 'both', structure 'both/\d+' of", done.stderr)
    assert "balance.oversized=set_aside" in done.stderr


def test_a_structure_that_does_not_fit_alone_is_set_aside_and_listed(home: Path):
    run, done = faulty(home, "alone")
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (run / "set_aside.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found["subset"] == "both"
    assert f"structure '{found['id']}' of {found['atoms']} atoms" in done.stderr
    assert read_state(run / "last").set_aside == [found]
    assert read_metrics(run)[-1]["step"] == 5


def test_a_loss_that_is_not_finite_on_one_rank_changes_nothing_on_any(home: Path):
    run, done = faulty(home, "nan")
    assert done.returncode == 0, done.stderr[-3000:]
    skipped = [line for line in done.stderr.splitlines() if "is skipped" in line]
    assert len(skipped) == 1
    assert re.search(r"step 2 is skipped: its loss is nan.*subset '\w+', structure", skipped[0])
    assert all(
        torch.isfinite(one).all() for one in load_file(run / "last/ema.safetensors").values()
    )
    steps = torch.load(run / "last" / "training.pt", weights_only=True)["state"]
    assert {float(one["step"]) for one in steps.values()} == {4.0}  # of 5


@pytest.mark.parametrize("ranks", [1, 2])
def test_too_many_skipped_steps_in_a_row_end_the_run(home: Path, ranks: int, tmp_path: Path):
    run, done = faulty(home if ranks == 2 else tmp_path, "always nan", ranks)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "3 steps in a row were skipped" in done.stderr
    first = load_file(run / "checkpoints" / "step-0" / "model.safetensors")
    assert all(torch.isfinite(one).all() for one in first.values())
