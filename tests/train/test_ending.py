"""The end of a process that is one of several ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamm.train.ending import run_to_the_end
from launching import TESTS, free_port

SCRIPT = Path(__file__).parent / "ends.py"
PATHS = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])


def end(how: str, folder: Path, ranks: int = 2) -> list[tuple[int, str, str, list[str]]]:
    """Status, what was printed and said, and the notes of each rank."""
    port = str(free_port())
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, how, folder],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    notes = [(folder / str(rank)).read_text().splitlines() for rank in range(ranks)]
    ends = zip(processes, said, notes, strict=True)
    return [(process.returncode, *words, lines) for process, words, lines in ends]


@pytest.mark.parametrize(
    ("how", "status", "error"),
    [
        ("well", 0, ""),
        ("status", 3, ""),
        ("words", 1, "no such thing\n"),
        ("fault", 1, "KeyError: 'lost'\n"),
    ],
)
def test_a_rank_does_all_that_is_due_and_is_not_taken_down(how, status, error, tmp_path):
    for code, printed, said, notes in end(how, tmp_path):
        assert (code, printed) == (status, "said"), said
        assert said.endswith(error)
        assert notes == ["written", "atexit"]


@pytest.mark.parametrize("how", ["plain", "well"])
def test_a_process_alone_is_taken_down(how, tmp_path):
    for code, printed, _, notes in end(how, tmp_path, ranks=1):
        assert (code, printed) == (0, "said")
        assert notes == ["written", "atexit", "taken down"]


def test_a_process_alone_ends_as_its_verb_does():
    with pytest.raises(SystemExit, match="3"):
        run_to_the_end(lambda: sys.exit(3))
    with pytest.raises(ZeroDivisionError):
        run_to_the_end(lambda: 1 / 0)  # type: ignore[arg-type]
    run_to_the_end(lambda: None)
