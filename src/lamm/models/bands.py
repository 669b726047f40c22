r"""Products with Gaussians of the distance, of which an edge meets only a few.

A Gaussian that is many standard deviations away from a distance is zero to rounding. With edges in
order of their distance, a block of them meets one narrow band of the Gaussians, and a product with
all of them, of 128 in PaiNN and 600 in EquiformerV2, costs no more than one with that band.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lamm.models.layers import refuse_second_derivative

REACH = {torch.float64: 9}
"""Standard deviations beyond which a Gaussian is below rounding; 7 in lower precision."""

BLOCK = 128
"""Edges of a band in `sort_radial`."""


class Band(NamedTuple):
    """A block of rows of like distance, and the Gaussians that it meets."""

    start: int
    stop: int
    """First and last + 1 row."""
    low: int
    high: int
    """First and last + 1 Gaussian."""


def find_bands(steps: Tensor, num_radial: int, width: float, block: int) -> tuple[Band, ...]:
    """Cut rows into bands.

    Args:
        steps: (R,) distances in units of the spacing of the Gaussians' centres, ascending.
        num_radial: K.
        width: standard deviation of the Gaussians in the same unit.
        block: rows of a band.
    """
    reach = int(REACH.get(steps.dtype, 7) * width)
    bands = []
    for start in range(0, len(steps), block):
        stop = min(start + block, len(steps))
        low = min(max(int(steps[start]) - reach, 0), num_radial - 1)
        high = min(int(steps[stop - 1]) + reach + 2, num_radial)
        bands.append(Band(start, stop, low, max(high, low + 1)))
    return tuple(bands)


class Radial(NamedTuple):
    """Gaussians of the edges' distances, in order of the distance where there are bands."""

    values: Tensor
    """(E, K)."""
    rank: Tensor | None = None
    """(E,) the row of `values` that belongs to each edge."""
    bands: tuple[Band, ...] = ()


def sort_radial(values: Tensor, steps: Tensor, width: float) -> Radial:
    """Put Gaussians in order of the distance, for `radial_product`.

    Args:
        values: (E, K).
        steps: (E,) distances in units of the spacing of the centres.
        width: standard deviation of the Gaussians in the same unit.
    """
    steps, order = steps.detach().sort(stable=True)
    bands = find_bands(steps, values.shape[1], width, BLOCK)
    return Radial(values.index_select(0, order), order.argsort(), bands)


def radial_product(radial: Radial, weight: Tensor) -> Tensor:
    """Multiply by a matrix (outputs, K): (E, outputs), a row for each edge."""
    if radial.rank is None:
        return functional.linear(radial.values, weight)
    product: Tensor = _BandedProduct.apply(  # type: ignore[no-untyped-call]
        radial.values, weight, radial.bands
    )
    return product.index_select(0, radial.rank)


class _BandedProduct(torch.autograd.Function):
    """The product with zeros left out; it can be differentiated once."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bands: tuple[Band, ...]) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.bands = bands
        result = values.new_empty(len(values), len(weight))
        table = weight.detach().T.contiguous()  # (K, outputs)
        with torch.autocast(values.device.type, enabled=False):
            for start, stop, low, high in bands:
                result[start:stop] = values[start:stop, low:high] @ table[low:high]
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        values, weight = ctx.saved_tensors
        d_values = torch.zeros_like(values) if ctx.needs_input_grad[0] else None
        d_table = torch.zeros_like(weight.T)
        with torch.autocast(values.device.type, enabled=False):
            for start, stop, low, high in ctx.bands:
                rows = grad[start:stop]
                d_table[low:high].addmm_(values[start:stop, low:high].T, rows)
                if d_values is not None:
                    d_values[start:stop, low:high] = rows @ weight[:, low:high]
        return d_values, d_table.T, None
