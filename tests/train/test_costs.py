"""Costs of steps: fits, what is measured, what is kept, and what a run makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from lamm.balance.columns import as_array
from lamm.balance.cost import COST_UNIT, fast_batch_size
from lamm.balance.plan import plan_epoch
from lamm.balance.settings import BalanceConfig
from lamm.cli.main import app
from lamm.config import read_run_config
from lamm.data.joint import JointDataset
from lamm.errors import BadAnswerError, ConfigError
from lamm.models.potential import build
from lamm.train import budget as budgets
from lamm.train import preflight
from lamm.train.batches import most_neighbors
from lamm.train.budget import with_costs
from lamm.train.checkpoint import read_state
from lamm.train.costs import COSTS, Prior, fit, peak_bytes, read_costs, sample_parts, save_costs
from lamm.train.distributed import World
from lamm.train.preflight import measured, settle_balance
from lamm.train.run import pretrain
from small import small_config

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def batches(base: float, per_atom: float, per_edge: float, noise: float = 0.0):
    rng = np.random.default_rng(0)
    for atoms in (10, 30, 100, 300, 1000):
        for degree in (5, 20, 45):
            value = base + per_atom * atoms + per_edge * atoms * degree
            value *= 1 + noise * rng.normal()
            yield {"atoms": atoms, "edges": atoms * degree, "seconds": value, "bytes": value}


def test_a_fit_finds_what_the_numbers_were_made_of():
    found = fit(list(batches(0.02, 1e-4, 3e-6)), "seconds")
    assert (found.base, found.per_atom, found.per_edge) == pytest.approx((0.02, 1e-4, 3e-6))
    assert found.error < 1e-9
    assert found.of(100, 2000) == pytest.approx(0.02 + 0.01 + 0.006)


def test_a_fit_of_noisy_numbers_is_near_and_never_negative():
    found = fit(list(batches(0.0, 1e-4, 3e-6, noise=0.1)), "bytes")
    assert found.per_edge == pytest.approx(3e-6, rel=0.3)
    assert min(found.base, found.per_atom, found.per_edge) >= 0
    assert 0.01 < found.error < 0.2


def test_where_atoms_and_edges_go_together_the_prior_decides_between_them():
    prior = Prior(edge_share=0.65, max_neighbors=20)

    def share(found) -> float:
        edges = 20 * found.per_edge
        return edges / (found.per_atom + edges)

    rng = np.random.default_rng(1)
    alike = []
    for atoms in (20, 60, 200, 600, 2000):
        value = (0.01 + 2e-4 * atoms) * (1 + 0.1 * rng.normal())
        edges = atoms * 20 * (1 + 0.01 * rng.normal())
        alike.append({"atoms": atoms, "edges": edges, "seconds": value})
    assert share(fit(alike, "seconds", prior)) == pytest.approx(0.65, abs=0.05)
    assert share(fit(alike, "seconds")) in (pytest.approx(0, abs=1e-6), pytest.approx(1))
    # Where they don't, the measurements do: exactly without noise, and nearly with little of it.
    exact = fit(list(batches(0.02, 1e-4, 3e-6)), "seconds", prior)
    assert exact.per_edge == pytest.approx(3e-6, rel=1e-6)
    noisy = fit(list(batches(0.02, 1e-4, 3e-6, noise=0.03)), "seconds", prior)
    assert share(noisy) == pytest.approx(6e-5 / 1.6e-4, abs=0.08)


def test_too_few_steps_are_no_fit():
    with pytest.raises(BadAnswerError, match="expected at least three"):
        fit(list(batches(1, 1, 1))[:2], "seconds")


def test_memory_is_counted_by_allocation():
    x = torch.randn(500, 500)

    def call() -> None:
        y = x @ x  # 1 MB
        z = y + 1  # 1 MB beside it
        del y
        (z * 2).sum()  # 1 MB beside z

    assert peak_bytes(call, CPU) == pytest.approx(2e6, rel=0.01)
    assert peak_bytes(lambda: x.view(-1).add_(0), CPU) == 0


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path)


@pytest.fixture
def joint(config):
    return JointDataset(config.data, config.seed)


def test_batches_of_few_and_of_many_neighbours_are_measured(joint):
    parts = list(sample_parts(joint, 0))
    degree = [(joint.num_edges[part] / joint.num_atoms[part]).mean() for part in parts]
    assert degree[0] < degree[2] < degree[1]
    assert all(len(part) for part in parts)
    assert set(np.concatenate(parts)) <= set(joint.ids("train"))


def test_costs_are_kept_and_are_one_models(config, joint, tmp_path):
    model = build(config.model, joint.names, seed=0)
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    costs = measured(config, model, joint, CPU)
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    save_costs(costs, tmp_path)
    assert read_costs(tmp_path, model) == costs
    other = build(config.model, ["one", "two", "three"], seed=0)
    with pytest.raises(ConfigError, match="another model than the run's"):
        read_costs(tmp_path, other)
    (tmp_path / COSTS).write_text("{")
    with pytest.raises(ConfigError, match="Remove it to measure again"):
        read_costs(tmp_path, model)
    assert read_costs(tmp_path / "none", model) is None


def budget(config, **balance):
    return config.model_copy(update={"balance": config.balance.__class__(**balance)})


def test_a_larger_budget_is_a_larger_batch(config, joint):
    model = build(config.model, joint.names, seed=0)
    config.to.mkdir(parents=True)
    found = settle_balance(budget(config, max_cost=40), model, joint, ALONE)
    more = settle_balance(budget(config, max_cost=80), model, joint, ALONE)
    assert 1 <= found.structures_per_rank < more.structures_per_rank
    costs = read_costs(config.to, model)
    base = costs.resident + costs.bytes.base
    little, much = (f"{(base + extra) / 1e6:.3f}MB" for extra in (2e6, 8e6))
    sizes = [
        settle_balance(budget(config, memory=memory), model, joint, ALONE).structures_per_rank
        for memory in (little, much, "auto")
    ]
    assert sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(ConfigError, match="a rank may have"):
        settle_balance(budget(config, memory="1MB"), model, joint, ALONE)


@pytest.mark.parametrize("planner", ["balanced", "greedy", "paper", "random"])
def test_no_rank_is_planned_more_than_its_budget(config, joint, planner):
    model = build(config.model, joint.names, seed=0)
    costs = measured(config, model, joint, CPU)
    asked = BalanceConfig(max_cost=60, planner=planner)
    found = with_costs(asked, model, joint, costs, World(0, 2, CPU), config.seed)
    index = joint.plan_index(most_neighbors(joint, model.graph_config), found.edge_share)
    plan = plan_epoch(
        index,
        joint.config.sampling,
        seed=config.seed,
        epoch=0,
        ranks=2,
        batch_size=found.structures_per_rank,
        planner=planner,
    )
    load = plan.rank_load(index.cost[index.find(plan.ids)])
    assert found.structures_per_rank > 1
    assert load.max() / COST_UNIT <= 60


def test_a_budget_that_holds_nothing_says_what_takes_it(config, joint):
    model = build(config.model, joint.names, seed=0)
    config.to.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"max_cost is 0.1, and .*; expected at least"):
        settle_balance(budget(config, max_cost=0.1), model, joint, ALONE)
    with pytest.raises(ConfigError, match=r"may have 1.0 MiB, of which weights.* take [\d,.]+ MiB"):
        settle_balance(budget(config, memory="1MiB"), model, joint, ALONE)


def test_what_stops_a_run_stops_the_look_ahead_too(config, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    words = ["plan", str(path), "--no-measure", "data.val_fraction=0"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, ConfigError)
    assert "no structure is left for validation" in str(result.exception)
    with pytest.raises(ConfigError, match="no structure is left for validation"):
        pretrain(read_run_config(path, words[3:]), quiet=True)
    assert not config.to.exists()


def test_without_a_limit_atoms_are_counted_with_the_neighbours_of_the_densest_structure(joint):
    index = [subset.store.index for subset in joint.subsets]
    most = max((one.num_edges / one.num_atoms).max() for one in index)
    assert most <= joint.most_neighbors < most + 1


class TwoHosts(World):
    """Rank 0 of two, whose other rank has found room for three structures."""

    def gather(self, mine):
        return [mine, 3 if isinstance(mine, int) else mine]


def test_all_ranks_have_the_batch_size_of_the_one_with_least_memory(config, joint):
    model = build(config.model, joint.names, seed=0)
    config.to.mkdir(parents=True)
    save_costs(measured(config, model, joint, CPU), config.to)
    found = settle_balance(budget(config, memory="auto"), model, joint, TwoHosts(0, 2, CPU))
    assert found.structures_per_rank == 3


def test_ranks_share_the_memory_of_their_own_host_alone(config, joint, monkeypatch):
    model = build(config.model, joint.names, seed=0)
    monkeypatch.setattr(budgets, "free_bytes", lambda _: 16e9)
    monkeypatch.setattr(budgets, "resident_bytes", lambda *_: 0)
    auto = BalanceConfig(memory="auto")
    of_eight = World(3, 64, CPU, local_size=8)
    assert budgets.memory_of(auto, model, of_eight) == pytest.approx(0.9 * 16e9 / 8)
    assert budgets.memory_of(auto, model, World(3, 64, torch.device("cuda"), 8)) == 0.9 * 16e9


def test_costs_of_another_device_are_measured_anew(config, joint, caplog):
    model = build(config.model, joint.names, seed=0)
    config.to.mkdir(parents=True)
    other = measured(config, model, joint, CPU).model_copy(update={"device": "Abacus"})
    save_costs(other, config.to)
    assert settle_balance(config, model, joint, ALONE) == config.balance
    assert "measured on Abacus in float32" in caplog.text
    settle_balance(budget(config, max_cost=40), model, joint, ALONE)
    assert read_costs(config.to, model).device != "Abacus"


def test_a_resumed_run_plans_as_it_began_whatever_costs_are_there_now(config, joint):
    def lasting(steps):
        train = {"steps": steps, "workers": 0, "validate_every": 100}
        return config.model_copy(update={"train": config.train.__class__(**train)})

    pretrain(lasting(4), quiet=True)
    model = build(config.model, joint.names, seed=0)
    costs = measured(config, model, joint, CPU)
    seconds = costs.seconds.model_copy(update={"per_atom": 1e-3, "per_edge": 1e-3})
    save_costs(costs.model_copy(update={"seconds": seconds}), config.to)
    state = read_state(config.to / "last")
    assert state.plan["edge_share"] == config.balance.edge_share
    kept = settle_balance(config, model, joint, ALONE, kept=state)
    assert kept.edge_share == config.balance.edge_share
    assert settle_balance(config, model, joint, ALONE).edge_share != config.balance.edge_share
    found = settle_balance(budget(config, max_cost=40), model, joint, ALONE, kept=state)
    assert found.structures_per_rank == state.mini_batch_size
    assert pretrain(lasting(6), quiet=True, resume=True).plan == state.plan


class OneOfTwo(World):
    """A rank of two, on whose other one costs don't hold."""

    def gather(self, mine):
        other = False if isinstance(mine, bool) else mine
        return [mine, other] if self.is_main else [other, mine]

    def from_main(self, call):
        return call()


