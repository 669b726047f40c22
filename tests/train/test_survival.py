"""Runs on two ranks that are killed, lose a rank, or go on with another number of ranks."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lamm.evaluate.curves import read_metrics
from lamm.train.checkpoint import read_state
from launching import torchrun
from small import small_config

NOTED = Path(__file__).parent / "noted.py"
TRAIN = {"workers": 0, "log_every": 1, "validate_every": 20, "checkpoint_every": 2}


def configuration(folder: Path, steps: int) -> Path:
    config = small_config(
        folder, balance={"batch_size": 4}, train={**TRAIN, "steps": steps, "workers": 1}
    )
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def launch(
    config: Path, to: Path, *words: str, ranks: int = 2, restarts: int = 0
) -> subprocess.Popen:
    """Start a run in a process group of its own, with the process ids in the folder's ``pids``."""
    pids = to.with_name(to.name + "-pids")
    shutil.rmtree(pids, ignore_errors=True)
    pids.mkdir()
    launcher = [*torchrun(ranks), "--max-restarts", str(restarts)]
    command = [str(NOTED), str(pids), "pretrain", str(config), f"to={to}", *words]
    return subprocess.Popen(
        [sys.executable, *(launcher if ranks > 1 else []), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def wait_for(process: subprocess.Popen, condition) -> bool:
    """Wait until it holds; False where the process ended before."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


def descendants(pid: int) -> list[int]:
    """A process, its children and theirs: the ranks have process groups of their own."""
    parent = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:  # it has ended
            continue
    found = [pid]
    for one in found:
        found += [child for child, its_parent in parent.items() if its_parent == one]
    return found


def kill_group(process: subprocess.Popen) -> None:
    """SIGKILL the launcher, its ranks and their loaders at one instant."""
    os.kill(process.pid, signal.SIGSTOP)  # so that it starts nothing meanwhile
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGSTOP)
    for pid in reversed(descendants(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)


def assert_same_bits(run: Path, expected: Path) -> None:
    for name in ("model.safetensors", "ema.safetensors"):
        files = [folder / "last" / name for folder in (run, expected)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    assert [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".")] == []


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def grown(path: Path, since: int, by: int) -> bool:
    """Whether a file was written since a time, and has got so many lines more than it then had."""
    if not path.exists() or path.stat().st_mtime_ns <= since:
        return False
    first = grown.lines.setdefault((path, since), lines_in(path))
    return lines_in(path) >= first + by


grown.lines = {}


def survive(config: Path, to: Path, kills: int, seed: int) -> None:
    """Kill a run so many times, a quarter of them while it starts, and let it end.

    The others come within the first dozen of steps, so that the run's length needn't fit the
    machine; steps and checkpoints take about as long as the last bit of the wait.
    """
    rng = random.Random(seed)
    metrics = to / "metrics.jsonl"
    for number in range(kills):
        words = ["--resume"] if (to / "config.yaml").exists() else []
        since = metrics.stat().st_mtime_ns if metrics.exists() else 0
        process = launch(config, to, *words)
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, 6))
        else:
            assert wait_for(process, partial(grown, metrics, since, rng.randint(0, 8))), number
        time.sleep(rng.uniform(0, 0.15))
        assert process.poll() is None, f"the run ended before kill {number + 1}"
        kill_group(process)
    finish(launch(config, to, "--resume"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration, and its run on two ranks without any interruption."""
    folder = tmp_path_factory.mktemp("survival")
    config = configuration(folder, steps=60)
    finish(launch(config, folder / "whole"))
    return config, folder / "whole"


def test_a_run_that_is_killed_twice_ends_with_the_same_bits(whole, tmp_path: Path):
    config, expected = whole
    survive(config, tmp_path / "killed", kills=2, seed=3)
    assert_same_bits(tmp_path / "killed", expected)


def test_torchrun_restarts_a_run_by_itself_after_a_rank_died(whole, tmp_path: Path):
    config, expected = whole
    run = tmp_path / "restarted"
    process = launch(config, run, restarts=1)
    victim = tmp_path / "restarted-pids" / "pid-0-1"
    assert wait_for(process, lambda: (run / "last").exists() and victim.exists())
    time.sleep(0.5)
    os.kill(int(victim.read_text()), signal.SIGKILL)
    said = finish(process)
    assert "going on with the run" in said
    assert_same_bits(run, expected)


def test_a_signal_to_one_rank_stops_both_and_one_or_four_go_on(whole, tmp_path: Path):
    config, expected = whole
    run = tmp_path / "stopped"
    process = launch(config, run)
    victim = tmp_path / "stopped-pids" / "pid-0-1"
    metrics = run / "metrics.jsonl"
    assert wait_for(process, lambda: metrics.exists() and '"train"' in metrics.read_text())
    os.kill(int(victim.read_text()), signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "go on with --resume" in said
    state = read_state(run / "last")
    assert 0 < state.step < 60
    assert read_metrics(run)[-1]["step"] == state.step  # the checkpoint is of the latest step
    assert state.mini_batch_size == 8
    weights = load_file(expected / "last" / "model.safetensors")
    for ranks in (1, 4):
        other = tmp_path / f"on-{ranks}"
        shutil.copytree(run, other, symlinks=True)
        said = finish(launch(config, other, "--resume", ranks=ranks))
        assert "mini-batches keep the 8 structures" in said
        assert read_state(other / "last").cursor == read_state(expected / "last").cursor
        # Other ranks add up the same structures in another order: rounding is all that differs.
        for name, value in load_file(other / "last" / "model.safetensors").items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=2e-2, msg=name)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path):
    config = configuration(tmp_path, steps=2500)
    finish(launch(config, tmp_path / "whole"))
    survive(config, tmp_path / "killed", kills=20, seed=int(time.time()))
    assert_same_bits(tmp_path / "killed", tmp_path / "whole")
