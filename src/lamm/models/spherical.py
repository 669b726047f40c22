"""Layers on the coefficients of functions on the sphere, (N, M, C): linear, norms, activations.

All commute with rotations, those on a grid to the error of the grid.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lamm.models.layers import chosen_output, refuse_second_derivative
from lamm.models.so3 import Layout, constant, grid_matrices

NormName = Literal["layer_norm", "layer_norm_sh", "rms_norm_sh"]
ActivationName = Literal["gate", "s2", "separable_s2"]

EPSILON = 1e-5


class SO3Linear(nn.Module):
    """One matrix for each degree, and a bias on l = 0: (N, M, inputs) to (N, M, outputs)."""

    def __init__(self, inputs: int, outputs: int, l_max: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.l_max = inputs, outputs, l_max
        self.weight = nn.Parameter(torch.empty(l_max + 1, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        bound = 1 / math.sqrt(inputs)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to all coefficients."""
        parts = [self.degree(x[:, degree**2 : (degree + 1) ** 2], degree) for degree in self.range]
        return torch.cat(parts, dim=1)

    def degree(self, x: Tensor, degree: int) -> Tensor:
        """Apply it to the coefficients of one degree, (N, 2l + 1, inputs)."""
        return functional.linear(x, self.weight[degree], None if degree else self.bias)

    def output(self, x: Tensor, degree: int, column: Tensor | None) -> Tensor:
        """`degree`, or one output of it for each atom: (N, ..., 1), `column` (N,) says which."""
        if column is None:
            return self.degree(x, degree)
        return chosen_output(x, self.weight[degree], None if degree else self.bias, column)

    @property
    def range(self) -> range:
        """The degrees."""
        return range(self.l_max + 1)


class SphericalNorm(nn.Module):
    r"""Bring the coefficients to mean square 1, with a gain for each degree and channel.

    - ``layer_norm_sh``: l = 0 by its own mean and variance; all l > 0 together by
      :math:`\left( \frac{1}{C\, l_{max}} \sum_{l > 0, m, c} \frac{x_{lmc}^2}{2l+1} +
      \epsilon \right)^{-1/2}`.
    - ``rms_norm_sh``: mean of l = 0 removed, then all degrees together.
    - ``layer_norm``: mean of l = 0 removed, then each degree alone.
    """

    undecayed = ("weight",)
    """Gains, which weight decay leaves alone."""

    def __init__(self, name: NormName, l_max: int, channels: int) -> None:
        super().__init__()
        self.name, self.layout = name, Layout(l_max, l_max, by_degree=True)
        if name == "layer_norm_sh":
            self.scalar = nn.LayerNorm(channels, eps=EPSILON)
            self.weight = nn.Parameter(torch.ones(l_max, channels))
        else:
            self.weight = nn.Parameter(torch.ones(l_max + 1, channels))
            self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, M, C), normalised in float32 or more."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(dtype)
            if self.name == "layer_norm_sh":
                rest = x[:, 1:]
                gain = self._gain(self._inverse_rms(rest, first=1), first=1)
                return torch.cat((self.scalar(x[:, :1]), rest * gain), dim=1)
            x = torch.cat((x[:, :1] - x[:, :1].mean(dim=2, keepdim=True), x[:, 1:]), dim=1)
            gain = self._gain(self._inverse_rms(x, first=0), first=0)
            scalar = x[:, :1] * gain[:, :1] + self.bias
            return torch.cat((scalar, x[:, 1:] * gain[:, 1:]), dim=1)

    def _inverse_rms(self, x: Tensor, first: int) -> Tensor:
        """(N, 1, 1), or (N, M, 1) where each degree has its own."""
        square = (x * x).mean(dim=2)  # (N, M)
        degrees = constant(self.layout, "degrees", x.device)[first:]
        share = 1 / (2 * degrees + 1).to(x.dtype)
        if self.name == "layer_norm":
            of_degree = x.new_zeros(len(x), self.layout.l_max + 1)
            of_degree = of_degree.index_add(1, degrees, square * share)
            return (of_degree + EPSILON).rsqrt().index_select(1, degrees)[:, :, None]
        balanced = square @ (share / (self.layout.l_max + 1 - first))  # (N,)
        return (balanced + EPSILON).rsqrt()[:, None, None]

    def _gain(self, inverse: Tensor, first: int) -> Tensor:
        degrees = constant(self.layout, "degrees", inverse.device)[first:] - first
        return inverse * self.weight.index_select(0, degrees)


