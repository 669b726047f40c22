"""The job scripts of ``configs/cluster``, with launchers that only say what they are given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig

SCRIPTS = Path(__file__).parents[2] / "configs" / "cluster"
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder to hand a job in from, whose launchers say their words and a variable."""
    for path in (tmp_path / "bin", tmp_path / ".venv" / "bin", tmp_path / "run"):
        path.mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    (tmp_path / "nodes").write_text("node7\nnode8\n")
    for name in ("mpirun", "srun"):
        launcher = tmp_path / "bin" / name
        launcher.write_text(f'#!/bin/bash\necho "$@ ${SHUTDOWN}"\n')
        launcher.chmod(0o755)
    return tmp_path


def said(job: Path, script: str) -> list[str]:
    """The words that the script's launcher is given, and the value of `SHUTDOWN`."""
    done = subprocess.run(
        ["bash", SCRIPTS / script],
        env={
            "PATH": f"{job / 'bin'}:{os.environ['PATH']}",
            "RUN": str(job / "run"),
            "PBS_O_WORKDIR": str(job),
            "PBS_NODEFILE": str(job / "nodes"),
            "PBS_JOBID": "42.pbs1",
            "SLURM_SUBMIT_DIR": str(job),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("script", ["pbs.sh", "pbs_mpirun.sh", "slurm.sh"])
def test_a_job_goes_on_with_a_run_that_was_killed_before_its_first_checkpoint(job, script):
    assert "--resume" not in said(job, script)
    (job / "run" / "config.yaml").touch()
    assert "--resume" in said(job, script)


def test_torchrun_gives_ranks_the_time_to_save_a_checkpoint(job, monkeypatch):
    words = said(job, "pbs.sh")
    assert words[words.index(SHUTDOWN) - 1] == "-x"
    monkeypatch.setenv(SHUTDOWN, words[-1])
    launch = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1)
    assert getattr(launch, "shutdown_timeout", 300) == 300
