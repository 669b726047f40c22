import json
from pathlib import Path

import numpy as np
import pytest

from lamm.errors import ConfigError, DataError
from lamm.evaluate.curves import (
    learning_curve,
    moving_average,
    read_metrics,
    running_minimum,
    steps_to_threshold,
    train_series,
    validation_series,
)

LINES = [
    {"kind": "validation", "step": 0, "loss": 3.0, "subsets": {"a": {"structures": 2}}},
    {"kind": "train", "step": 10, "loss": 2.0, "lr": 1e-3},
    {
        "kind": "validation",
        "step": 10,
        "loss": 1.0,
        "subsets": {"a": {"structures": 2, "energy_mae_mev_per_atom": 20.0}},
    },
]


def run_folder(path: Path, *endings: str) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in LINES) + "".join(endings)
    (path / "metrics.jsonl").write_text(text)
    return path


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    assert read_metrics(run_folder(tmp_path, '{"kind": "train", "st')) == LINES


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "{oops\n", json.dumps(LINES[1]) + "\n")
    with pytest.raises(DataError, match="line 4"):
        read_metrics(folder)


def test_a_missing_run_and_a_folder_without_metrics_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run"):
        read_metrics(tmp_path / "nothing")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ConfigError, match=r"readme\.txt"):
        read_metrics(tmp_path)


def test_series_leave_out_what_a_line_lacks() -> None:
    validation = validation_series(LINES)
    assert validation["a"]["energy_mae_mev_per_atom"].steps.tolist() == [10]
    assert "structures" not in validation["a"]
    assert train_series(LINES, "loss").values.tolist() == [2.0]
    assert train_series(LINES, "nothing").steps.size == 0


def test_a_learning_curve_needs_a_subset_that_is_there() -> None:
    curve = learning_curve("run", LINES)
    assert curve.energy is not None
    assert curve.forces is None
    with pytest.raises(ConfigError, match="'b'"):
        learning_curve("run", LINES, "b")


def test_steps_to_threshold_by_hand() -> None:
    steps, values = [0, 100, 200, 300], [40.0, 30.0, 20.0, 25.0]
    assert steps_to_threshold(steps, values, 25.0) == 150.0
    assert steps_to_threshold(steps, values, 20.0) == 200.0
    assert steps_to_threshold(steps, values, 50.0) == 0.0
    assert steps_to_threshold(steps, values, 19.9) is None
    assert steps_to_threshold(steps, [np.nan, 30.0, np.nan, 20.0], 25.0) == 200.0
    assert steps_to_threshold([], [], 1.0) is None


def test_smoothing_keeps_a_straight_middle_and_the_length() -> None:
    line = np.arange(50.0)
    smooth = moving_average(line, 5)
    np.testing.assert_allclose(smooth[2:-2], line[2:-2], rtol=0, atol=1e-12)
    assert smooth[0] == 1.0  # of 0, 1, 2
    assert moving_average([], 5).shape == (0,)
    np.testing.assert_array_equal(moving_average(line, 1), line)


def test_the_running_minimum_never_rises() -> None:
    assert running_minimum([3.0, np.nan, 4.0, 1.0, 2.0]).tolist() == [3, 3, 3, 1, 1]
