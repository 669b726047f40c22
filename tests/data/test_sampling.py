import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamm.data.sampling import SamplingConfig, SubsetStream, temperature_sizes

# Table 2 of the paper: structures, and structures with temperature sampling, in millions.
TABLE_2 = {
    "OC20": (134, 134),
    "OC22": (8.2, 33),
    "ODAC23": (29, 63),
    "Transition1x": (9.5, 36),
    "QM7-X": (4.2, 24),
    "QMugs": (2.0, 16),
    "PubChem3D": (94, 112),
    "OC20 IS2RE": (0.46, 7.9),
    "OC22 IS2RE": (0.046, 2.5),
    "ODAC23 IS2RE": (0.132, 4.2),
}


def test_temperature_2_gives_table_2():
    sizes = [round(size * 1e6) for size, _ in TABLE_2.values()]
    used = temperature_sizes(sizes, 2.0) / 1e6
    for name, ours, (_, published) in zip(TABLE_2, used, TABLE_2.values(), strict=True):
        tolerance = 0.05 if published < 10 else 0.8  # the table has two or three digits
        assert ours == pytest.approx(published, abs=tolerance), name


def test_weights_multiply_what_the_sizes_give():
    assert temperature_sizes([400, 100], 2.0).tolist() == [400, 200]
    assert temperature_sizes([400, 100], 2.0, [1.0, 0.25]).tolist() == [400, 50]
    assert temperature_sizes([400, 100], 2.0, [2.0, 1e-6]).tolist() == [800, 1]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12))
def test_temperature_1_keeps_the_sizes(sizes):
    assert temperature_sizes(sizes, 1.0).tolist() == sizes


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12), st.floats(0.2, 100))
def test_the_largest_subset_is_used_once_and_an_empty_one_not_at_all(sizes, temperature):
    used = temperature_sizes(sizes, temperature)
    assert used[int(np.argmax(sizes))] == max(sizes)
    assert used.max() == max(sizes)
    assert [bool(count) for count in used] == [size > 0 for size in sizes]


def test_a_high_temperature_evens_the_subsets_out():
    assert temperature_sizes([1000, 10, 1], 1e6).tolist() == [1000, 1000, 1000]


def test_the_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature"):
        SamplingConfig(temperature=0)


@given(size=st.integers(1, 50), start=st.integers(0, 500), count=st.integers(0, 200))
def test_a_stretch_of_a_stream_is_its_places(size, start, count):
    stream = SubsetStream(size, key=3)
    local, passes = stream.draw(start, count)
    whole, whole_passes = stream.draw(0, start + count)
    assert np.array_equal(local, whole[start:])
    assert np.array_equal(passes, whole_passes[start:])
    assert np.array_equal(passes, np.arange(start, start + count) // size)


@given(size=st.integers(1, 40), count=st.integers(0, 300))
def test_over_any_horizon_structures_are_used_equally_often(size, count):
    local, _ = SubsetStream(size, key=9).draw(0, count)
    uses = np.bincount(local, minlength=size)
    assert uses.max() - uses.min() <= 1


def test_each_pass_has_an_order_of_its_own():
    local, _ = SubsetStream(100, key=1).draw(0, 500)
    orders = {tuple(order) for order in local.reshape(5, 100)}
    assert len(orders) == 5
    assert not np.array_equal(local, SubsetStream(100, key=2).draw(0, 500)[0])


def test_a_subset_of_one_is_used_again_and_again():
    local, passes = SubsetStream(1, key=1).draw(5, 3)
    assert local.tolist() == [0, 0, 0]
    assert passes.tolist() == [5, 6, 7]


def test_an_empty_subset_has_nothing_to_draw():
    assert len(SubsetStream(0, key=1).draw(0, 0)[0]) == 0
    with pytest.raises(ValueError, match="none"):
        SubsetStream(0, key=1).draw(0, 1)
