r"""PaiNN's sum over neighbours, written twice: to be read, and to be fast on a processor.

Every atom j sends :math:`(\alpha, \vec\beta, \gamma)_j`, and a filter of the distance weighs them:

.. math::

    s_i = \sum_j \alpha_j W^a_{ij}, \quad
    \vec v_i = \sum_j \left( \vec\beta_j W^b_{ij} + \hat r_{ij} \gamma_j W^c_{ij} \right), \quad
    W_{ij} = \omega\, e(d_{ij}) + u(d_{ij})\, b

`sum_messages` is that, with one row per edge; it runs on any device and can be differentiated any
number of times. `sum_pair_messages` gives the same numbers from pairs of atoms, twice
differentiable, as training on forces from the energy's gradient needs:

- both directions of a pair share one filter;
- pairs go in order of distance, so that a block of them meets only the few Gaussians near it: of
  128 about 20, and a filter costs that much less;
- a block is small enough to stay in the cache, and nothing that has a row per edge is kept for the
  backward pass, which computes the filters again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lamm.models.bands import Band, find_bands
from lamm.models.layers import segment_sum


class Edges(NamedTuple):
    """What every layer knows of the edges."""

    source: Tensor
    """(E,) atom j."""
    target: Tensor
    """(E,) atom i."""
    unit: Tensor
    """(E, 3) from i to j."""
    radial: Tensor
    """(E, K + 1) radial functions e, and u, the factor of the filter's bias."""


class Pairs(NamedTuple):
    """Edges with their reverses: for one band after the other, one direction and then the other."""

    source: Tensor
    """(E,) atom j."""
    target: Tensor
    """(E,) atom i."""
    unit: Tensor
    """(E, 3) from i to j."""
    radial: Tensor
    """(E / 2, K + 1) as of `Edges`, a row per pair, ascending in distance."""
    bands: tuple[Band, ...]


def sum_messages(sent: Tensor, weight: Tensor, bias: Tensor, edges: Edges) -> Tensor:
    """What each atom receives.

    Args:
        sent: (N, 5C) alpha, the three components of beta, gamma.
        weight: (3C, K) omega.
        bias: (3C,) b.
        edges: all edges.

    Returns:
        (N, 4C) s, and the three components of v.
    """
    channels = sent.shape[1] // 5
    filters = edges.radial @ torch.cat((weight, bias[:, None]), dim=1).T  # (E, 3C)
    w_a, w_b, w_c = filters.split(channels, dim=1)
    alpha, beta, gamma = _parts(sent.index_select(0, edges.source), channels)
    along = edges.unit[:, :, None] * (gamma * w_c)[:, None]  # (E, 3, C)
    moved = beta * w_b[:, None] + along  # (E, 3, C)
    received = torch.cat((alpha * w_a, moved.flatten(1)), dim=1)  # (E, 4C)
    return segment_sum(received, edges.target, sent.shape[0])


