r"""Functions on the sphere: harmonics, their rotation, and the grid between them.

A feature is a list of coefficients :math:`x_{lm}` for :math:`l = 0 \dots l_{max}` and
:math:`m = -l \dots l`, so that :math:`f(\hat r) = \sum_{lm} x_{lm} Y_{lm}(\hat r)`. The harmonics
are real, in the convention of e3nn (https://e3nn.org), in which the weights of EquiformerV2 are
published: the polar axis is y, and the three of l = 1 are x, y, z.

Along an edge most of that is not needed. In a frame whose polar axis is the edge, a rotation about
the edge only mixes m with -m, and whatever commutes with these rotations is a small matrix for each
\|m\|: the SO(2) convolution of *Reducing SO(3) Convolutions to SO(2) for Efficient Equivariant
GNNs*, S. Passaro and C. L. Zitnick, ICML 2023, https://arxiv.org/abs/2302.03655.

    layout = Layout(4, 2)
    wigner = edge_wigner(vectors, layout)  # (E, 19, 25)
    along = wigner @ x[source]  # (E, 19, C): the sources' features in the edges' frames
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamm.typing import FloatArray, IntArray

SHORTEST_EDGE = 1e-6
"""Å; a given edge that is shorter has no direction."""

POLAR = 0.9
"""Edges whose direction is nearer than this to the polar axis get their frame another way."""

_NEXT_AXIS = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""The rotation that takes x to y, y to z and z to x."""


class Layout(NamedTuple):
    r"""Which coefficients there are, \\|m\\| <= m_max, and in which order; l = 0 comes first.

    In an edge's frame they are sorted by \\|m\\|, then +m before -m, then by l, so that what the
    SO(2) convolution multiplies by one matrix is contiguous; on atoms by l, then m.
    """

    l_max: int
    m_max: int
    by_degree: bool = False
    """Sorted by l, then m."""

    @property
    def size(self) -> int:
        """M' of this layout."""
        return len(self.degrees)

    @property
    def degrees(self) -> IntArray:
        """(M',) l of each coefficient."""
        return _rows(self)[0]

    @property
    def orders(self) -> IntArray:
        """(M',) m of each coefficient."""
        return _rows(self)[1]

    @property
    def places(self) -> IntArray:
        """(M',) where each coefficient is in the order of l, then m."""
        return self.degrees * (self.degrees + 1) + self.orders

    def count(self, m: int) -> int:
        """Number of degrees that have an order m."""
        return self.l_max + 1 - abs(m)

    @property
    def rescale(self) -> FloatArray:
        r"""(M',) :math:`\sqrt{(2l+1)/(2 m_{max}+1)}` where degrees are cut, for their variance."""
        cut = np.maximum((2 * self.degrees + 1) / (2 * self.m_max + 1), 1)
        return np.asarray(np.sqrt(cut))


def num_coefficients(l_max: int) -> int:
    """M = (l_max + 1)², all coefficients up to a degree."""
    return (l_max + 1) ** 2


@cache
def constant(layout: Layout, name: str, device: torch.device) -> Tensor:
    """A property of a layout as a tensor that is made once: no step waits for its copy.

    Args:
        layout: the layout.
        name: ``degrees``, ``orders`` or ``rescale``.
        device: where it is wanted.
    """
    with torch.inference_mode(False):
        return torch.from_numpy(np.asarray(getattr(layout, name))).to(device)


@cache
def rows_of_degree(layout: Layout, degree: int, device: torch.device) -> Tensor:
    """Where a layout has the coefficients of one degree."""
    with torch.inference_mode(False):
        return torch.from_numpy(np.flatnonzero(layout.degrees == degree)).to(device)


@cache
def _rows(layout: Layout) -> tuple[IntArray, IntArray]:
    pairs = [(degree, 0) for degree in range(layout.l_max + 1)]
    for m in range(1, layout.m_max + 1):
        for signed in (m, -m):
            pairs += [(degree, signed) for degree in range(m, layout.l_max + 1)]
    degrees, orders = np.array(sorted(pairs) if layout.by_degree else pairs).T
    return degrees, orders


