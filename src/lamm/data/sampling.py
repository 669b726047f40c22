"""Temperature sampling and the endless streams that it draws from (Sec. 3.1).

The largest subset is used once per epoch; the others are repeated so that a subset's share grows
with the power 1/T of its size. A subset is an endless stream of passes over its structures, each
pass a fresh random order. An epoch goes on where the last one stopped, so over any horizon each
structure of a subset is used equally often to within one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
from jaxtyping import Int, Int32, Int64, Integer
from pydantic import PositiveFloat

from lamm.keyed import hash64, permute
from lamm.schema import Frozen


class SamplingConfig(Frozen):
    """How often each subset of the joint data set is used."""

    temperature: PositiveFloat = 2.0
    """Exponent 1/T on subset sizes (Sec. 3.1); 1 keeps the sizes, large T evens them out."""


def temperature_sizes(
    sizes: Sequence[int] | Integer[np.ndarray, " subsets"],
    temperature: float,
    weights: Sequence[float] | None = None,
) -> Int64[np.ndarray, " subsets"]:
    r"""How many structures of each subset an epoch uses (Sec. 3.1, Table 2's last column).

    .. math:: N_i' = w_i N_{\max} \left( N_i / N_{\max} \right)^{1/T}

    rounded to whole structures, at least one of a subset that isn't empty. Decimal arithmetic makes
    the rounding the same on every machine.

    Args:
        sizes: structures in each subset, N_i.
        temperature: T.
        weights: w_i, a factor on the uses of each subset; 1 where left out, as in the paper.

    Returns:
        N_i' of each subset; the largest keeps its size by T alone, an empty one stays empty.
    """
    counts = [int(size) for size in sizes]
    largest = max(counts, default=0)
    factors = [1.0] * len(counts) if weights is None else weights
    with localcontext() as context:
        context.prec = 50
        exponent = 1 / Decimal(str(temperature))
        used = [
            max(1, round(largest * (Decimal(count) / largest) ** exponent * Decimal(str(factor))))
            if count
            else 0
            for count, factor in zip(counts, factors, strict=True)
        ]
    return np.array(used, dtype=np.int64)


@dataclass(frozen=True)
class SubsetStream:
    """The structures of one subset in pass after pass, each pass in a keyed random order."""

    size: int
    """Structures in the subset, N_i."""
    key: int
    """Which stream; `lamm.keyed.key_of` makes one from the seed and the subset."""

    def at(
        self, positions: Integer[np.ndarray, " uses"]
    ) -> tuple[Int[np.ndarray, " uses"], Int32[np.ndarray, " uses"]]:
        """The structures at some places of the stream.

        Args:
            positions: places, counted from the start of the first epoch, in any order.

        Returns:
            The number of each structure within the subset, and the pass that the use belongs to.
        """
        if len(positions) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
        if self.size == 0:
            raise ValueError(f"{len(positions)} structures asked of a subset that has none.")
        passes, places = np.divmod(np.asarray(positions, dtype=np.int64), self.size)
        if passes.min() == passes.max():
            pass_key = hash64(passes[:1], self.key)
            return permute(places, self.size, int(pass_key[0])), passes.astype(np.int32)
        return permute(places, self.size, hash64(passes, self.key)), passes.astype(np.int32)

    def draw(
        self, start: int, count: int
    ) -> tuple[Int[np.ndarray, " uses"], Int32[np.ndarray, " uses"]]:
        """The next `count` structures from place `start` on; see `at`."""
        return self.at(np.arange(start, start + count))
