import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from conftest import make_counts
from lamm.balance.population import TABLE_2, population
from lamm.bench.balance import (
    COST_MODELS,
    at_equal_memory,
    bench_balance,
    index_of,
    read_counts,
    step_times,
    table,
)
from lamm.cli.main import app
from lamm.data.sampling import SamplingConfig
from lamm.errors import ConfigError, DataError
from lamm.evaluate.balance_figure import balance_figure, balance_rows, moving_average
from small import small_config

NAMES = ("natoms", "subset", "periodic", "has_e", "has_f")


@pytest.fixture
def counts_file(tmp_path):
    path = tmp_path / "counts.npz"
    np.savez(path, **make_counts(0.1))
    return path


@pytest.fixture(scope="module")
def result():
    index = index_of(population(20_000), COST_MODELS["S"])
    return bench_balance(index, SamplingConfig(), ranks=8, batch_size=8)


def test_the_population_has_the_sizes_and_means_of_table_2():
    counts = population(300_000)
    total = sum(row.structures for row in TABLE_2)
    assert abs(len(counts.natoms) - 300_000) < 10
    for number, row in enumerate(TABLE_2):
        atoms = counts.natoms[counts.subset == number]
        assert abs(len(atoms) - 300_000 * row.structures / total) <= 1
        assert atoms.min() >= row.least_atoms
        assert atoms.max() <= row.most_atoms
        error = row.spread * row.mean_atoms / np.sqrt(len(atoms))
        assert abs(atoms.mean() - row.mean_atoms) < 4 * error


def test_a_population_has_a_structure_of_each_subset():
    assert len(np.unique(population(10).subset)) == 10
    with pytest.raises(ConfigError, match="at least 10"):
        population(9)


def test_a_step_lasts_as_long_as_its_slowest_rank_and_its_growth():
    load = np.array([[10.0, 20.0], [30.0, 15.0], [5.0, 5.0]])
    model = COST_MODELS["S"]._replace(fixed=100.0, growth=2.0)
    # The loads rise by (20, -5), then fall; the first step has nothing before it.
    assert step_times(load, model).tolist() == [120.0, 130.0 + 2 * 20.0, 105.0]


def test_ours_comes_closest_to_the_ideal(result):
    planners = result["planners"]
    assert planners["random"]["beside_random"] == 1
    for one in planners.values():
        assert 0 < one["beside_ideal"] <= 1
        assert one["beside_ideal"] <= planners["balanced"]["beside_ideal"]
    assert planners["balanced"]["imbalance"] < 1.006
    assert len(table(result)) == 2 + len(planners) + 1


def test_the_figure_has_every_planner(result):
    figure = balance_figure(result)
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == list(result["planners"])
    assert [row["planner"] for row in balance_rows(result)] == labels


def test_a_moving_average_of_few_steps_is_their_mean():
    assert moving_average(np.array([1.0, 3.0]), 5).tolist() == [2.0]
    assert moving_average(np.arange(6.0), 5).tolist() == [2.0, 3.0]


def test_a_plan_of_a_counts_file_uses_each_structure_once(counts_file, tmp_path):
    # Subsets need not be in order: `sample` counts through the file.
    arrays = dict(np.load(counts_file))
    shuffled = np.random.default_rng(0).permutation(len(arrays["natoms"]))
    np.savez(counts_file, **{name: array[shuffled] for name, array in arrays.items()})
    to = tmp_path / "plan.npz"
    words = ["bench", "balance", "--counts", counts_file, "--planner", "balanced", "--ranks", 4]
    words += ["--batch-size", 8, "--to", to, "--json", "--kib-per-atom", 1024]
    ran = CliRunner().invoke(app, [str(word) for word in words])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert list(found["planners"]) == ["random", "balanced"]
    with np.load(to) as plan:
        assert np.array_equal(np.sort(plan["sample"]), np.arange(len(shuffled)))
        assert plan["step"].max() == found["planners"]["balanced"]["steps"] - 1
        natoms, periodic = (np.load(counts_file)[name] for name in ("natoms", "periodic"))
        sizes = natoms[plan["sample"]]
        cost = sizes * (0.35 + 0.65 * np.minimum(sizes - 1, 50) / 50)
        cost = np.where(periodic[plan["sample"]] == 1, sizes, cost)
        load = np.bincount(plan["step"] * 4 + plan["rank"], weights=cost)
    peak = found["planners"]["balanced"]["peak_load"]
    assert peak == pytest.approx(load.max(), rel=1e-3)
    assert found["planners"]["balanced"]["peak_memory_gib"] == pytest.approx(peak / 1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"natoms": None}, "no array natoms"),
        ({"natoms": np.ones(3)}, "arrays of shapes"),
        ({"natoms": 0}, "natoms is 0 at structure 0; expected whole numbers, 1 to"),
        ({"natoms": -3}, "natoms is -3 at structure 0"),
        ({"natoms": 3.5}, "natoms is 3.5 at structure 0"),
        ({"natoms": np.nan}, "natoms is nan at structure 0"),
        ({"natoms": np.inf}, "natoms is inf at structure 0"),
        ({"natoms": "7"}, "natoms is of type <U1; expected whole numbers"),
        ({"subset": np.nan}, "subset is nan"),
        ({"has_e": 2}, "has_e is 2 at structure 0; expected whole numbers, 0 to 1"),
        (dict.fromkeys(NAMES, np.zeros(0)), "arrays of shapes"),
        (dict.fromkeys(NAMES, np.ones(())), "arrays of shapes"),
    ],
)
def test_a_wrong_counts_file_says_what_is_wrong(counts_file, change, message):
    arrays = dict(np.load(counts_file))
    for name, value in change.items():
        fills = np.isscalar(value)
        arrays[name] = np.full(len(arrays["subset"]), value) if fills else value
    np.savez(counts_file, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=message):
        read_counts(counts_file)


