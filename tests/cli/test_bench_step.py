"""`lamm bench step`: real processes, planned and measured imbalance."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from lamm.bench.step import bench_step
from lamm.cli.main import app
from lamm.errors import ConfigError
from small import small_config


def test_two_ranks_are_measured_beside_their_plan(tmp_path):
    config = small_config(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    words = ["bench", "step", str(path), "--steps", "4", "--rounds", "1", "--workers", "0"]
    result = CliRunner().invoke(app, [*words, "--planner", "random,balanced", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["planners"]
    assert list(found) == ["random", "balanced"]
    for one in found.values():
        assert 1 <= one["planned_imbalance"] <= 2
        assert 1 <= one["measured_imbalance_cpu"]["median"] <= 2
        assert 0 < one["waiting_for_ranks"]["median"] < 1
        assert one["atoms_per_s"]["median"] > 0
    assert not config.to.exists()


def test_what_cannot_be_measured_is_one_error(tmp_path):
    config = small_config(tmp_path)
    with pytest.raises(ConfigError, match="unknown planner 'evenly'"):
        bench_step(config, planners=["evenly"])
    budget = config.balance.__class__(memory="1GiB")
    with pytest.raises(ConfigError, match=r"Give `balance\.batch_size`"):
        bench_step(config.model_copy(update={"balance": budget}))
