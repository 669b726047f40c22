"""What fails on one rank ends all, with a message each, and nobody waits for the other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launching import run_python, torchrun

DAMAGED = ["DataError", "store.arrow: damaged"]


def on_two_ranks(folder: Path, case: str) -> Any:
    """Kind and words of what each rank ended with."""
    script = str(Path(__file__).with_name("one_rank_fails.py"))
    run_python([*torchrun(2), script, str(folder), case], timeout=120)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_ranks_end_together(tmp_path: Path):
    first, second = on_two_ranks(tmp_path, "direct")
    assert first["together"] == second["together"] == DAMAGED
    assert first["together, ours"] == ["BadAnswerError", "rank 1 failed: KeyError: 'lost'"]
    assert second["together, ours"] == ["KeyError", "'lost'"]
    assert (first["together, well"], second["together, well"]) == (["gives", "7"], ["gives", "8"])
    assert first["from main"] == second["from main"] == DAMAGED
    assert first["from main, well"] == second["from main, well"] == ["gives", "of rank 0"]


@pytest.mark.parametrize("case", ["costs", "save"])
def test_a_run_ends_on_all_ranks_with_the_error_of_one(tmp_path: Path, case: str):
    assert on_two_ranks(tmp_path, case) == [DAMAGED, DAMAGED]


@pytest.mark.parametrize("case", ["reading", "reading by workers", "reading, seen late"])
def test_what_one_rank_cannot_read_ends_all_in_the_same_words(tmp_path: Path, case: str):
    first, second = on_two_ranks(tmp_path, case)
    assert first == second
    assert re.fullmatch(r"step \d+: store.arrow: damaged", first[1])
    assert first[0] == "DataError"


def test_a_validation_structure_too_large_for_one_rank_is_named_on_all(tmp_path: Path):
    said = on_two_ranks(tmp_path, "validation")
    assert said[0] == said[1]
    assert said[0][0] == "DataError"
    assert "doesn't fit into the memory alone" in said[0][1]
    assert "structure '" in said[0][1]
