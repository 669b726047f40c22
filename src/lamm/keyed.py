"""Numbers that look random and are a function of a key: the same bits on any machine.

Plans and noise must not depend on a library's generator, whose stream may change with its version,
nor on how many processes share the work. So every "random" choice is a hash of what it is for:
`key_of` turns words and numbers into a key, `hash64` turns a key and counters into 64-bit numbers,
`permutation` and `shuffled` turn a key into an order.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 6
_MAX_SIZE = 2**62


def key_of(*parts: int | str) -> int:
    """A 64-bit key (BLAKE2b) of a sequence of words and numbers.

    The parts are kept apart: ``key_of("a", "bc")``, ``key_of("ab", "c")`` and ``key_of("a", "b",
    "c")`` differ, and so do ``key_of(1)`` and ``key_of("1")``.

    Args:
        parts: what the key is for, for instance ``"stream", seed, subset``.

    Returns:
        An integer from 0 to 2**64 - 1.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = part if isinstance(part, str) else str(int(part))
        encoded = text.encode()
        kind = "s" if isinstance(part, str) else "i"
        digest.update(f"{kind}{len(encoded)}:".encode() + encoded)
    return int.from_bytes(digest.digest(), "little")


def hash64(
    values: Integer[np.ndarray, "*shape"], key: int | UInt64[np.ndarray, "*shape"]
) -> UInt64[np.ndarray, "*shape"]:
    """Number `values` of the SplitMix64 generator whose state starts at `key` (Steele et al. 2014).

    Args:
        values: counters; an array of one dimension or more.
        key: one key for all counters, or one for each.

    Returns:
        For each counter a number from 0 to 2**64 - 1.
    """
    state = np.asarray(values).astype(np.uint64)
    state *= _GOLDEN
    state += np.uint64(key) if isinstance(key, int) else key
    state ^= state >> np.uint64(30)
    state *= _MIX_1
    state ^= state >> np.uint64(27)
    state *= _MIX_2
    state ^= state >> np.uint64(31)
    return state


def permute(
    positions: Integer[np.ndarray, " n"], size: int, key: int | UInt64[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """What stands at each position of a keyed pseudo-random order of 0 ... size - 1.

    A Feistel network on pairs (row, column) with rows x columns just above `size`: in turn a hash
    of the column is added to the row, and a hash of the row to the column. That maps the pairs one
    to one, whatever the hash. A result past the end is mapped again until it is inside (cycle
    walking), which keeps the map one to one. Nothing is stored; each position costs the same.

    Args:
        positions: places in the order, from 0 to size - 1.
        size: how many things there are.
        key: which order; one key for all positions, or one for each.

    Returns:
        For each position a number from 0 to size - 1, int64.
    """
    if size >= _MAX_SIZE:
        raise ValueError(f"permutation of {size} things; at most {_MAX_SIZE} can be permuted.")
    if size <= 1 or len(positions) == 0:
        return np.zeros(len(positions), dtype=np.int64)
    columns = math.isqrt(size - 1) + 1  # the root, rounded up
    rows = -(-size // columns)
    result = _feistel(positions.astype(np.uint64), rows, columns, key)
    outside = np.flatnonzero(result >= np.uint64(size))
    while len(outside):
        some_keys = key if isinstance(key, int) else key[outside]
        again = _feistel(result[outside], rows, columns, some_keys)
        result[outside] = again
        outside = outside[again >= np.uint64(size)]
    return result.astype(np.int64)


def _feistel(
    positions: UInt64[np.ndarray, " n"],
    rows: int,
    columns: int,
    key: int | UInt64[np.ndarray, " n"],
) -> UInt64[np.ndarray, " n"]:
    sizes = np.uint64(rows), np.uint64(columns)
    halves = list(np.divmod(positions, sizes[1]))
    for number in range(_ROUNDS):
        changed, other = number % 2, 1 - number % 2
        # The round's number stands in bits that a row or column below 2**31 leaves free.
        mixed = hash64(halves[other] + np.uint64(number << 40), key)
        mixed >>= np.uint64(32)
        mixed *= sizes[changed]
        mixed >>= np.uint64(32)  # uniform below sizes[changed]
        mixed += halves[changed]
        mixed -= sizes[changed] * (mixed >= sizes[changed])
        halves[changed] = mixed
    paired: UInt64[np.ndarray, " n"] = halves[0] * sizes[1] + halves[1]
    return paired


@dataclass(frozen=True)
class FeistelPermutation:
    """A pseudo-random order of 0 ... size - 1 with access to any position; see `permute`."""

    size: int
    key: int

    def __call__(self, positions: Integer[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """What stands at each of the given positions."""
        return permute(positions, self.size, self.key)


def permutation(size: int, key: int) -> FeistelPermutation:
    """The order of 0 ... size - 1 that a key stands for, without storing it."""
    return FeistelPermutation(size, key)


def shuffled(size: int, key: int) -> Int[np.ndarray, " size"]:
    """0 ... size - 1 in a keyed random order, all of it: every order is equally likely."""
    order: Int[np.ndarray, " size"] = np.argsort(hash64(np.arange(size), key), kind="stable")
    return order
