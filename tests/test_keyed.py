import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamm.keyed import hash64, key_of, permutation, permute, shuffled

KEYS = st.integers(0, 2**64 - 1)


def test_parts_of_a_key_are_kept_apart():
    parts = [("a", "bc"), ("ab", "c"), ("a", "b", "c"), ("abc",), (1, 2), (12,), ("1", 2), (1, "2")]
    assert len({key_of(*each) for each in parts}) == len(parts)
    assert all(0 <= key_of(*each) < 2**64 for each in parts)


def test_the_hash_is_the_published_generator():
    # First outputs for the seed 1234567 of Vigna's public-domain splitmix64.c.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert hash64(np.arange(1, 6), 1234567).tolist() == expected


def test_the_hash_takes_one_key_per_value():
    keys = np.array([3, 2**63 + 5], dtype=np.uint64)
    one_by_one = [hash64(np.array([7]), int(key))[0] for key in keys]
    assert hash64(np.array([7, 7]), keys).tolist() == one_by_one


@given(size=st.integers(0, 3000), key=KEYS)
def test_every_number_stands_at_one_position(size, key):
    order = permutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(order), np.arange(size))


@given(size=st.integers(1, 2**61), key=KEYS, start=st.integers(0, 2**61))
@settings(max_examples=50)
def test_positions_of_a_huge_order_are_found_alone(size, key, start):
    positions = np.unique((start + np.arange(50)) % size)
    together = permutation(size, key)(positions)
    alone = [int(permutation(size, key)(positions[i : i + 1])[0]) for i in range(len(positions))]
    assert together.tolist() == alone
    assert len(set(alone)) == len(positions)
    assert together.min() >= 0
    assert together.max() < size


def test_each_position_can_have_its_own_order():
    keys = hash64(np.arange(100) % 3, 5)
    positions = np.arange(100) % 17
    mixed = permute(positions, 17, keys)
    for key in np.unique(keys):
        chosen = keys == key
        assert np.array_equal(mixed[chosen], permute(positions[chosen], 17, int(key)))


@pytest.mark.parametrize("kind", ["permute", "shuffled"])
def test_every_number_is_equally_likely_at_every_position(kind):
    size, draws = 7, 7000
    keys = hash64(np.arange(draws), key_of("draws"))
    positions = np.tile(np.arange(size), draws)
    if kind == "permute":
        numbers = permute(positions, size, np.repeat(keys, size))
    else:
        numbers = np.concatenate([shuffled(size, int(key)) for key in keys])
    counts = np.bincount(positions * size + numbers, minlength=size**2)
    chi2 = ((counts - draws / size) ** 2 / (draws / size)).sum()
    assert chi2 < 75  # 36 degrees of freedom, p = 1e-4 at 75.6


def test_an_order_too_long_for_the_hash_is_refused():
    with pytest.raises(ValueError, match="at most"):
        permutation(2**62, 1)(np.arange(3))
