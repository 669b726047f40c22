"""Two processes give the losses, the gradients and the validation of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lamm.evaluate.curves import read_metrics
from small import SMALL_MODELS, small_config

HERE = Path(__file__).parent
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(arguments: list[str]) -> None:
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("model", SMALL_MODELS)
def test_two_ranks_give_the_loss_and_the_gradients_of_one(tmp_path: Path, model: str):
    small_config(tmp_path)  # makes the stores
    script = str(HERE / "ranks.py")
    run([script, str(tmp_path), str(tmp_path / "one.pt"), "8", model])
    run([*LAUNCH, script, str(tmp_path), str(tmp_path / "two.pt"), "4", model])
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    for alone, together in zip(one, two, strict=True):
        assert alone["structures"] == together["structures"]
        assert together["mine"] < alone["mine"] or alone["mine"] == 1  # one rank has nothing then
        assert together["loss"].item() == pytest.approx(alone["loss"].item(), abs=1e-10)
        for expected, found in zip(alone["gradients"], together["gradients"], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_command_runs_on_two_ranks_and_resumes_there(tmp_path: Path):
    config = small_config(tmp_path, balance={"batch_size": 4})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run([*LAUNCH, "-m", "lamm", "pretrain", str(path), "train.steps=6"])
    lines = read_metrics(config.to)
    assert lines[-1]["step"] == 6
    alone = tmp_path / "alone"
    words = ["train.steps=6", "balance.batch_size=8", f"to={alone}"]
    run(["-m", "lamm", "pretrain", str(path), *words])
    for together, single in zip(lines, read_metrics(alone), strict=True):
        assert together["loss"] == pytest.approx(single["loss"], rel=1e-4)
