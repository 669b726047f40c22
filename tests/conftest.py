"""Shared set-up: array shapes checked at every call, two threads, and where optional data lies."""

import os
from pathlib import Path

# Threads that wait sleep after a short while, so that tests beside another process stay quick; read
# once, when PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from jaxtyping import install_import_hook

# Before any module of the package is imported: the array shapes in the signatures of data, loss and
# planner become checks.
install_import_hook(
    [
        "lamm.balance",
        "lamm.data.denoising",
        "lamm.data.references",
        "lamm.data.sampling",
        "lamm.data.splits",
        "lamm.data.store",
        "lamm.evaluate.metrics",
        "lamm.graph",
        "lamm.loss",
    ],
    "beartype.beartype",
)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in the test's process start no others: it would end as a rank does."""
    monkeypatch.setattr("lamm.train.local_ranks.MOST", 1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250608)


@pytest.fixture(scope="session")
def shared() -> Path:
    """A folder of oracle fixtures and genuine data that the project doesn't ship."""
    path = Path(os.environ.get("LAMM_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"needs the folder of fixtures at {path.name}/ (set LAMM_SHARED)")
    return path
