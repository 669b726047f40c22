"""EquiformerV2's attention over the neighbours of an atom, in the frames of the edges."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lamm.models.blockwise import Into, Rows, blockwise
from lamm.models.edge_frames import EdgeFrames, RadialNetwork, turn_back
from lamm.models.equiformer_config import EquiformerV2Config
from lamm.models.layers import segment_sum
from lamm.models.so2 import SO2Convolution
from lamm.models.so3 import constant, rows_of_degree
from lamm.models.spherical import SO3Linear, SphericalActivation


class Attention(nn.Module):
    r"""Attention over an atom's neighbours, with values that turn with the structure.

    In the frame of the edge :math:`j \to i`, with :math:`\ast` an SO(2) convolution:

    .. math::

        (a, u)_{ij} = (x_j \oplus x_i) \circ W(d_{ij}) \ast w_1, \quad v_{ij} = \sigma(u) \ast w_2,

        \alpha_{ij} = \mathrm{softmax}_j\; w \cdot \mathrm{leaky}(\mathrm{norm}(a_{ij})), \quad
        \Delta x_i = W \sum_j \alpha_{ij} D_{ij}^{-1} v_{ij}
    """

    def __init__(self, config: EquiformerV2Config, outputs: int, dropout: float) -> None:
        super().__init__()
        layout, hidden = config.edge_layout, config.attention_hidden
        self.layout, self.atom_layout, self.channels = layout, config.atom_layout, config.channels
        self.heads, self.alpha_channels = config.num_heads, config.alpha_channels
        self.value_channels = config.value_channels
        self.shared_radial, self.dropout = config.shared_radial, dropout
        self.activation = SphericalActivation(
            config.attention_activation, layout, hidden, config.grid_resolution
        )
        rows = (config.l_max + 1) if config.shared_radial else self._radial_rows()
        self.radial = RadialNetwork(config, rows * 2 * config.channels)
        self.num_alpha = self.heads * self.alpha_channels
        extra = self.num_alpha + self.activation.num_gates
        self.convolution_1 = SO2Convolution(2 * config.channels, hidden, layout, extra)
        self.score_norm = nn.LayerNorm(self.alpha_channels) if config.alpha_norm else nn.Identity()
        self.score = nn.Parameter(torch.empty(self.heads, self.alpha_channels))
        bound = 1 / math.sqrt(self.alpha_channels)
        nn.init.uniform_(self.score, -bound, bound)
        values = self.heads * config.value_channels
        self.convolution_2 = SO2Convolution(hidden, values, layout)
        self.project = SO3Linear(values, outputs, config.l_max)

    def forward(self, x: Tensor, edges: EdgeFrames) -> Tensor:
        """Changes (N, M, outputs) of the coefficients (N, M, C)."""
        alpha, hidden = self._hidden(x, edges)
        result: Tensor = self.project(self._gather(alpha, hidden, edges, None))
        return result

    def degree(
        self, x: Tensor, edges: EdgeFrames, degree: int, column: Tensor | None = None
    ) -> Tensor:
        """The one degree of `forward`, (N, 2l + 1, outputs), at less cost.

        With `column` (N,), the output wanted of each atom, that one alone: (N, 2l + 1, 1).
        """
        alpha, hidden = self._hidden(x, edges)
        return self.project.output(self._gather(alpha, hidden, edges, degree), degree, column)

    def _hidden(self, x: Tensor, edges: EdgeFrames) -> tuple[Tensor, Tensor]:
        """Attention weights (E, heads), and what is between the convolutions (E, ...)."""
        rows = (
            Rows(x, edges.source),
            Rows(x, edges.target),
            Rows(edges.wigner),
            Rows(self.radial(edges)),
        )
        hidden = blockwise(
            self._along_edge,
            rows,
            self.radial.expand,
            block=edges.block,
            product=self.convolution_1.weights(),
        )
        scores, hidden = hidden.split((self.num_alpha, hidden.shape[1] - self.num_alpha), dim=1)
        return self._weights(scores, edges), hidden

    def _along_edge(
        self,
        source: Tensor,
        target: Tensor,
        wigner: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """Both atoms' coefficients in the edges' frames, times the radial functions."""
        width = 2 * self.channels
        radial = functional.linear(hidden, weight, bias)
        radial = radial.unflatten(1, (radial.shape[1] // width, width))
        if self.shared_radial:
            degrees = constant(self.atom_layout, "degrees", radial.device)
            pair = torch.cat((source, target), dim=2)  # (E, M, 2C)
            turned: Tensor = wigner @ (pair * radial.index_select(1, degrees))
            return turned.flatten(1)
        along = torch.cat((wigner @ source, wigner @ target), dim=2)  # (E, M', 2C)
        counts = [self.layout.count(m) for m in range(self.layout.m_max + 1)]
        signs = [2 if m else 1 for m in range(self.layout.m_max + 1)]
        of_order = along.split([n * s for n, s in zip(counts, signs, strict=True)], dim=1)
        parts = [
            (part.unflatten(1, (s, n)) * factor[:, None]).flatten(1)
            for part, factor, n, s in zip(
                of_order, radial.split(counts, 1), counts, signs, strict=True
            )
        ]
        return torch.cat(parts, dim=1)

    def _radial_rows(self) -> int:
        r"""Pairs of l and \\|m\\|, which have a radial function each."""
        return sum(self.layout.count(m) for m in range(self.layout.m_max + 1))

    def _weights(self, scores: Tensor, edges: EdgeFrames) -> Tensor:
        """Attention weights (E, heads) from scores (E, heads * alpha_channels)."""
        dtype = torch.promote_types(scores.dtype, torch.float32)
        logits = blockwise(
            self._logits,
            (Rows(scores),),
            (self.score, *self.score_norm.parameters()),
            block=edges.block,
        )
        weights = segment_softmax(logits.to(dtype), edges.target, edges.num_atoms)
        return functional.dropout(weights, self.dropout, self.training)

    def _logits(
        self,
        scores: Tensor,
        score: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """(E, heads)."""
        scores = scores.unflatten(1, (self.heads, self.alpha_channels))
        if weight is not None:
            scores = functional.layer_norm(scores, (self.alpha_channels,), weight, bias)
        return (smooth_leaky_relu(scores) * score).sum(dim=2)

    def _gather(
        self, alpha: Tensor, hidden: Tensor, edges: EdgeFrames, degree: int | None
    ) -> Tensor:
        """Sum of the values of all neighbours, (N, M or 2l + 1, heads * value_channels)."""
        gates, x = hidden.split(self.activation.split_sizes, dim=1)
        x = self.activation(
            gates, x.unflatten(1, (self.layout.size, self.activation.channels)), edges.grid_block
        )
        values = blockwise(
            _same,
            (Rows(x.flatten(1)),),
            block=edges.block,
            product=self.convolution_2.weights(degree),
        )
        wigner, rescale = edges.wigner, constant(self.layout, "rescale", x.device).to(x.dtype)
        if degree is not None:
            # Rows of this degree alone; the convolution's outputs come in the same order.
            keep = rows_of_degree(self.layout, degree, x.device)
            wigner = wigner.index_select(1, keep)[:, :, degree**2 : (degree + 1) ** 2]
            rescale = rescale.index_select(0, keep)
        return blockwise(
            self._send,
            (Rows(values), Rows(alpha), Rows(wigner)),
            (rescale,),
            block=edges.block,
            into=Into(edges.target, edges.num_atoms),
        )

    def _send(self, values: Tensor, alpha: Tensor, wigner: Tensor, rescale: Tensor) -> Tensor:
        """Values (E, ...) times attention weights (E, heads), turned back to the atoms' frame."""
        split = values.unflatten(1, (wigner.shape[1], self.heads, self.value_channels))
        return turn_back((split * alpha[:, None, :, None]).flatten(2), wigner, rescale)


def _same(x: Tensor) -> Tensor:
    return x


def smooth_leaky_relu(x: Tensor, slope: float = 0.2) -> Tensor:
    """A smooth step from the slope `slope` to the slope 1."""
    return (1 + slope) / 2 * x + (1 - slope) / 2 * x * (2 * torch.sigmoid(x) - 1)


def segment_softmax(logits: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over the rows that have the same index, (E, H) to (E, H)."""
    with torch.no_grad():
        where = index[:, None].expand_as(logits)
        largest = logits.new_full((size, logits.shape[1]), -math.inf)
        largest = largest.scatter_reduce(0, where, logits, "amax").index_select(0, index)
    exponentials = (logits - largest).exp()
    total = segment_sum(exponentials, index, size)
    return exponentials / total.index_select(0, index)
