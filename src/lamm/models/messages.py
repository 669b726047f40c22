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

Before the first layer all vectors are zero. There atoms send :math:`(\alpha, \gamma)_j` alone, two
parts where the other layers have five.
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
    vectors: Tensor
    """(E, 3) as the encoder was given them. Once they don't require a gradient any more, their
    gradient isn't computed: where forces were taken from them, nobody asks for it again."""


def sum_messages(sent: Tensor, weight: Tensor, bias: Tensor, edges: Edges) -> Tensor:
    """What each atom receives.

    Args:
        sent: (N, 5C) alpha, the three components of beta, gamma; or (N, 2C) without beta.
        weight: (3C, K) omega; or (2C, K), without W^b.
        bias: (3C,) b; or (2C,).
        edges: all edges.

    Returns:
        (N, 4C) s, and the three components of v.
    """
    channels = _num_channels(sent, weight.shape[0])
    filters = edges.radial @ torch.cat((weight, bias[:, None]), dim=1).T  # (E, 3C)
    w_a, w_b, w_c = _filter_parts(filters, channels)
    alpha, beta, gamma = _parts(sent.index_select(0, edges.source), channels)
    moved = edges.unit[:, :, None] * (gamma * w_c)[:, None]  # (E, 3, C)
    if beta is not None and w_b is not None:
        moved = beta * w_b[:, None] + moved
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


def group_pairs(half: Edges, steps: Tensor, block: int, vectors: Tensor) -> Pairs:
    """Cut pairs into bands and write down both directions of each.

    Args:
        half: one edge of each pair, ascending in distance.
        steps: (P,) their distances in units of the spacing of the Gaussians' centres.
        block: pairs per band.
        vectors: (E, 3) what the pairs' geometry was made from.
    """
    bands = find_bands(steps, half.radial.shape[1] - 1, 1, block)

    def both(one: Tensor, other: Tensor) -> Tensor:
        """Each band of `one`, followed by the same band of `other`."""
        parts = [side[band.start : band.stop] for band in bands for side in (one, other)]
        return torch.cat(parts) if parts else one

    source, target = both(half.source, half.target), both(half.target, half.source)
    return Pairs(source, target, both(half.unit, -half.unit), half.radial, bands, vectors)


def _edges(band: Band) -> slice:
    """Where both directions of a band's pairs are in `Pairs`."""
    return slice(2 * band.start, 2 * band.stop)


def _num_channels(sent: Tensor, num_filters: int) -> int:
    """C, from the columns of what is sent, 5C or 2C, and those of the filters, 3C or 2C."""
    return num_filters // (2 if sent.shape[1] == num_filters else 3)


