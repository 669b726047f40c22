import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamm.balance.balanced import (
    UNEVEN,
    cumulative_quotas,
    cut_strata,
    deal,
    gather_dear,
    window_edges,
    window_steps,
)
from lamm.balance.plan import plan_epoch
from lamm.data.sampling import SamplingConfig
from lamm.keyed import hash64

SIZES = st.lists(st.integers(0, 400), min_size=1, max_size=8).filter(any)


@given(SIZES, st.integers(1, 60))
def test_quotas_add_up_and_are_never_a_structure_off(sizes, step):
    total = sum(sizes)
    edges = np.minimum(np.arange(0, total + step, step), total)
    quotas = np.array(list(cumulative_quotas(np.array(sizes), edges)))
    share = edges[:, None] * np.array(sizes) / total
    assert np.array_equal(quotas.sum(axis=1), edges)
    assert np.abs(quotas - share).max() < 1
    assert np.diff(quotas, axis=0).min(initial=0) >= 0
    assert quotas[-1].tolist() == sizes


def test_many_rare_subsets_all_get_their_share_in_time():
    sizes = np.array([1] * 30 + [970])
    edges = np.arange(0, 1001, 10)
    quotas = np.array(list(cumulative_quotas(sizes, edges)))
    assert np.abs(quotas - edges[:, None] * sizes / 1000).max() < 1
    assert np.diff(quotas, axis=0).min() >= 0


def test_quotas_of_a_large_epoch_do_not_overflow():
    sizes = np.array([1_340_000_000, 1_120_000_000, 7])
    edges = np.array([0, 10**6, int(sizes.sum()) - 1, int(sizes.sum())])
    quotas = np.array(list(cumulative_quotas(sizes, edges)))
    assert np.array_equal(quotas.sum(axis=1), edges)
    assert quotas.min() >= 0


@pytest.mark.parametrize(
    ("steps", "window", "expected"),
    [(1, 64, [0, 1]), (64, 64, [0, 64]), (79, 64, [0, 79]), (80, 64, [0, 64, 80])],
)
def test_a_short_last_window_joins_the_one_before(steps, window, expected):
    assert window_edges(steps, window) == expected


def test_a_window_has_64_mini_batches_or_more():
    assert window_steps(512) == window_steps(8192) == 64
    assert window_steps(128) == 256


@given(st.integers(1, 200), st.integers(1, 50))
def test_strata_hold_every_place_once(num_uses, num_batches):
    strata, left_over = cut_strata(num_uses, num_batches)
    places = np.concatenate([strata.ravel(), left_over])
    assert np.array_equal(np.sort(places), np.arange(num_uses))
    assert strata.shape == (num_uses // num_batches, num_batches)
    gaps = np.diff(left_over)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**64 - 1))
def test_a_window_is_dealt_without_loss(num_uses, num_batches, num_subsets, key):
    num_batches = min(num_batches, num_uses)
    subset = np.sort((hash64(np.arange(num_uses), key) % np.uint64(num_subsets)).astype(np.int64))
    cost = (hash64(np.arange(num_uses), key ^ 1) % np.uint64(300)).astype(np.int64) + 1
    order = np.lexsort((cost, subset))
    larger, others = deal(cost[order], subset, num_batches, key)
    places = np.concatenate([larger.ravel(), others.ravel()])
    assert np.array_equal(np.sort(places), np.arange(num_uses))
    size, rest = divmod(num_uses, num_batches)
    assert larger.shape == (rest, size + 1)
    assert others.shape == (num_batches - rest, size)


def test_mini_batches_agree_in_composition_and_cost():
    subset = np.repeat([0, 1, 2], [500, 300, 224])
    cost = 1000 * (subset + 1) + (hash64(np.arange(1024), 5) % np.uint64(500)).astype(np.int64)
    order = np.lexsort((cost, subset))
    larger, full = deal(cost[order], subset, 64, key=7)
    assert larger.size == 0
    composition = np.array([np.bincount(subset[row], minlength=3) for row in full])
    share = 16 * np.array([500, 300, 224]) / 1024
    assert np.abs(composition - share).max() < 2  # a subset may end in two mixed strata
    total = cost[order][full].sum(axis=1)
    assert total.max() / total.mean() < 1.001


def test_mini_batches_of_one_structure_more_cost_as_much_as_the_others():
    subset = np.repeat([0, 1, 2], [490, 290, 213])
    cost = 1000 * (subset + 1) + (hash64(np.arange(993), 5) % np.uint64(900)).astype(np.int64)
    order = np.lexsort((cost, subset))
    mini_batches = deal(cost[order], subset, 12, key=7)
    assert [rows.shape for rows in mini_batches] == [(9, 83), (3, 82)]
    total = np.concatenate([cost[order][rows].sum(axis=1) for rows in mini_batches])
    assert total.max() / total.min() < 1.01  # one structure is 1.2 % of a mini-batch
    for rows in mini_batches:
        composition = np.array([np.bincount(subset[row], minlength=3) for row in rows])
        assert np.abs(composition - rows.shape[1] * np.array([490, 290, 213]) / 993).max() < 3


def test_many_dear_structures_leave_the_mini_batches_even():
    # A tenth costs five to seven times the mean: all together by their cost, some mini-batches
    # would cost an eighth more than others.
    subset = np.repeat([0, 1], [3686, 410])
    cost = 100 + (hash64(np.arange(4096), 3) % np.uint64(100)).astype(np.int64)
    cost[subset == 1] += 1000 + 8 * (hash64(np.arange(410), 4) % np.uint64(100)).astype(np.int64)
    order = np.lexsort((cost, subset))
    assert (cost > 3.5 * cost.mean()).sum() == 410
    _, mini_batches = deal(cost[order], subset, 64, key=7)
    total = cost[order][mini_batches].sum(axis=1)
    assert total.max() / total.mean() < UNEVEN


def test_the_dearest_come_together_and_composition_stays():
    # 8 mini-batches; subset 1 has 20 dear structures: two strata of 8, and 4 beside subset 2.
    subset = np.repeat([0, 1, 2], [64, 20, 12])
    cost = np.concatenate([np.full(64, 10), 1000 + np.arange(20), np.full(12, 10)])
    strata, _ = cut_strata(96, 8)
    strata = np.take_along_axis(strata, np.argsort(-cost[strata], axis=1, kind="stable"), axis=1)
    before = np.sort(strata.ravel())
    done = gather_dear(strata, cost, subset, 3.5)
    assert np.array_equal(np.sort(strata.ravel()), before)
    assert np.flatnonzero(done).tolist() == [8, 9, 10]
    dear = np.where(subset[strata] == 1, cost[strata], 0)
    assert (dear > 0).sum(axis=0).tolist() == [3, 3, 3, 3, 2, 2, 2, 2]
    assert dear.max(axis=0).tolist() == [1019, 1016, 1013, 1010, 1007, 1005, 1003, 1001]


def test_where_the_epoch_is_no_multiple_the_larger_mini_batches_of_its_end_come_first(index):
    plan = plan_epoch(index, SamplingConfig(), seed=0, epoch=0, ranks=4, mini_batch_size=509)
    sizes = np.diff(plan.step_rank_offsets[::4])
    last = sizes[window_edges(len(sizes), window_steps(509))[-2] :]
    assert set(sizes[: -len(last)]) == {509}
    assert set(np.diff(last)) == {-1, 0}