def spherical_harmonics(points: FloatArray, l_max: int) -> NDArray[np.float64]:
    r"""Real spherical harmonics whose mean square over the sphere is 1 ("component" of e3nn).

    .. math::

        Y_{lm} = \sqrt{\tfrac{(2l+1)(l-|m|)!}{(l+|m|)!}}\, P_l^{|m|}(y)
            \begin{cases} \sqrt 2 \sin |m|\alpha & m < 0 \\ 1 & m = 0 \\
            \sqrt 2 \cos m\alpha & m > 0 \end{cases}, \quad \alpha = \arctan \tfrac{x}{z}

    Args:
        points: (P, 3) unit vectors.
        l_max: highest degree.

    Returns:
        (P, M) in the order of l, then m.
    """
    x, y, z = np.asarray(points, dtype=np.float64).T
    alpha, sine = np.arctan2(x, z), np.hypot(x, z)
    columns: dict[tuple[int, int], FloatArray] = {}
    for m in range(l_max + 1):
        legendre: list[Any] = [
            np.prod(np.arange(1, 2 * m, 2, dtype=float)) * sine**m
        ]  # P_m^m, no (-1)^m
        for degree in range(m + 1, l_max + 1):
            before = legendre[-2] if len(legendre) > 1 else 0.0
            legendre.append(
                ((2 * degree - 1) * y * legendre[-1] - (degree + m - 1) * before) / (degree - m)
            )
        for degree, values in enumerate(legendre, start=m):
            size = (2 * degree + 1) * math.factorial(degree - m) / math.factorial(degree + m)
            scaled = math.sqrt(size) * values
            columns[degree, m] = scaled * (math.sqrt(2) * np.cos(m * alpha) if m else 1.0)
            if m:
                columns[degree, -m] = scaled * math.sqrt(2) * np.sin(m * alpha)
    return np.stack([columns[key] for key in sorted(columns)], axis=1)


