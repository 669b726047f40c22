r"""PaiNN's sum over neighbours, written twice: to be read, and to be fast on a processor.

Every atom j sends :math:`(\alpha, \vec\beta, \gamma)_j`, and a filter of the distance weighs them:

.. math::

    s_i = \sum_j \alpha_j W^a_{ij}, \quad
    \vec v_i = \sum_j \left( \vec\beta_j W^b_{ij} + \hat r_{ij} \gamma_j W^c_{ij} \right), \quad
    W_{ij} = \omega\, e(d_{ij}) + u(d_{ij})\, b

`sum_messages` is that, with one row per edge; it runs on any device and can be differentiated any
number of times. `sum_pair_messages` gives the same numbers from pairs of atoms:

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
    """The same as `sum_messages`, on a CPU; it can be differentiated once."""
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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sent, table, unit, radial = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        channels = table.shape[1] // 3
        grad = grad.contiguous()
        d_sent, d_table = torch.zeros_like(sent), torch.zeros_like(table)
        d_unit = torch.zeros_like(unit) if ctx.needs_input_grad[2] else None
        d_radial = torch.zeros_like(radial) if ctx.needs_input_grad[3] else None
        for band in pairs.bands:
            gaussians, filters = _filters(table, radial, band)
            w_a, w_b, w_c = filters.split(channels, dim=-1)  # (P, C) each
            direction = unit[_edges(band)].unflatten(0, (2, -1))[..., None]  # (2, P, 3, 1)
            arrived = grad.index_select(0, pairs.target[_edges(band)]).unflatten(0, (2, -1))
            g_s, g_v = arrived[..., :channels], arrived[..., channels:].unflatten(-1, (3, channels))
            rows = sent.index_select(0, pairs.source[_edges(band)])  # (2P, 5C), changed in place
            alpha, beta, gamma = _parts(rows.unflatten(0, (2, -1)), channels)

            g_r = direction[:, :, 0] * g_v[:, :, 0]  # (2, P, C) along the edge
            g_r.addcmul_(direction[:, :, 1], g_v[:, :, 1])
            g_r.addcmul_(direction[:, :, 2], g_v[:, :, 2])

            d_filters = torch.zeros_like(filters)  # (P, 3C)
            d_a, d_b, d_c = d_filters.split(channels, dim=-1)
            for way in (0, 1):
                d_a.addcmul_(alpha[way], g_s[way])
                d_c.addcmul_(gamma[way], g_r[way])
                for axis in (0, 1, 2):
                    d_b.addcmul_(beta[way, :, axis], g_v[way, :, axis])
            d_rows = gaussians.T @ d_filters  # (high - low + 1, 3C)
            d_table[band.low : band.high] += d_rows[:-1]
            d_table[-1] += d_rows[-1]

            if d_unit is not None:
                along = (gamma * w_c)[:, :, None] * g_v  # (2, P, 3, C)
                d_unit[_edges(band)] = along.sum(dim=-1).flatten(0, 1)
            if d_radial is not None:
                near = d_filters @ _rows(table, band).T
                d_radial[band.start : band.stop, band.low : band.high] = near[:, :-1]
                d_radial[band.start : band.stop, -1] = near[:, -1]

            torch.mul(g_s, w_a, out=alpha)
            torch.mul(g_v, w_b[:, None], out=beta)
            torch.mul(g_r, w_c, out=gamma)
            d_sent.index_add_(0, pairs.source[_edges(band)], rows)
        return d_sent, d_table, d_unit, d_radial, None


def _rows(table: Tensor, band: Band) -> Tensor:
    """The filter's weights of a band's Gaussians, and its bias."""
    return torch.cat((table[band.low : band.high], table[-1:]))


def _filters(table: Tensor, radial: Tensor, band: Band) -> tuple[Tensor, Tensor]:
    """A band's radial functions (P, high - low + 1), the last of them u, and filters (P, 3C)."""
    near = radial[band.start : band.stop]
    near = torch.cat((near[:, band.low : band.high], near[:, -1:]), dim=1)
    return near, near @ _rows(table, band)
