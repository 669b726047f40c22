import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lamm.balance.columns import (
    Coarse,
    Column,
    Joined,
    as_array,
    coarse_codes,
    coarse_shift,
    compact_mask,
    constant,
    moved,
    picked,
    places_where,
)
from lamm.errors import DataError

MASKS = arrays(bool, st.integers(1, 200))


@given(MASKS)
def test_places_of_a_mask_are_those_of_numpy(mask):
    places = places_where(mask)
    assert as_array(places).tolist() == np.flatnonzero(mask).tolist()
    assert len(places) == mask.sum()
    assert as_array(moved(places, 7)).tolist() == (np.flatnonzero(mask) + 7).tolist()
    backwards = np.arange(len(places))[::-1].reshape(1, -1)
    assert places[backwards].tolist() == [np.flatnonzero(mask)[::-1].tolist()]


def test_only_what_is_missing_is_stored():
    mask = np.ones(100_000, dtype=bool)
    mask[::100] = False
    column = places_where(mask)
    assert isinstance(column, Column)
    stored = sum(value.nbytes for value in vars(column).values() if isinstance(value, np.ndarray))
    assert stored == 4 * 1000


@given(MASKS, st.booleans())
def test_values_of_some_rows(mask, alike):
    values = constant(True, len(mask)) if alike else np.arange(len(mask)) % 3 == 0
    column = picked(values, places_where(mask))
    assert as_array(column).tolist() == values[mask].tolist()


def test_a_mask_that_agrees_takes_one_byte():
    assert compact_mask(np.ones(1000, dtype=bool)).strides == (0,)
    assert not compact_mask(np.zeros(1000, dtype=bool)).any()
    mixed = np.arange(10) > 4
    assert compact_mask(mixed) is mixed


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 2**32))
def test_pieces_follow_one_another(sizes, seed):
    pieces = [np.full(size, number, dtype=np.uint16) for number, size in enumerate(sizes)]
    column = Joined(pieces)
    whole = np.concatenate(pieces)
    assert len(column) == len(whole)
    if len(whole):
        places = np.random.default_rng(seed).integers(0, len(whole), (3, 4))
        assert (column[places] == whole[places]).all()
        assert column[places].dtype == np.uint16


@given(arrays(np.int64, 20, elements=st.integers(1, 10**7)))
def test_coarse_integers_are_off_by_half_a_step_at_most(values):
    shift = coarse_shift(int(values.max()))
    column = Coarse(coarse_codes(values, shift), shift)
    assert (as_array(column) >= 1).all()
    assert (np.abs(as_array(column) - values) <= np.maximum(2**shift / 2, 2**shift - values)).all()
    assert values.max() > 2**16 - 1 or (as_array(column) == values).all()


@pytest.mark.parametrize(
    ("largest", "shift"), [(1, 0), (65_535, 0), (65_536, 1), (131_070, 1), (131_071, 2)]
)
def test_the_shift_leaves_sixteen_bits_after_rounding(largest, shift):
    assert coarse_shift(largest) == shift
    assert coarse_codes(np.array([largest]), shift)[0] <= 65_535


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="70000 shortened by 0 bits"):
        coarse_codes(np.array([1, 70_000]), 0)
