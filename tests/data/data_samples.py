"""Structures that the tests of the data modules share."""

from pathlib import Path

import numpy as np

from lamm.structure import Structure

FILES = Path(__file__).parent / "files"


def some_structures(count: int, seed: int = 0) -> list[Structure]:
    """Structures of every kind: with and without cell, labels, fixed atoms and split."""
    rng = np.random.default_rng(seed)
    structures = []
    for number in range(count):
        n = int(rng.integers(1, 9))
        periodic = number % 3 == 0
        structures.append(
            Structure(
                atomic_numbers=rng.choice([1, 6, 8, 29], n).astype(np.uint8),
                positions=rng.uniform(0, 6, (n, 3)),
                cell=np.diag([6.0, 7.0, 8.0]) if periodic else np.zeros((3, 3)),
                pbc=np.array([periodic, periodic, number % 2 == 0 and periodic]),
                energy=float(rng.normal(-1e5, 1.0)) if number % 4 else None,
                forces=rng.normal(0, 1, (n, 3)).astype(np.float32) if number % 5 else None,
                stress=rng.normal(0, 1, 6) if number % 6 == 0 else None,
                fixed=rng.random(n) < 0.5 if number % 7 == 0 else None,
                id=f"structure {number}",
                origin=f"made:{number}",
                split=(None, "train", "val", "test")[number % 4],
            )
        )
    return structures


def assert_same(found: Structure, expected: Structure) -> None:
    """Every entry alike; forces are stored in float32."""
    for name in ("atomic_numbers", "positions", "cell", "pbc", "forces", "stress", "fixed"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == (np.float32 if name == "forces" else other.dtype), name
            np.testing.assert_array_equal(one, other.astype(one.dtype), err_msg=name)
    for name in ("energy", "id", "origin", "split"):
        assert getattr(found, name) == getattr(expected, name), name