def sum_pair_messages(sent: Tensor, weight: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
    """The same as `sum_messages`, on a CPU; its gradient can be differentiated once more."""
    with torch.autocast("cpu", enabled=False):
        table = torch.cat((weight, bias[:, None]), dim=1).T.contiguous()  # (K + 1, 3C)
        received: Tensor = _PairMessages.apply(  # type: ignore[no-untyped-call]
            sent.to(weight.dtype), table, pairs.unit, pairs.radial, pairs
        )
    return received


def group_pairs(half: Edges, steps: Tensor, block: int) -> Pairs:
    """Cut pairs into bands and write down both directions of each.

    Args:
        half: one edge of each pair, ascending in distance.
        steps: (P,) their distances in units of the spacing of the Gaussians' centres.
        block: pairs per band.
    """
    bands = find_bands(steps, half.radial.shape[1] - 1, 1, block)

    def both(one: Tensor, other: Tensor) -> Tensor:
        """Each band of `one`, followed by the same band of `other`."""
        parts = [side[band.start : band.stop] for band in bands for side in (one, other)]
        return torch.cat(parts) if parts else one

    source, target = both(half.source, half.target), both(half.target, half.source)
    return Pairs(source, target, both(half.unit, -half.unit), half.radial, bands)


def _edges(band: Band) -> slice:
    """Where both directions of a band's pairs are in `Pairs`."""
    return slice(2 * band.start, 2 * band.stop)


def _parts(rows: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views (..., C), (..., 3, C) and (..., C) of rows (..., 5C)."""
    alpha, beta, gamma = rows.split((channels, 3 * channels, channels), dim=-1)
    return alpha, beta.unflatten(-1, (3, channels)), gamma


class _PairMessages(torch.autograd.Function):
    """Both passes go through the bands; `rows` has both directions of a band, (2, P, ...)."""

    @staticmethod
    def forward(
        ctx: Any, sent: Tensor, table: Tensor, unit: Tensor, radial: Tensor, pairs: Pairs
    ) -> Tensor:
        ctx.save_for_backward(sent, table, unit, radial)
        ctx.pairs = pairs._replace(unit=unit.detach(), radial=radial.detach())
        channels = table.shape[1] // 3
        received = torch.zeros_like(sent)  # (N, 5C), the last C of no use
        for band in pairs.bands:
            w_a, w_b, w_c = _filters(table, radial, band)[1].split(channels, dim=-1)
            rows = sent.index_select(0, pairs.source[_edges(band)])  # (2P, 5C), changed in place
            alpha, beta, gamma = _parts(rows.unflatten(0, (2, -1)), channels)
            alpha.mul_(w_a)
            gamma.mul_(w_c)
            beta.mul_(w_b[:, None])
            beta.addcmul_(unit[_edges(band)].unflatten(0, (2, -1))[..., None], gamma[:, :, None])
            received.index_add_(0, pairs.target[_edges(band)], rows)
        return received[:, : 4 * channels]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sent, table, unit, radial = ctx.saved_tensors
        geometry = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        gradients: tuple[Tensor | None, ...] = _PairGradients.apply(  # type: ignore[no-untyped-call]
            grad, sent, table, unit, radial, ctx.pairs, geometry
        )
        return *gradients, None


class _PairGradients(torch.autograd.Function):
    r"""The gradients of `_PairMessages`, which can be differentiated once more.

    With :math:`g` the gradient of what is received, and per edge :math:`r = \hat r \cdot \vec g`:

    .. math::

        d\alpha = g_s W^a, \quad d\vec\beta = \vec g W^b, \quad d\gamma = r W^c, \quad
        d\hat r = \sum_c \gamma W^c \vec g, \quad
        dW = (\alpha g_s,\ \vec\beta \cdot \vec g,\ \gamma r)
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        sent: Tensor,
        table: Tensor,
        unit: Tensor,
        radial: Tensor,
        pairs: Pairs,
        geometry: bool,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, sent, table, unit, radial)
        ctx.pairs = pairs
        channels = table.shape[1] // 3
        grad = grad.contiguous()
        d_sent, d_table = torch.zeros_like(sent), torch.zeros_like(table)
        d_unit = torch.zeros_like(unit) if geometry else None
        d_radial = torch.zeros_like(radial) if geometry else None
        for band in pairs.bands:
            gaussians, filters = _filters(table, radial, band)
            w_a, w_b, w_c = filters.split(channels, dim=-1)  # (P, C) each
            direction = unit[_edges(band)].unflatten(0, (2, -1))[..., None]  # (2, P, 3, 1)
            arrived = grad.index_select(0, pairs.target[_edges(band)]).unflatten(0, (2, -1))
            g_s, g_v = arrived[..., :channels], arrived[..., channels:].unflatten(-1, (3, channels))
            rows = sent.index_select(0, pairs.source[_edges(band)])  # (2P, 5C), changed in place
            alpha, beta, gamma = _parts(rows.unflatten(0, (2, -1)), channels)
            g_r = _dot(direction, g_v)  # (2, P, C) along the edge

            d_filters = _of_filters((alpha, beta, gamma), (g_s, g_v, g_r))  # (P, 3C)
            _add_rows(d_table, band, gaussians, d_filters)
            if d_unit is not None:
                along = (gamma * w_c)[:, :, None] * g_v  # (2, P, 3, C)
                d_unit[_edges(band)] = along.sum(dim=-1).flatten(0, 1)
            if d_radial is not None:
                _set_radial(d_radial, band, d_filters @ _rows(table, band).T)

            torch.mul(g_s, w_a, out=alpha)
            torch.mul(g_v, w_b[:, None], out=beta)
            torch.mul(g_r, w_c, out=gamma)
            d_sent.index_add_(0, pairs.source[_edges(band)], rows)
        return d_sent, d_table, d_unit, d_radial

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        x_sent: Tensor | None,
        x_table: Tensor | None,
        x_unit: Tensor | None,
        x_radial: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        if x_table is not None:
            raise RuntimeError(
                "a gradient by the filters' weights can't be differentiated again. Ask for the "
                "gradient by positions alone."
            )
        grad, sent, table, unit, radial = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        channels = table.shape[1] // 3
        x_sent = torch.zeros_like(sent) if x_sent is None else x_sent
        x_unit = torch.zeros_like(unit) if x_unit is None else x_unit
        x_radial = torch.zeros_like(radial) if x_radial is None else x_radial
        d_grad, d_sent, d_table = (torch.zeros_like(one) for one in (sent, sent, table))
        d_unit, d_radial = torch.zeros_like(unit), torch.zeros_like(radial)
        for band in pairs.bands:
            edges = _edges(band)
            source, target = pairs.source[edges], pairs.target[edges]
            gaussians, filters = _filters(table, radial, band)
            changes, moved = _filters(table, x_radial, band)  # dW's cotangent is a filter, too
            w_a, w_b, w_c = filters.split(channels, dim=-1)  # (P, C) each
            m_a, m_b, m_c = moved.split(channels, dim=-1)
            direction = unit[edges].unflatten(0, (2, -1))[..., None]  # (2, P, 3, 1)
            turned = x_unit[edges].unflatten(0, (2, -1))[..., None]
            arrived = grad.index_select(0, target).unflatten(0, (2, -1))
            g_s, g_v = arrived[..., :channels], arrived[..., channels:].unflatten(-1, (3, channels))
            g_r, g_t = _dot(direction, g_v), _dot(turned, g_v)  # (2, P, C)
            alpha, beta, gamma = _parts(
                sent.index_select(0, source).unflatten(0, (2, -1)), channels
            )
            x_rows = x_sent.index_select(0, source)  # (2P, 5C), changed in place
            x_alpha, x_beta, x_gamma = _parts(x_rows.unflatten(0, (2, -1)), channels)

            d_filters = _of_filters((x_alpha, x_beta, x_gamma), (g_s, g_v, g_r))
            _add_product(d_filters[:, 2 * channels :], gamma, g_t)
            _add_rows(d_table, band, gaussians, d_filters)
            _add_rows(d_table, band, changes, _of_filters((alpha, beta, gamma), (g_s, g_v, g_r)))
            _set_radial(d_radial, band, d_filters @ _rows(table, band).T)

            along = (x_gamma * w_c).addcmul_(gamma, m_c)  # (2, P, C)
            d_unit[edges] = (along[:, :, None] * g_v).sum(dim=-1).flatten(0, 1)
            x_alpha.mul_(w_a).addcmul_(alpha, m_a)
            x_beta.mul_(w_b[:, None]).addcmul_(beta, m_b[:, None])
            x_beta.addcmul_(direction, along[:, :, None])
            x_beta.addcmul_(turned, (gamma * w_c)[:, :, None])
            d_grad.index_add_(0, target, x_rows)

            torch.mul(g_s, m_a, out=x_alpha)
            torch.mul(g_v, m_b[:, None], out=x_beta)
            torch.mul(g_r, m_c, out=x_gamma).addcmul_(g_t, w_c)
            d_sent.index_add_(0, source, x_rows)
        return d_grad[:, : 4 * channels], d_sent, d_table, d_unit, d_radial, None, None


def _dot(direction: Tensor, vectors: Tensor) -> Tensor:
    """(2, P, 3, 1) and (2, P, 3, C) to (2, P, C)."""
    result = direction[:, :, 0] * vectors[:, :, 0]
    result.addcmul_(direction[:, :, 1], vectors[:, :, 1])
    return result.addcmul_(direction[:, :, 2], vectors[:, :, 2])


def _add_product(sums: Tensor, one: Tensor, other: Tensor) -> None:
    """Add to (P, C) the products of both directions, (2, P, C) each."""
    for way in (0, 1):
        sums.addcmul_(one[way], other[way])


def _of_filters(
    sent: tuple[Tensor, Tensor, Tensor], arrived: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """(P, 3C) what the filters' gradient is for one thing sent and one gradient arrived."""
    (alpha, beta, gamma), (g_s, g_v, g_r) = sent, arrived
    result = alpha.new_zeros(alpha.shape[1], 3 * alpha.shape[2])
    d_a, d_b, d_c = result.split(alpha.shape[2], dim=-1)
    _add_product(d_a, alpha, g_s)
    _add_product(d_c, gamma, g_r)
    for axis in (0, 1, 2):
        _add_product(d_b, beta[:, :, axis], g_v[:, :, axis])
    return result


def _add_rows(d_table: Tensor, band: Band, gaussians: Tensor, d_filters: Tensor) -> None:
    """Add a band's share of the gradient of the filters' weights."""
    rows = gaussians.T @ d_filters  # (high - low + 1, 3C)
    d_table[band.low : band.high] += rows[:-1]
    d_table[-1] += rows[-1]


def _set_radial(d_radial: Tensor, band: Band, near: Tensor) -> None:
    """Write the gradient of a band's radial functions (P, high - low + 1)."""
    d_radial[band.start : band.stop, band.low : band.high] = near[:, :-1]
    d_radial[band.start : band.stop, -1] = near[:, -1]


def _rows(table: Tensor, band: Band) -> Tensor:
    """The filter's weights of a band's Gaussians, and its bias."""
    return torch.cat((table[band.low : band.high], table[-1:]))


def _filters(table: Tensor, radial: Tensor, band: Band) -> tuple[Tensor, Tensor]:
    """A band's radial functions (P, high - low + 1), the last of them u, and filters (P, 3C)."""
    near = radial[band.start : band.stop]
    near = torch.cat((near[:, band.low : band.high], near[:, -1:]), dim=1)
    return near, near @ _rows(table, band)
