import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamm.balance.assign import _by_heap, _row_by_row
from lamm.balance.order import stable_order
from lamm.balance.plan import PLANNERS, epoch_windows, windows
from lamm.data.sampling import SamplingConfig
from lamm.errors import ConfigError
from lamm.keyed import hash64

ARGUMENTS = {"seed": 4, "epoch": 1, "ranks": 4, "batch_size": 8}


def windows_of(index, planner, **changes):
    return epoch_windows(index, SamplingConfig(), planner=planner, **(ARGUMENTS | changes))


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("entries", "passes", "counts")
    )


@pytest.mark.parametrize("planner", sorted(PLANNERS))
def test_any_window_is_planned_without_those_before(index, planner):
    in_order = list(windows_of(index, planner, segments=3))
    assert len(in_order) > 1
    for number in (len(in_order) - 1, 0):
        assert same(windows_of(index, planner, segments=3)[number], in_order[number])


@pytest.mark.parametrize("planner", sorted(PLANNERS))
def test_the_steps_of_windows_are_known_without_planning(index, planner):
    some = windows_of(index, planner)
    counts = [len(window.counts) for window in some]
    assert np.diff(some.first_steps).tolist() == counts
    assert some.num_steps == sum(counts)
    assert some.at_step(0) == 0
    assert some.at_step(some.num_steps - 1) == len(some) - 1
    assert some.at_step(int(some.first_steps[-2])) == len(some) - 1


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_plan_the_same_windows(index, processes):
    expected = list(windows_of(index, "random"))
    found = windows(index, SamplingConfig(), planner="random", processes=processes, **ARGUMENTS)
    for one, other in zip(expected, found, strict=True):
        assert same(one, other)


def test_a_plan_by_no_process_is_refused(index):
    with pytest.raises(ConfigError, match="0 processes"):
        next(windows(index, SamplingConfig(), processes=0, **ARGUMENTS))


def test_a_window_beyond_the_epoch_is_refused(index):
    with pytest.raises(IndexError, match="window 9999"):
        windows_of(index, "balanced")[9999]


@given(
    st.lists(st.integers(-(2**40), 2**40), max_size=50)
    | st.lists(st.integers(0, 2**17), max_size=50)
    | st.lists(st.integers(-3, 3), max_size=50)
)
def test_the_stable_order_is_that_of_a_stable_sort(values):
    array = np.array(values, dtype=np.int64)
    assert stable_order(array).tolist() == np.argsort(array, kind="stable").tolist()


@given(st.integers(1, 6), st.integers(0, 30), st.integers(1, 9), st.integers(0, 2**32))
def test_both_ways_to_find_the_least_load_agree(batches, size, ranks, key):
    cost = (hash64(np.arange(batches * size), key) % np.uint64(20)).astype(np.int64) + 1
    descending = -np.sort(-cost.reshape(batches, size), axis=1)
    assert np.array_equal(_by_heap(descending, ranks), _row_by_row(descending, ranks))
