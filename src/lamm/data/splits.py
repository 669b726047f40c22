"""Training, validation and test structures (Sec. 3.1: 99/1 where the source has no split)."""

import hashlib

import numpy as np
from jaxtyping import UInt8, UInt64

from lamm.errors import ConfigError, DataError, nearest_names

NONE, TRAIN, VAL, TEST = 0, 1, 2, 3
SPLIT_CODES = {"train": TRAIN, "val": VAL, "test": TEST}
"""The number that stands for each split in an index; 0 is for none."""
SPELLINGS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""How sources write the splits."""
_ROWS = 1 << 16


def split_named(
    what: str,
    text: str,
    advice: str = "Name another key under `keys.split` in the card, or `none` to ignore it.",
) -> str:
    """'train', 'val' or 'test' of what a source writes.

    Args:
        what: where it stands, for a message.
        text: what stands there, in capitals or not.
        advice: what to do about another word.

    Raises:
        DataError: it is none of `SPELLINGS`.
    """
    if text.lower() not in SPELLINGS:
        raise DataError(f"{what} is {text!r}. {nearest_names(text.lower(), SPELLINGS)}\n  {advice}")
    return SPELLINGS[text.lower()]


def hash_id(structure_id: str) -> int:
    """The 64-bit number (BLAKE2b) that stands for a structure's id in splits and noise."""
    digest = hashlib.blake2b(structure_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def assign_splits(
    id_hash: UInt64[np.ndarray, " structures"],
    source_split: UInt8[np.ndarray, " structures"],
    val_fraction: float = 0.01,
    test_fraction: float = 0.0,
) -> UInt8[np.ndarray, " structures"]:
    """The split of each structure: what its source says, else by the hash of its id.

    A structure's split depends on nothing but its own id, so new data never moves old structures,
    and a larger fraction keeps what a smaller one had chosen.

    Args:
        id_hash: `hash_id` of each structure.
        source_split: 0 none, 1 train, 2 val, 3 test.
        val_fraction: share of the structures without a split that is for validation.
        test_fraction: share that is for testing.

    Returns:
        1 train, 2 val, 3 test.

    Raises:
        ConfigError: a negative share, or nothing left for training.
    """
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction}: expected shares of at "
            "least 0 that leave something for training."
        )
    split = source_split.copy()
    for first in range(0, len(split), _ROWS):  # little memory, however many there are
        part = slice(first, first + _ROWS)
        place = id_hash[part].astype(np.float64) / 2.0**64  # uniform in [0, 1]
        by_hash = np.full(len(place), TRAIN, dtype=np.uint8)
        if test_fraction > 0.0:  # else even a hash that rounds to 1 is for training
            by_hash[place >= 1.0 - test_fraction] = TEST
        by_hash[place < val_fraction] = VAL
        unsaid = split[part] == NONE
        split[part][unsaid] = by_hash[unsaid]
    return split