def test_a_file_that_is_no_npz_says_so(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_counts(tmp_path / "counts.npz")
    (tmp_path / "counts.npz").write_text("natoms")
    with pytest.raises(DataError, match="not an npz file"):
        read_counts(tmp_path / "counts.npz")


@pytest.mark.parametrize(
    ("balance", "words", "size"),
    [
        ({"memory": "2GiB"}, [], 8),
        ({"batch_size": "auto"}, [], 8),
        ({"max_cost": 40.0}, ["--batch-size", "3"], 3),
        ({"batch_size": 5}, [], 5),
        ({"batch_size": 5}, ["--batch-size", "3"], 3),
    ],
)
def test_any_run_can_be_planned_with_its_own_batch_size_or_another(tmp_path, balance, words, size):
    path = tmp_path / "run.yaml"
    config = small_config(tmp_path, balance=balance)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = ["bench", "balance", "--config", str(path), "--planner", "random", "--ranks", "2"]
    ran = CliRunner().invoke(app, [*command, "--no-equal-memory", "--json", *words])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["settings"]["batch_size"] == size


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_counts_file_says_so(counts_file, damage, compressed):
    if compressed:
        np.savez_compressed(counts_file, **dict(np.load(counts_file)))
    whole = counts_file.read_bytes()
    half = len(whole) // 2
    counts_file.write_bytes(
        {
            "cut": whole[:half],
            "changed": whole[:half] + bytes(64) + whole[half + 64 :],
            "empty": b"",
        }[damage]
    )
    with pytest.raises(DataError, match="not an npz file of arrays"):
        read_counts(counts_file)


def test_the_ids_of_subsets_may_be_any_numbers(counts_file):
    arrays = dict(np.load(counts_file))
    subset = arrays["subset"].copy()
    arrays["subset"] = np.where(subset == subset.max(), 3_000_000, subset * 10 - 5)
    np.savez(counts_file, **arrays)
    assert np.array_equal(read_counts(counts_file).subset, subset)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "plan.npz"], "expected one plan to write"),
        (["--config", "a.yaml", "--counts", "b.npz"], "expected one of them"),
        (["--planner", "balancd"], "Did you mean 'balanced'"),
        (["--model", "M"], "expected S or L"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(words, message):
    ran = CliRunner().invoke(app, ["bench", "balance", "--structures", "100", *words])
    assert ran.exit_code != 0
    assert message in str(ran.exception) + ran.output


def test_equal_memory_allows_larger_batches_up_to_the_peak_of_random_ones():
    index = index_of(population(4_000), COST_MODELS["L"])
    shape = {"ranks": 4, "batch_size": 3, "model": COST_MODELS["L"]}
    result = bench_balance(
        index, SamplingConfig(), planners=["balanced", "paper"], equal_memory=True, **shape
    )
    planners = result["planners"]
    peak = planners["random"]["peak_load"]
    for name in ("balanced", "paper"):
        larger = planners[name]["equal_memory"]
        assert larger["peak_load"] <= peak
        assert larger["mini_batch"] > 12
        assert larger["beside_random"] > planners[name]["beside_random"]
    best = planners["balanced"]["equal_memory"]
    assert best["beside_random"] > planners["paper"]["equal_memory"]["beside_random"]
    lines = "\n".join(table(result))
    assert f"no load above {peak:.1f}" in lines
    assert f"{best['mini_batch']:>11}" in lines
    nothing = at_equal_memory(index, SamplingConfig(), "balanced", **shape, peak_load=peak / 9)
    assert nothing is None


@pytest.mark.parametrize("planner", ["random", "balanced"])
def test_a_mini_batch_in_equal_memory_is_no_larger_than_the_epoch(planner):
    index = index_of(population(50), COST_MODELS["S"])
    once = SamplingConfig(temperature=1.0)
    for ranks in (64, 4):  # 512 structures in a mini-batch, and 32
        found = at_equal_memory(index, once, planner, ranks=ranks, batch_size=8, peak_load=1e9)
        assert found["mini_batch"] == len(index)