@pytest.mark.parametrize(
    ("rank", "device", "message"),
    [
        (0, "Abacus", "measured on Abacus in float32"),
        (0, None, "don't hold on rank 1"),
        (1, "Abacus", ""),
    ],
)
def test_rank_0_alone_says_that_costs_do_not_hold(config, joint, caplog, rank, device, message):
    model = build(config.model, joint.names, seed=0)
    config.to.mkdir(parents=True)
    costs = measured(config, model, joint, CPU)
    save_costs(costs.model_copy(update={"device": device or costs.device}), config.to)
    caplog.clear()
    assert settle_balance(config, model, joint, OneOfTwo(rank, 2, CPU)) == config.balance
    assert message in caplog.text
    assert len(caplog.records) == bool(message)


def test_what_goes_wrong_where_costs_are_measured_keeps_its_kind(config, joint, monkeypatch):
    def fails(*_):
        raise ConfigError("no such thing")

    monkeypatch.setattr(preflight, "measured", fails)
    model = build(config.model, joint.names, seed=0)
    with pytest.raises(ConfigError, match="no such thing"):
        settle_balance(budget(config, max_cost=40), model, joint, ALONE)


def test_batches_are_as_large_as_speed_gains_from_and_memory_holds(config, joint, monkeypatch):
    model = build(config.model, joint.names, seed=0)
    config.to.mkdir(parents=True)
    costs = measured(config, model, joint, CPU)
    slow_start = {"base": 1.0, "per_atom": 0.01, "per_edge": 0.0, "error": 0.0}
    costs = costs.model_copy(update={"seconds": costs.seconds.model_copy(update=slow_start)})
    save_costs(costs, config.to)
    trial = budget(config, batch_size="auto")
    index = joint.plan_index(most_neighbors(joint, model.graph_config), 0.5)
    atoms = budgets.mean_of_uses(index, joint, joint.num_atoms[as_array(index.ids)])
    uses = int(budgets.uses_of(index, joint.config.sampling).sum())

    monkeypatch.setattr(budgets, "FEWEST_STEPS", 1)
    fast = fast_batch_size(1.0, 0.01 * atoms)
    assert fast * 0.01 * atoms >= 0.9 * (1 + fast * 0.01 * atoms) > 0.5 * fast * 0.01 * atoms
    found = settle_balance(trial, model, joint, ALONE)
    assert found.structures_per_rank == min(fast, uses)
    monkeypatch.setattr(budgets, "FEWEST_STEPS", uses // 2)
    assert settle_balance(trial, model, joint, ALONE).structures_per_rank == 2
    monkeypatch.setattr(budgets, "FEWEST_STEPS", 1)
    little = costs.resident + costs.bytes.base + 2e5
    monkeypatch.setattr(budgets, "memory_of", lambda *_: little)
    by_memory = settle_balance(trial, model, joint, ALONE).structures_per_rank
    assert by_memory < fast
    same = settle_balance(budget(config, memory=f"{little / 1e6:.6f}MB"), model, joint, ALONE)
    assert by_memory == same.structures_per_rank


def test_without_size_or_budget_a_trial_finds_it_on_a_gpu_alone():
    nothing = BalanceConfig()
    assert nothing.on("cuda").batch_size == "auto"
    assert nothing.on("cuda").has_budget
    assert nothing.on("cpu").structures_per_rank == 8
    for given in (
        BalanceConfig(batch_size=3),
        BalanceConfig(max_cost=9),
        BalanceConfig(memory="1GB"),
    ):
        assert given.on("cuda") == given


def test_a_budget_needs_costs(config, joint, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(budget(config, max_cost=9).model_dump(mode="json")))
    result = CliRunner().invoke(app, ["plan", str(path), "--no-measure"])
    assert isinstance(result.exception, ConfigError)
    assert "Leave out --no-measure" in str(result.exception)


def test_a_run_plans_with_the_costs_in_its_folder(config, caplog):
    config = budget(config, max_cost=30)
    run = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    pretrain(run, quiet=True)
    kept = (config.to / COSTS).read_text()
    state = json.loads((config.to / "last" / "state.json").read_text())
    assert state["mini_batch_size"] >= 1
    longer = run.model_copy(update={"train": run.train.model_copy(update={"steps": 4})})
    pretrain(longer, resume=True, quiet=True)
    assert (config.to / COSTS).read_text() == kept


def test_the_command_says_what_a_run_would_be(config, tmp_path):
    path, plan = tmp_path / "run.yaml", tmp_path / "plan.npz"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    words = ["plan", str(path), "--ranks", "2", "--to", str(plan), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["ranks"] == 2
    assert answer["seconds_per_step"] > 0
    assert 0 < answer["r_squared"]["bytes"] <= 1
    assert answer["peak_memory_gib"] >= answer["mean_memory_gib"] > 0
    with np.load(plan) as arrays:
        uses = sum(one["uses"] for one in answer["subsets"].values())
        assert len(arrays["sample"]) == len(arrays["step"]) == len(arrays["rank"]) == uses
        assert arrays["step"].max() + 1 == answer["steps_per_epoch"]
    assert (config.to / COSTS).exists()
    assert not (config.to / "metrics.jsonl").exists()
    text = CliRunner().invoke(app, ["plan", str(path), "--no-measure"]).stdout
    assert "planned imbalance" in text
    assert "R^2" in text
    words = ["plan", str(path), "balance.memory=2GiB", "balance.batch_size=null"]
    assert "budget 2.00 GiB" in CliRunner().invoke(app, words).stdout
    words = [*words[:2], "balance.memory=auto", words[3], "--ranks", "16", "--json"]
    budgets = []
    for few in ([], ["--ranks-per-host", "2"]):
        budgets.append(json.loads(CliRunner().invoke(app, [*words, *few]).stdout)["budget_gib"])
    assert budgets[1] > 4 * budgets[0]


def test_without_measuring_there_are_no_times(config, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    result = CliRunner().invoke(app, ["plan", str(path), "--no-measure"])
    assert result.exit_code == 0
    assert "costs weren't measured" in result.stdout
    assert not (config.to / COSTS).exists()
