"""`lamm bench step`: real processes, planned and measured imbalance."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from lamm.bench.step import bench_step, fitted_costs, simulated
from lamm.cli.main import app
from lamm.data.joint import JointDataset
from lamm.errors import ConfigError
from lamm.models.potential import build
from lamm.train.costs import save_costs
from small import small_config


def test_two_ranks_are_measured_beside_their_plan(tmp_path):
    config = small_config(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    words = ["bench", "step", str(path), "--steps", "4", "--rounds", "1", "--workers", "1"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    result = json.loads(result.stdout)
    assert 0 <= result["settings"]["edge_share"] <= 1
    assert result["settings"]["seconds"]["base"] >= 0
    found = result["planners"]
    assert list(found) == ["random", "greedy", "paper", "balanced"]
    for one in found.values():
        assert 1 <= one["planned_imbalance"] <= 2
        assert 1 <= one["simulated_imbalance"] <= one["planned_imbalance"] + 0.2
        share = one["simulated_waiting"]
        assert share == pytest.approx(1 - 1 / one["simulated_imbalance"])
        assert 1 <= one["measured_imbalance_cpu"]["median"] <= 2
        assert 0 < one["waiting_for_ranks"]["median"] < 1
        assert 0 < one["waiting_for_data"]["median"] < 1
        assert one["atoms_per_s"]["median"] > 0
    assert found["balanced"]["planned_imbalance"] < found["random"]["planned_imbalance"]
    assert not config.to.exists()


def test_what_cannot_be_measured_is_one_error(tmp_path):
    config = small_config(tmp_path)
    with pytest.raises(ConfigError, match="unknown planner 'evenly'"):
        bench_step(config, planners=["evenly"])
    budget = config.balance.__class__(memory="1MB")
    with pytest.raises(ConfigError, match="a rank may have"):
        bench_step(config.model_copy(update={"balance": budget}))


def test_costs_in_the_run_folder_are_taken(tmp_path):
    config = small_config(tmp_path)
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=config.seed)
    said = []
    costs = fitted_costs(config, model, joint, said.append)
    assert said == ["costs of a step"]
    assert costs.threads == 1
    config.to.mkdir(parents=True)
    save_costs(costs, config.to)
    assert fitted_costs(config, model, joint, said.append) == costs
    assert len(said) == 1
    # All the time by atoms, none of it fixed: what is simulated is the imbalance of atoms.
    by_atoms = {"base": 0.0, "per_atom": 1.0, "per_edge": 0.0}
    costs = costs.model_copy(update={"seconds": costs.seconds.model_copy(update=by_atoms)})
    balance = config.balance.model_copy(update={"edge_share": 0.0})
    config = config.model_copy(update={"balance": balance})
    found = simulated(config, joint, costs, 12, "random", 2, 4)
    assert found["simulated_imbalance"] == pytest.approx(found["planned_imbalance"])
    assert found["simulated_imbalance"] > 1
