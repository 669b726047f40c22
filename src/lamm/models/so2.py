r"""SO(2) convolution: the linear maps that commute with rotations about an edge.

In the edge's frame the coefficients of orders m and -m are a complex number. What commutes with a
rotation about the edge multiplies it by another, for every pair of degrees and channels:

.. math::

    y_{+m} = W^r_m x_{+m} - W^i_m x_{-m}, \quad y_{-m} = W^r_m x_{-m} + W^i_m x_{+m},
    \quad y_0 = W_0 x_0 + b

S. Passaro and C. L. Zitnick, ICML 2023, https://arxiv.org/abs/2302.03655, Sec. 4. The complex
product takes three real ones instead of four, after Gauss:

.. math::

    k = W^r (x_+ + x_-), \quad y_+ = k - (W^r + W^i) x_-, \quad y_- = k + (W^i - W^r) x_+

`multiply` is the map, and `multiply_backward` its gradient, written out so that the caller may
throw the input away and compute it again (`lamm.models.blockwise`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lamm.models.so3 import Layout


class SO2Convolution(nn.Module):
    """Weights of the convolution: a matrix for m = 0, and a complex one for each m > 0."""

    def __init__(self, inputs: int, outputs: int, layout: Layout, extra: int = 0) -> None:
        """Make the weights.

        Args:
            inputs: channels of each input coefficient.
            outputs: channels of each output coefficient.
            layout: the coefficients.
            extra: further invariant outputs, made of m = 0 alone.
        """
        super().__init__()
        self.inputs, self.outputs, self.layout, self.extra = inputs, outputs, layout, extra
        degrees = layout.l_max + 1
        self.zero = nn.Linear(degrees * inputs, extra + degrees * outputs)
        nonzero = [
            nn.Linear(layout.count(m) * inputs, 2 * layout.count(m) * outputs, bias=False)
            for m in range(1, layout.m_max + 1)
        ]
        with torch.no_grad():
            for layer in nonzero:  # each of its outputs is the sum of two products
                layer.weight.mul_(1 / math.sqrt(2))
        self.nonzero = nn.ModuleList(nonzero)

    def weights(self, degree: int | None = None) -> list[Tensor]:
        r"""What `multiply` takes: b, W_0, then W^r, W^r + W^i and W^i - W^r for each m > 0.

        Args:
            degree: leave out the outputs of all other degrees, and orders that it hasn't.
        """
        top: list[Tensor] = [self.zero.bias, self.zero.weight]
        pairs = [tuple(weight.chunk(2)) for weight in self.nonzero.parameters()]
        if degree is not None:
            first = self.extra + degree * self.outputs
            top = [torch.cat((one[: self.extra], one[first:][: self.outputs])) for one in top]
            pairs = [
                (self._rows(real, degree, m), self._rows(imaginary, degree, m))
                for m, (real, imaginary) in enumerate(pairs[:degree], start=1)
            ]
        weights = top
        for real, imaginary in pairs:
            weights += [real, real + imaginary, imaginary - real]
        return weights

    def _rows(self, weight: Tensor, degree: int, m: int) -> Tensor:
        """The rows of a matrix of order m that make one degree."""
        return weight.narrow(0, (degree - m) * self.outputs, self.outputs)


def multiply(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Apply the convolution.

    Args:
        x: (E, M' inputs) the coefficients in the order of their `Layout`, channels last; orders
            beyond those of `weights` are passed over.
        weights: of `SO2Convolution.weights`.

    Returns:
        (E, extra + M' outputs) the extra scalars, then the coefficients in the same order.
    """
    bias, zero = weights[:2]
    start = zero.shape[1]
    parts = [functional.linear(x[:, :start], zero, bias)]
    for real, total, difference in _triples(weights):
        plus, minus = _signs(x, start, real.shape[1])
        shared = (plus + minus) @ real.T
        parts += [shared - minus @ total.T, shared + plus @ difference.T]
        start += 2 * real.shape[1]
    return torch.cat(parts, dim=1)


def multiply_backward(
    x: Tensor, weights: Sequence[Tensor], grad: Tensor, totals: Sequence[Tensor | None]
) -> Tensor:
    """Gradients of `multiply` by its input and by its weights.

    Args:
        x: (E, M' inputs) its input.
        weights: its weights.
        grad: (E, extra + M' outputs) of its output.
        totals: the weights' gradients are added to these, where there are any.

    Returns:
        (E, M' inputs) of the input.
    """
    zero = weights[1]
    start, place = zero.shape[1], zero.shape[0]
    d_zero = grad[:, :place]
    if totals[0] is not None:
        totals[0].add_(d_zero.sum(dim=0))
    _add_product(totals[1], d_zero, x[:, :start])
    parts = [d_zero @ zero]
    for number, (real, total, difference) in enumerate(_triples(weights)):
        height, width = real.shape
        plus, minus = _signs(x, start, width)
        d_plus, d_minus = _signs(grad, place, height)
        both = d_plus + d_minus
        shared = both @ real
        parts += [shared + d_minus @ difference, shared - d_plus @ total]
        of_real, of_total, of_difference = totals[2 + 3 * number : 5 + 3 * number]
        _add_product(of_real, both, plus + minus)
        _add_product(of_total, d_plus, minus, -1)
        _add_product(of_difference, d_minus, plus)
        start, place = start + 2 * width, place + 2 * height
    if start < x.shape[1]:
        parts.append(parts[0].new_zeros(len(x), x.shape[1] - start))
    return torch.cat(parts, dim=1)


def _triples(weights: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The three matrices of each m > 0."""
    return zip(weights[2::3], weights[3::3], weights[4::3], strict=True)


def _signs(x: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Columns of +m and of -m, `width` each, from column `start` on."""
    return x[:, start : start + width], x[:, start + width : start + 2 * width]


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, sign: int = 1) -> None:
    """Add sign left^T right to the total."""
    if total is None:
        return
    if left.dtype == right.dtype == total.dtype:
        with torch.autocast(total.device.type, enabled=False):
            total.addmm_(left.T, right, alpha=sign)
    else:
        total.add_(left.T @ right, alpha=sign)
