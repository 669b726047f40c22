"""Python processes that tests start, alone or as ranks by torchrun; and how runs are stopped."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lamm.train import engine
from lamm.train.batches import PlannedStep

TESTS = Path(__file__).parent


def torchrun(ranks: int) -> list[str]:
    """The words that start a script or module on so many ranks of this host."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def run_python(arguments: list[str], timeout: float = 300) -> None:
    """Run Python with one thread and the modules of the tests; it has to end well."""
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def free_port() -> int:
    """A port of this host that nothing listens at now."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let SIGTERM arrive in the last of so many steps of a run."""
    real = engine.Recovery.do

    def do(self: engine.Recovery, planned: PlannedStep, factor: float, _signal: int) -> None:
        real(self, planned, factor, signal.SIGTERM if planned.step == step - 1 else 0)

    patch.setattr(engine.Recovery, "do", do)
