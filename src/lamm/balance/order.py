"""Stable sorting of many integers, 16 bits at a time."""

import numpy as np
from jaxtyping import Int, Integer


def stable_order(values: Integer[np.ndarray, "*rows n"]) -> Int[np.ndarray, "*rows n"]:
    """The order that sorts integers along the last axis, ties in the order that they come in.

    The same as ``np.argsort(values, axis=-1, kind="stable")``. NumPy counts 16-bit integers instead
    of comparing them, so numbers with a range of up to 32 bits are sorted by their low and then by
    their high half.
    """
    if values.size == 0:
        return np.argsort(values, axis=-1, kind="stable")
    lowest = int(values.min())
    span = int(values.max()) - lowest
    if span >= 2**32:
        return np.argsort(values, axis=-1, kind="stable")
    above = (values - lowest).astype(np.uint32)
    order = np.argsort((above & np.uint32(0xFFFF)).astype(np.uint16), axis=-1, kind="stable")
    if span < 2**16:
        return order
    high = np.take_along_axis((above >> np.uint32(16)).astype(np.uint16), order, axis=-1)
    sorted_order: Int[np.ndarray, "*rows n"] = np.take_along_axis(
        order, np.argsort(high, axis=-1, kind="stable"), axis=-1
    )
    return sorted_order
