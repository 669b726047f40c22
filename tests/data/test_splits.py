"""A structure's split is its source's, or follows from its own id."""

import numpy as np
import pytest

from lamm.data.splits import TEST, TRAIN, VAL, assign_splits, hash_id
from lamm.errors import ConfigError

IDS = np.array([hash_id(f"structure {number}") for number in range(20_000)], dtype=np.uint64)
NOTHING = np.zeros(len(IDS), dtype=np.uint8)


def test_the_hash_of_an_id_is_blake2b() -> None:
    # RFC 7693 with digest size 8, computed by `b2sum --length 64`.
    assert hash_id("abc") == int.from_bytes(bytes.fromhex("d8bb14d833d59559"), "little")


def test_one_percent_is_for_validation() -> None:
    split = assign_splits(IDS, NOTHING)
    assert set(split.tolist()) == {TRAIN, VAL}
    assert 0.008 < np.mean(split == VAL) < 0.012


def test_shares_are_what_was_asked_for() -> None:
    split = assign_splits(IDS, NOTHING, val_fraction=0.2, test_fraction=0.1)
    shares = np.bincount(split, minlength=4) / len(split)
    np.testing.assert_allclose(shares, [0, 0.7, 0.2, 0.1], atol=0.01)


def test_the_source_is_believed() -> None:
    source = NOTHING.copy()
    source[:3] = VAL, TEST, TRAIN
    assert assign_splits(IDS, source)[:3].tolist() == [VAL, TEST, TRAIN]


def test_new_data_moves_nothing() -> None:
    before = assign_splits(IDS[:1000], NOTHING[:1000], 0.1, 0.1)
    order = np.random.default_rng(0).permutation(len(IDS))
    after = np.empty_like(NOTHING)
    after[order] = assign_splits(IDS[order], NOTHING, 0.1, 0.1)
    np.testing.assert_array_equal(after[:1000], before)


def test_a_larger_share_keeps_what_a_smaller_one_chose() -> None:
    small = assign_splits(IDS, NOTHING, 0.05, 0.05)
    large = assign_splits(IDS, NOTHING, 0.2, 0.2)
    assert (large[small == VAL] == VAL).all()
    assert (large[small == TEST] == TEST).all()


def test_the_largest_hash_is_for_training() -> None:
    last = np.array([2**64 - 1], dtype=np.uint64)
    assert assign_splits(last, np.zeros(1, dtype=np.uint8)).tolist() == [TRAIN]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.0), (1.0, 0.0)])
def test_something_must_be_left_for_training(shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="leave something for training"):
        assign_splits(IDS, NOTHING, *shares)