def _filter_parts(filters: Tensor, channels: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Views (..., C) of W^a, W^b and W^c; no W^b in (..., 2C)."""
    if filters.shape[-1] == 2 * channels:
        w_a, w_c = filters.split(channels, dim=-1)
        return w_a, None, w_c
    w_a, w_b, w_c = filters.split(channels, dim=-1)
    return w_a, w_b, w_c


def _parts(rows: Tensor, channels: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Views (..., C), (..., 3, C) and (..., C) of rows (..., 5C); no second of rows (..., 2C)."""
    if rows.shape[-1] == 2 * channels:
        alpha, gamma = rows.split(channels, dim=-1)
        return alpha, None, gamma
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
        channels = _num_channels(sent, table.shape[1])
        still = sent.shape[1] == 2 * channels
        received = sent.new_zeros(len(sent), (4 if still else 5) * channels)  # the fifth C: no use
        for band in pairs.bands:
            w_a, w_b, w_c = _filter_parts(_filters(table, radial, band)[1], channels)
            direction = unit[_edges(band)].unflatten(0, (2, -1))[..., None]  # (2, P, 3, 1)
            rows = sent.index_select(0, pairs.source[_edges(band)])  # (2P, 5C), changed in place
            alpha, beta, gamma = _parts(rows.unflatten(0, (2, -1)), channels)
            gamma.mul_(w_c)
            if beta is None or w_b is None:
                rows, (scalars, vectors) = _new_rows(alpha, channels)
                torch.mul(alpha, w_a, out=scalars)
                torch.mul(direction, gamma[:, :, None], out=vectors)
            else:
                alpha.mul_(w_a)
                beta.mul_(w_b[:, None]).addcmul_(direction, gamma[:, :, None])
            received.index_add_(0, pairs.target[_edges(band)], rows)
        return received[:, : 4 * channels]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sent, table, unit, radial = ctx.saved_tensors
        geometry = (
            ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        ) and ctx.pairs.vectors.requires_grad
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
        channels = _num_channels(sent, table.shape[1])
        grad = grad.contiguous()
        d_sent, d_table = torch.zeros_like(sent), torch.zeros_like(table)
        d_unit = torch.zeros_like(unit) if geometry else None
        d_radial = torch.zeros_like(radial) if geometry else None
        for band in pairs.bands:
            gaussians, filters = _filters(table, radial, band)
            w_a, w_b, w_c = _filter_parts(filters, channels)  # (P, C) each
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
            if beta is not None and w_b is not None:
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
        channels = _num_channels(sent, table.shape[1])
        geometry = pairs.vectors.requires_grad
        x_sent = torch.zeros_like(sent) if x_sent is None else x_sent
        x_unit = torch.zeros_like(unit) if x_unit is None else x_unit
        x_radial = torch.zeros_like(radial) if x_radial is None else x_radial
        still = sent.shape[1] == 2 * channels
        d_grad = sent.new_zeros(len(sent), (4 if still else 5) * channels)  # the fifth C: no use
        d_sent, d_table = torch.zeros_like(sent), torch.zeros_like(table)
        d_unit = torch.zeros_like(unit) if geometry else None
        d_radial = torch.zeros_like(radial) if geometry else None
        for band in pairs.bands:
            edges = _edges(band)
            source, target = pairs.source[edges], pairs.target[edges]
            gaussians, filters = _filters(table, radial, band)
            changes, moved = _filters(table, x_radial, band)  # dW's cotangent is a filter, too
            w_a, w_b, w_c = _filter_parts(filters, channels)  # (P, C) each
            m_a, m_b, m_c = _filter_parts(moved, channels)
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
            _add_product(d_filters[:, -channels:], gamma, g_t)
            _add_rows(d_table, band, gaussians, d_filters)
            _add_rows(d_table, band, changes, _of_filters((alpha, beta, gamma), (g_s, g_v, g_r)))
            along = (x_gamma * w_c).addcmul_(gamma, m_c)  # (2, P, C)
            if d_unit is not None and d_radial is not None:
                _set_radial(d_radial, band, d_filters @ _rows(table, band).T)
                d_unit[edges] = (along[:, :, None] * g_v).sum(dim=-1).flatten(0, 1)

            across = (gamma * w_c)[:, :, None]  # (2, P, 1, C)
            if x_beta is None or beta is None or w_b is None or m_b is None:
                rows, (scalars, vectors) = _new_rows(alpha, channels)
                torch.mul(x_alpha, w_a, out=scalars).addcmul_(alpha, m_a)
                torch.mul(direction, along[:, :, None], out=vectors).addcmul_(turned, across)
                d_grad.index_add_(0, target, rows)
            else:
                x_alpha.mul_(w_a).addcmul_(alpha, m_a)
                x_beta.mul_(w_b[:, None]).addcmul_(beta, m_b[:, None])
                x_beta.addcmul_(direction, along[:, :, None]).addcmul_(turned, across)
                d_grad.index_add_(0, target, x_rows)
                torch.mul(g_v, m_b[:, None], out=x_beta)

            torch.mul(g_s, m_a, out=x_alpha)
            torch.mul(g_r, m_c, out=x_gamma).addcmul_(g_t, w_c)
            d_sent.index_add_(0, source, x_rows)
        return d_grad[:, : 4 * channels], d_sent, d_table, d_unit, d_radial, None, None


def _new_rows(like: Tensor, channels: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Rows (2P, 4C) of what is received, and views of them: (2, P, C) and (2, P, 3, C)."""
    rows = like.new_empty(*like.shape[:2], 4 * channels)
    scalars, vectors = rows.split((channels, 3 * channels), dim=-1)
    return rows.flatten(0, 1), (scalars, vectors.unflatten(-1, (3, channels)))


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
    sent: tuple[Tensor, Tensor | None, Tensor], arrived: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """(P, 3C) what the filters' gradient is for one thing sent and one gradient arrived."""
    (alpha, beta, gamma), (g_s, g_v, g_r) = sent, arrived
    channels = alpha.shape[2]
    result = alpha.new_zeros(alpha.shape[1], (2 if beta is None else 3) * channels)
    d_a, d_b, d_c = _filter_parts(result, channels)
    _add_product(d_a, alpha, g_s)
    _add_product(d_c, gamma, g_r)
    if beta is not None and d_b is not None:
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
