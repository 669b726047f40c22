import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lamm.balance.assign import evenly, least_loaded, refined
from lamm.keyed import hash64

COSTS = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def loads(cost, rank, ranks):
    return np.bincount(rank[0], cost[0], ranks).astype(int)


def test_the_largest_goes_first_to_the_least_loaded_rank():
    cost = np.array([[3, 9, 4, 4, 2, 5]])
    # 9 | 5 | 4, then 4 to the third, 3 to the second, 2 to the second or third (8 each)
    rank = least_loaded(cost, 3)
    assert rank[0, 1] == 0
    assert rank[0, 5] == 1
    assert rank[0, 2] == rank[0, 3] == 2
    assert loads(cost, rank, 3).tolist() == [9, 10, 8]


def test_an_exchange_evens_what_greedy_leaves():
    # Greedy gives 3 + 2 + 2 and 3 + 2; no order of it finds 3 + 3 and 2 + 2 + 2.
    cost = np.array([[3, 3, 2, 2, 2]])
    rank = least_loaded(cost, 2)
    assert sorted(loads(cost, rank, 2)) == [5, 7]
    assert loads(cost, refined(cost, rank, 2), 2).tolist() == [6, 6]


@given(COSTS, st.integers(1, 9))
def test_no_rank_is_without_work_where_there_is_enough(costs, ranks):
    cost = np.array([costs])
    rank = least_loaded(cost, ranks)
    better = refined(cost, rank, ranks)
    for each in (rank, better):
        busy = np.unique(each).size
        assert busy == min(ranks, len(costs))
    assert loads(cost, better, ranks).max() <= loads(cost, rank, ranks).max()


@given(COSTS, st.integers(1, 9))
def test_greedy_is_within_its_bound(costs, ranks):
    # Graham 1969: at most 4/3 - 1/(3 W) of the best, which is at least the mean and the largest.
    cost = np.array([costs])
    load = loads(cost, least_loaded(cost, ranks), ranks)
    ranked = sorted(costs, reverse=True)
    pair = sum(ranked[ranks - 1 : ranks + 1]) if len(costs) > ranks else 0
    best = max(sum(costs) / ranks, max(costs), pair)
    mean_and_one = sum(costs) / ranks + max(costs) * (1 - 1 / ranks)
    assert load.max() <= mean_and_one + 1e-9
    assert load.max() <= 2 * best


@given(st.integers(2, 20), st.integers(1, 7), st.data())
def test_mini_batches_do_not_touch_each_other(size, ranks, data):
    rows = data.draw(
        st.lists(st.lists(st.integers(1, 99), min_size=size, max_size=size), min_size=2, max_size=5)
    )
    cost = np.array(rows)
    together = refined(cost, least_loaded(cost, ranks), ranks)
    for row in range(len(rows)):
        one = cost[row : row + 1]
        assert np.array_equal(refined(one, least_loaded(one, ranks), ranks)[0], together[row])


def test_costs_beyond_32_bits_are_added_exactly():
    cost = np.array([[2**40, 2**40 + 2, 2**40 + 4, 2**40 + 6]])
    rank = refined(cost, least_loaded(cost, 2), 2)
    assert loads(cost, rank, 2).tolist() == [2**41 + 6, 2**41 + 6]


@given(st.integers(0, 50), st.integers(1, 9))
def test_equal_numbers_differ_by_at_most_one(size, ranks):
    count = np.bincount(evenly(size, ranks), minlength=ranks)
    assert count.sum() == size
    assert count.max() - count.min() <= 1


def test_many_ranks_wait_less_for_the_slowest():
    cost = (hash64(np.arange(2048), 11) % np.uint64(400)).astype(np.int64).reshape(1, 2048) + 10
    rank = least_loaded(cost, 256)
    before, after = loads(cost, rank, 256), loads(cost, refined(cost, rank, 256), 256)
    assert after.sum() == before.sum()
    assert after.max() < before.max()
    assert after.max() / after.mean() < 1.006
