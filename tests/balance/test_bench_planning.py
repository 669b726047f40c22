import json
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from lamm.balance.columns import as_array
from lamm.balance.plan import plan_epoch
from lamm.balance.population import TABLE_2, population
from lamm.bench.balance import COST_MODELS, index_of
from lamm.bench.planning import MemoryWatch, bench_planning, lines_of, table_2_index
from lamm.cli.main import app
from lamm.data.sampling import SamplingConfig, temperature_sizes


def test_the_compact_index_is_that_of_the_population():
    compact = table_2_index(30_000, COST_MODELS["S"])
    plain = index_of(population(30_000), COST_MODELS["S"])
    assert len(compact) == len(plain)
    for name in ("ids", "subset", "has_energy", "has_forces"):
        assert (as_array(getattr(compact, name)) == getattr(plain, name)).all()
    assert (np.abs(as_array(compact.cost) - plain.cost) <= 1).all()
    assert compact.subset_offsets.tolist() == plain.subset_offsets.tolist()


def test_plans_of_columns_and_of_arrays_are_alike():
    compact = table_2_index(5_000, COST_MODELS["S"])
    plain = index_of(population(5_000), COST_MODELS["S"])
    for planner in ("random", "greedy", "paper", "balanced"):
        one, other = (
            plan_epoch(
                index, SamplingConfig(), seed=3, epoch=1, ranks=4, batch_size=8, planner=planner
            )
            for index in (compact, plain)
        )
        assert np.bincount(one.ids).tolist() == np.bincount(other.ids).tolist()
        assert one.num_energy.sum() == other.num_energy.sum()
        assert one.num_forces.sum() == other.num_forces.sum()


def test_a_whole_epoch_comes_out():
    result = bench_planning(40_000, ranks=4, batch_size=8, processes=2)
    assert result["steps"] == -(-result["uses"] // 32)
    assert result["uses"] > result["settings"]["structures"]
    assert 1 <= result["imbalance"] < 1.01
    assert 0 < result["first_step_seconds"] < result["index_seconds"] + result["seconds"] + 1
    assert result["index_bytes"] == 2 * result["settings"]["structures"]
    assert f"{result['uses']:,} uses an epoch" in "\n".join(lines_of(result))


def test_all_of_table_2_is_432_million_uses():
    uses = temperature_sizes([row.structures for row in TABLE_2], 2.0).sum()
    assert abs(int(uses) - 432_000_000) < 1_000_000


def test_memory_of_this_process_is_seen():
    with MemoryWatch() as watch:
        block = np.ones(2**24, dtype=np.uint8)
        time.sleep(0.4)
    if watch.most_bytes == 0:
        pytest.skip("this system doesn't say what a process shares")
    assert watch.most_bytes > block.nbytes


def test_the_command_writes_its_result(tmp_path):
    to = tmp_path / "planning.json"
    arguments = ["bench", "planning", "--structures", "20000", "--ranks", "2", "--to", str(to)]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    assert "the first step is planned after" in answer.output
    assert json.loads(to.read_text())["settings"]["ranks"] == 2
