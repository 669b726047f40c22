"""Ctrl-C and SIGTERM: a checkpoint is saved, the exit status says so, and the run can go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lamm.evaluate.curves import read_metrics
from small import small_config


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_of_a_run_saves_a_checkpoint(
    tmp_path: Path, number: signal.Signals, status: int
):
    train = {"steps": 100_000, "workers": 1, "log_every": 10_000, "validate_every": 50_000}
    config = small_config(tmp_path, train=train)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    process = subprocess.Popen(
        [sys.executable, "-m", "lamm", "pretrain", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (config.to / "last").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1.0)  # some steps, and many more to the next report
    os.killpg(process.pid, number)  # the workers get it too, as from a terminal or a queue
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "go on with --resume" in said
    step = int((config.to / "last").resolve().name.removeprefix("step-"))
    assert 0 < step < 10_000
    assert read_metrics(config.to)[-1]["step"] == step
