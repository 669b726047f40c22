r"""Work on edges in blocks that stay in the cache, and keep nothing of it for the backward pass.

What an encoder does on an edge is cheap to compute again up to the large matrix products, and
large to keep: 19 coefficients of 256 channels, or 324 grid points of 64, for every edge and layer.
`blockwise` takes a function of rows, applies it to one block of them after the other, and, in the
backward pass, computes each block again. A matrix product at the function's end isn't repeated: its
gradient needs only its input.

    y = blockwise(rotate, (Rows(x, source), Rows(wigner)), (), block=256, product=weights)

gives ``multiply(rotate(x[source], wigner), weights)``. Without `block` that is what is computed, by
plain operations that can be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamm.models.layers import refuse_second_derivative
from lamm.models.so2 import multiply, multiply_backward


class Rows(NamedTuple):
    """One of the function's inputs."""

    values: Tensor
    """(R, ...) a row for each output row, or, with an index, (N, ...)."""
    which: Tensor | None = None
    """(R,) the row of `values` that each output row is made of."""

    def of(self, start: int, stop: int) -> Tensor:
        """The input of rows `start` to `stop` - 1."""
        if self.which is None:
            return self.values[start:stop]
        return self.values.index_select(0, self.which[start:stop])


class Into(NamedTuple):
    """Where the function's outputs are summed up."""

    which: Tensor
    """(R,) the row of the sum that each output row belongs to."""
    size: int
    """Rows of the sum."""


def blockwise(
    function: Callable[..., Tensor],
    rows: Sequence[Rows],
    shared: Sequence[Tensor] = (),
    *,
    block: int | None,
    product: Sequence[Tensor] = (),
    into: Into | None = None,
) -> Tensor:
    """Apply a function to rows.

    Args:
        function: of one tensor for each of `rows`, with a row per output row, and of `shared`; it
            draws no random numbers.
        rows: its inputs by row.
        shared: its other inputs, weights.
        block: output rows that are worked on at a time, and computed again in the backward pass,
            which can then be done once only; None: all, in plain operations.
        product: weights of an SO(2) convolution that the result is multiplied by.
        into: sum the results up.

    Returns:
        (R, ...), or (size, ...) with `into`.
    """
    if block is None:
        values = function(*(one.of(0, _length(rows)) for one in rows), *shared)
        values = multiply(values, product) if product else values
        if into is None:
            return values
        dtype = torch.promote_types(values.dtype, torch.float32)
        total = values.new_zeros((into.size, *values.shape[1:]), dtype=dtype)
        return total.index_add(0, into.which, values.to(dtype))
    plan = _Plan(function, tuple(one.which for one in rows), len(shared), block, into)
    tensors = (*(one.values for one in rows), *shared, *product)
    result: Tensor = _Blockwise.apply(plan, *tensors)  # type: ignore[no-untyped-call]
    return result


def _length(rows: Sequence[Rows]) -> int:
    first = rows[0]
    return len(first.values if first.which is None else first.which)


class _Plan(NamedTuple):
    """All but the tensors that may have gradients."""

    function: Callable[..., Tensor]
    indices: tuple[Tensor | None, ...]
    num_shared: int
    block: int
    into: Into | None

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Rows], list[Tensor], list[Tensor]]:
        """Rows, shared inputs and weights of the product."""
        count = len(self.indices)
        rows = [Rows(one, which) for one, which in zip(tensors, self.indices, strict=False)]
        rest = list(tensors[count:])
        return rows, rest[: self.num_shared], rest[self.num_shared :]

    def blocks(self, rows: Sequence[Rows]) -> list[tuple[int, int]]:
        """First and last + 1 row of each block; one block, empty, where there are no rows."""
        length = _length(rows)
        starts = range(0, max(length, 1), self.block)
        return [(start, min(start + self.block, length)) for start in starts]


class _Blockwise(torch.autograd.Function):
    """`blockwise` with a block: see there."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.plan = plan
        device = tensors[0].device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        rows, shared, product = plan.split(tensors)
        result: Tensor | None = None
        for start, stop in plan.blocks(rows):
            values = plan.function(*(one.of(start, stop) for one in rows), *shared)
            values = multiply(values, product) if product else values
            if plan.into is None:
                if result is None:
                    result = values.new_empty((_length(rows), *values.shape[1:]))
                result[start:stop] = values
            else:
                if result is None:
                    dtype = torch.promote_types(values.dtype, torch.float32)
                    shape = (plan.into.size, *values.shape[1:])
                    result = values.new_zeros(shape, dtype=dtype)
                result.index_add_(0, plan.into.which[start:stop], values.to(result.dtype))
        assert result is not None
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        plan: _Plan = ctx.plan
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        grads = [
            torch.zeros_like(one) if need else None
            for one, need in zip(tensors, needs, strict=True)
        ]
        rows, shared, product = plan.split(tensors)
        row_grads = grads[: len(rows)]
        shared_grads = grads[len(rows) : len(rows) + len(shared)]
        product_grads = grads[len(rows) + len(shared) :]
        leaves = [_leaf(one, need) for one, need in zip(shared, needs[len(rows) :], strict=False)]
        with torch.autocast(**ctx.autocast):
            for start, stop in plan.blocks(rows):
                inputs = [
                    _leaf(one.of(start, stop), need) for one, need in zip(rows, needs, strict=False)
                ]
                with torch.enable_grad():
                    values = plan.function(*inputs, *leaves)
                if plan.into is None:
                    d_values = grad[start:stop]
                else:
                    d_values = grad.index_select(0, plan.into.which[start:stop])
                if product:
                    with torch.no_grad():
                        d_values = multiply_backward(
                            values.detach(), product, d_values, product_grads
                        )
                wanted = [one for one in (*inputs, *leaves) if one.requires_grad]
                if not wanted:
                    continue
                parts = iter(torch.autograd.grad(values, wanted, d_values.to(values.dtype)))
                for one, total, given in zip(rows, row_grads, inputs, strict=True):
                    if total is not None and given.requires_grad:
                        part = next(parts)
                        if one.which is None:
                            total[start:stop] = part
                        else:
                            total.index_add_(0, one.which[start:stop], part)
                _add([one for one in shared_grads if one is not None], list(parts))
        return (None, *grads)


def _leaf(tensor: Tensor, needs_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_(needs_grad)


def _add(totals: Sequence[Tensor | None], parts: Sequence[Tensor]) -> None:
    for total, part in zip(totals, parts, strict=True):
        if total is not None:
            total.add_(part)