class SphericalActivation(nn.Module):
    r"""Non-linearity of the coefficients of a layout.

    - ``s2``: SiLU of the values on a grid.
    - ``separable_s2``: the same, but l = 0 is SiLU of a gating scalar.
    - ``gate``: SiLU of l = 0; the other degrees times the sigmoid of a gating scalar for each.

    It has no weights; its gating scalars come from the layer before.
    """

    def __init__(
        self, name: ActivationName, layout: Layout, channels: int, resolution: int | None
    ) -> None:
        super().__init__()
        self.name, self.layout, self.channels, self.resolution = name, layout, channels, resolution

    @property
    def num_gates(self) -> int:
        """How many gating scalars it wants."""
        per_channel = {"gate": self.layout.l_max, "s2": 0, "separable_s2": 1}[self.name]
        return per_channel * self.channels

    @property
    def split_sizes(self) -> tuple[int, int]:
        """Numbers of gating scalars and of coefficients times channels."""
        return self.num_gates, self.layout.size * self.channels

    def forward(self, gates: Tensor, x: Tensor, block: int | None = None) -> Tensor:
        """Apply it.

        Args:
            gates: gating scalars (R, num_gates).
            x: coefficients (R, M', C).
            block: rows whose grid is made at a time, and made again in the backward pass, which
                can then be done once only; None: all of them.

        Returns:
            (R, M', C).
        """
        if self.name == "gate":
            degrees = constant(self.layout, "degrees", x.device)[1:] - 1
            opened = gates.sigmoid().unflatten(1, (self.layout.l_max, self.channels))
            rest = x[:, 1:] * opened.index_select(1, degrees)
            return torch.cat((functional.silu(x[:, :1]), rest), dim=1)
        to_grid, from_grid = grid_matrices(self.layout, self.resolution, x.dtype, x.device)
        first = 0 if self.name == "s2" else 1  # the first coefficient that the grid gives
        from_grid = from_grid[first:]
        if block is None:
            values = functional.silu(to_grid @ _coefficients_first(x))  # (P, R C)
            result = _coefficients_last(from_grid @ values, x.shape[2])
        else:
            result = _GridSiLU.apply(x, to_grid, from_grid, block)  # type: ignore[no-untyped-call]
        return torch.cat((functional.silu(gates)[:, None], result), dim=1) if first else result


class _GridSiLU(torch.autograd.Function):
    """SiLU on a grid, whose points are never kept: 324 of them stand for 19 coefficients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_grid: Tensor, from_grid: Tensor, block: int) -> Tensor:
        ctx.save_for_backward(x, to_grid, from_grid)
        ctx.block = block
        parts = []
        for rows in x.split(block):
            values = functional.silu(to_grid @ _coefficients_first(rows), inplace=True)
            parts.append(_coefficients_last(from_grid @ values, x.shape[2]))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, to_grid, from_grid = ctx.saved_tensors
        parts = []
        for rows, d_rows in zip(x.split(ctx.block), grad.split(ctx.block), strict=True):
            before = to_grid @ _coefficients_first(rows)
            d_values = from_grid.T @ _coefficients_first(d_rows.to(x.dtype))
            d_before = torch.ops.aten.silu_backward(d_values, before)
            parts.append(_coefficients_last(to_grid.T @ d_before, x.shape[2]))
        return torch.cat(parts), None, None, None


def grid_perceptron(
    x: Tensor,
    first: Tensor,
    middle: Tensor,
    last: Tensor,
    layout: Layout,
    resolution: int | None,
) -> Tensor:
    r"""A network of three layers at each point of a grid: (R, M, H) to (R, M, H).

    The first and the last layer are linear, and so are the grid's transforms G and G⁻¹: both are
    applied to the few coefficients instead of the many points. What is computed is
    :math:`(G^{-1} \sigma(\sigma(G (x W_1)) W_2)) W_3`, which is
    :math:`G^{-1} (\sigma(\sigma((G x) W_1) W_2) W_3)`.

    Args:
        x: coefficients.
        first: (H, H) W_1, transposed as in a linear layer.
        middle: (H, H) W_2.
        last: (H, H) W_3.
        layout: order of the coefficients.
        resolution: of the grid.
    """
    to_grid, from_grid = grid_matrices(layout, resolution, x.dtype, x.device)
    values = to_grid @ _coefficients_first(functional.linear(x, first))  # (P, R H)
    values = functional.silu(values).unflatten(1, (len(x), len(first)))  # (P, R, H)
    values = functional.silu(functional.linear(values, middle)).flatten(1)
    return functional.linear(_coefficients_last(from_grid @ values, len(middle)), last)


def _coefficients_first(x: Tensor) -> Tensor:
    """(R, M, C) to (M, R C), so that the grid's transform is one product."""
    return x.transpose(0, 1).flatten(1)


def _coefficients_last(x: Tensor, channels: int) -> Tensor:
    """(M, R C) to (R, M, C)."""
    split: Tensor = x.unflatten(1, (x.shape[1] // channels, channels))
    return split.transpose(0, 1)