def wigner_of(rotation: FloatArray, degree: int) -> NDArray[np.float64]:
    """The matrix D of one degree with Y(R r) = D Y(r) for every r, (2l + 1, 2l + 1).

    It is solved for at enough points; exact to rounding, and only used for constants.

    Args:
        rotation: (3, 3) R.
        degree: l.
    """
    generator = np.random.default_rng(degree)
    points = generator.normal(size=(8 * degree + 8, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    before = spherical_harmonics(points, degree)[:, degree**2 :]
    after = spherical_harmonics(points @ rotation.T, degree)[:, degree**2 :]
    return np.asarray(np.linalg.lstsq(before, after, rcond=None)[0].T, dtype=np.float64)


def swap_matrix(degree: int) -> NDArray[np.float64]:
    """J of one degree, a reflection that swaps rotations about y, which are sparse, and about x."""
    return wigner_of(np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), degree)


@cache
def _constants(degree: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """J and the Wigner matrix of `_NEXT_AXIS`, in the precision and on the device at hand."""
    with torch.inference_mode(False):
        return (
            torch.from_numpy(swap_matrix(degree)).to(device, dtype),
            torch.from_numpy(wigner_of(_NEXT_AXIS, degree)).to(device, dtype),
        )


def edge_wigner(vectors: Tensor, layout: Layout) -> Tensor:
    r"""Wigner matrices of rotations that take each edge to the polar axis.

    With the edge at the angles alpha (about y) and beta (from y), the rotation is
    :math:`R_x(-\beta) R_y(-\alpha)`, that is :math:`D = J X(-\beta) J X(-\alpha)` with sparse X:
    no roll about the edge is added, and the same edge has the same frame at each call. Near the
    poles alpha isn't defined, and its gradient without bound; such edges are turned away from
    there by a fixed rotation first.

    Args:
        vectors: (E, 3) in Å; the result is differentiable in them.
        layout: the rows that are wanted.

    Returns:
        (E, M', M): rows in the order of `layout`, columns in that of l, then m.
    """
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    unit = vectors / length.clamp(min=SHORTEST_EDGE)
    polar = unit[:, 1].abs() > POLAR  # (E,)
    # What _NEXT_AXIS does: (x, y, z) -> (z, x, y).
    unit = torch.where(polar[:, None], unit.roll(1, dims=1), unit)
    x, y, z = unit.unbind(1)
    rho = (x * x + z * z).clamp(min=1e-24).sqrt()
    alpha = _multiples(z / rho, x / rho, layout.l_max)
    beta = _multiples(y, rho, layout.l_max)

    wigner = vectors.new_zeros(len(vectors), layout.size, num_coefficients(layout.l_max))
    for degree in range(layout.l_max + 1):
        rows = rows_of_degree(layout, degree, vectors.device)
        orders = constant(layout, "orders", vectors.device).index_select(0, rows) + degree
        swap, turn = _constants(degree, vectors.dtype, vectors.device)
        block = _about_y(swap.index_select(0, orders)[None], beta, degree) @ swap
        block = _about_y(block, alpha, degree)  # (E, rows, 2l + 1)
        block = torch.where(polar[:, None, None], block @ turn, block)
        wigner[:, rows, degree**2 : (degree + 1) ** 2] = block
    return wigner


def _multiples(cosine: Tensor, sine: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 0, 1, ..., `count` times an angle: (E,) each to (E, count + 1) each."""
    cosines, sines = [torch.ones_like(cosine)], [torch.zeros_like(sine)]
    for _ in range(count):
        cosines.append(cosines[-1] * cosine - sines[-1] * sine)
        sines.append(sines[-1] * cosine + cosines[-2] * sine)
    return torch.stack(cosines, dim=1), torch.stack(sines, dim=1)


def _about_y(matrix: Tensor, angle: tuple[Tensor, Tensor], degree: int) -> Tensor:
    """Multiply by X(-angle) from the right: column m becomes a mixture of the columns m and -m.

    Args:
        matrix: (E or 1, rows, 2l + 1).
        angle: cosines and sines (E, >= l + 1) of its multiples.
        degree: l.
    """
    orders = torch.arange(-degree, degree + 1, device=matrix.device)
    cosines = angle[0].index_select(1, orders.abs())[:, None]  # (E, 1, 2l + 1)
    sines = (angle[1].index_select(1, orders.abs()) * orders.sign())[:, None]
    return matrix * cosines - matrix.flip(2) * sines


@cache
def grid_matrices(
    layout: Layout, resolution: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    r"""From the coefficients of a layout to values on a grid over the sphere, and back.

    The grid has equal steps of beta, the first half a step from the pole, and of alpha; each row
    of it weighs, by Fejér's first rule, so much that coefficients come back exactly. Values are
    :math:`f = \sum_{lm} x_{lm} Y_{lm} / \sqrt{(2l+1)(l_{max}+1)}`: their variance is that of the
    coefficients. Where a layout cuts orders, its higher degrees are scaled up both ways.

    Args:
        layout: order and number of the coefficients.
        resolution: steps of both angles; None: FAIR-Chem's smallest.
        dtype: precision of the result.
        device: where it is wanted.

    Returns:
        (P, M') and (M', P), for P = beta steps x alpha steps.
    """
    l_max, m_max = layout.l_max, layout.m_max
    betas = resolution or 2 * (l_max + 1)
    alphas = resolution or (2 * m_max + (3 if l_max == m_max else 1))
    beta = (np.arange(betas) + 0.5) * math.pi / betas
    alpha = np.arange(alphas) * 2 * math.pi / alphas
    sine = np.sin(beta)[:, None]
    points = np.stack(
        np.broadcast_arrays(sine * np.sin(alpha), np.cos(beta)[:, None], sine * np.cos(alpha)), -1
    ).reshape(-1, 3)
    harmonics = spherical_harmonics(points, l_max)[:, layout.places] * layout.rescale  # (P, M')
    scale = np.sqrt((2 * layout.degrees + 1) * (l_max + 1))
    k = np.arange(1, (betas + 1) // 2)
    rule = 1 - 2 * (np.cos(2 * k * beta[:, None]) / (4 * k * k - 1)).sum(axis=1)
    weights = np.repeat(rule / (betas * alphas), alphas)  # (P,), sum 1
    to_grid, from_grid = harmonics / scale, (harmonics * scale * weights[:, None]).T
    with torch.inference_mode(False):
        return (
            torch.from_numpy(to_grid).to(device, dtype),
            torch.from_numpy(np.ascontiguousarray(from_grid)).to(device, dtype),
        )


__all__ = [
    "Layout",
    "constant",
    "edge_wigner",
    "grid_matrices",
    "num_coefficients",
    "rows_of_degree",
    "spherical_harmonics",
    "swap_matrix",
    "wigner_of",
]
