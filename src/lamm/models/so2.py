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
from collections.abc import Sequence

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
        self.nonzero = nn.ModuleList(
            nn.Linear(layout.count(m) * inputs, 2 * layout.count(m) * outputs, bias=False)
            for m in range(1, layout.m_max + 1)
        )
        with torch.no_grad():
            for layer in self.nonzero:  # each of its outputs is the sum of two products
                layer.weight.mul_(1 / math.sqrt(2))

    def weights(self, degree: int | None = None) -> list[Tensor]:
        """Bias, W_0, then real and imaginary part for each m > 0, as `multiply` takes them.

        Args:
            degree: leave out the outputs of all other degrees, and orders that it hasn't.
        """
        zero, bias = self.zero.weight, self.zero.bias
        pairs = [layer.weight.chunk(2) for layer in self.nonzero]
        if degree is not None:
            first = self.extra + degree * self.outputs
            keep = [*range(self.extra), *range(first, first + self.outputs)]
            rows = torch.tensor(keep, device=zero.device)
            zero, bias = zero.index_select(0, rows), bias.index_select(0, rows)
            pairs = [
                (self._rows(real, degree, m), self._rows(imaginary, degree, m))
                for m, (real, imaginary) in enumerate(pairs[:degree], start=1)
            ]
        return [bias, zero, *(part for pair in pairs for part in pair)]

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
    for real, imaginary in zip(weights[2::2], weights[3::2], strict=True):
        width = real.shape[1]
        plus, minus = x[:, start : start + width], x[:, start + width : start + 2 * width]
        shared = (plus + minus) @ real.T
        parts += [
            shared - minus @ (real + imaginary).T,
            shared + plus @ (imaginary - real).T,
        ]
        start += 2 * width
    return torch.cat(parts, dim=1)


def multiply_backward(
    x: Tensor, weights: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of `multiply` by its input and by its weights.

    Args:
        x: (E, M' inputs) its input.
        weights: its weights.
        grad: (E, extra + M' outputs) of its output.

    Returns:
        (E, M' inputs), and one for each of the weights.
    """
    zero = weights[1]
    d_x = torch.zeros_like(x) if _covered(weights) < x.shape[1] else torch.empty_like(x)
    start, place = zero.shape[1], zero.shape[0]
    d_zero = grad[:, :place]
    d_x[:, :start] = d_zero @ zero
    d_weights = [d_zero.sum(dim=0), d_zero.T @ x[:, :start]]
    for real, imaginary in zip(weights[2::2], weights[3::2], strict=True):
        height, width = real.shape
        plus, minus = x[:, start : start + width], x[:, start + width : start + 2 * width]
        d_plus, d_minus = grad[:, place : place + height], grad[:, place + height :][:, :height]
        shared = (d_plus + d_minus) @ real
        d_x[:, start : start + width] = shared + d_minus @ (imaginary - real)
        d_x[:, start + width : start + 2 * width] = shared - d_plus @ (real + imaginary)
        both = (d_plus + d_minus).T @ (plus + minus)
        of_plus, of_minus = d_minus.T @ plus, d_plus.T @ minus
        d_weights += [both - of_plus - of_minus, of_plus - of_minus]
        start, place = start + 2 * width, place + 2 * height
    return d_x, d_weights


def _covered(weights: Sequence[Tensor]) -> int:
    """Number of columns of the input that the weights multiply."""
    return weights[1].shape[1] + 2 * sum(real.shape[1] for real in weights[2::2])
