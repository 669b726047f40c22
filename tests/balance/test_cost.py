import numpy as np
import pytest

from lamm.balance.cost import COST_UNIT, largest_batch_size, likely_edges, structure_cost
from lamm.errors import ConfigError


def test_a_fully_connected_atom_costs_one_unit():
    cost = structure_cost(np.array([1, 7]), np.array([50, 350]), max_neighbors=50, edge_share=0.65)
    assert cost.tolist() == [COST_UNIT, 7 * COST_UNIT]


def test_atoms_and_edges_share_the_cost():
    # n ((1 - f) + f E / (n k)) = 10 (0.35 + 0.65 * 90 / (10 * 50)) = 4.67 atoms
    cost = structure_cost(np.array([10]), np.array([90]), max_neighbors=50, edge_share=0.65)
    assert cost[0] / COST_UNIT == pytest.approx(4.67, abs=1 / COST_UNIT)


def test_edges_beyond_the_limit_cost_nothing():
    cost = structure_cost(np.array([4, 4]), np.array([80, 800]), max_neighbors=20, edge_share=0.8)
    assert cost[0] == cost[1]


def test_no_structure_is_free():
    cost = structure_cost(np.array([1]), np.array([0]), max_neighbors=50, edge_share=1.0)
    assert cost.tolist() == [1]


@pytest.mark.parametrize(("max_neighbors", "edge_share"), [(0, 0.5), (50, 1.5), (50, -0.1)])
def test_a_cost_model_out_of_range_is_refused(max_neighbors, edge_share):
    with pytest.raises(ConfigError, match="cost model"):
        structure_cost(
            np.array([1]), np.array([0]), max_neighbors=max_neighbors, edge_share=edge_share
        )


def test_a_molecule_has_no_more_edges_than_pairs():
    edges = likely_edges(np.array([3, 3, 100]), np.array([False, True, False]), 50)
    assert edges.tolist() == [6, 150, 5000]


def test_the_batch_size_leaves_room_for_the_peak():
    assert largest_batch_size(1030.0, 100.0) == 10
    assert largest_batch_size(1029.0, 100.0) == 9
    assert largest_batch_size(90.0, 100.0) == largest_batch_size(-1e9, 100.0) == 0
