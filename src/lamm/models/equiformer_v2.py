r"""EquiformerV2, the encoder of LaMM-L: on every atom a function on the sphere for each channel.

EquiformerV2: Improved Equivariant Transformer for Scaling to Higher-Degree Representations,
Y.-L. Liao, B. Wood, A. Das and T. Smidt, ICLR 2024, https://arxiv.org/abs/2306.12059; with the
constants of FAIR-Chem, whose weights it takes.

    encoder = EquiformerV2(EquiformerV2Config(channels=32, num_layers=2, l_max=2, cutoff=6.0))
    batch = GraphBatch.from_structures(structures, encoder.config.graph)
    features = encoder(batch, edge_vectors(batch))  # .scalars (N, C), .vectors (N, 3, C)

What depends on the edges alone is made once for all layers (`EdgeFrames`). What is done on the
edges is done in blocks and computed again for the gradient (`lamm.models.blockwise`).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from lamm.errors import ConfigError
from lamm.graph.batch import GraphBatch
from lamm.graph.neighbors import GraphConfig
from lamm.models.bands import Radial, radial_product, sort_radial
from lamm.models.blockwise import Into, Rows, blockwise
from lamm.models.layers import segment_sum
from lamm.models.so2 import SO2Convolution
from lamm.models.so3 import Layout, constant, edge_wigner, num_coefficients, rows_of_degree
from lamm.models.spherical import (
    ActivationName,
    NormName,
    SO3Linear,
    SphericalActivation,
    SphericalNorm,
    grid_perceptron,
)
from lamm.schema import Frozen

Probability = Annotated[float, Field(ge=0, lt=1)]

RADIAL_WIDTH = 2.0
"""Standard deviation of the Gaussians of the distance, in steps between their centres."""


class EquiformerV2Config(Frozen):
    """Sizes of EquiformerV2 and of its graph; the defaults are LaMM-L (Sec. 3)."""

    name: Literal["equiformer_v2"] = "equiformer_v2"
    channels: PositiveInt = Field(default=128, ge=2)
    """C, channels of every coefficient."""
    num_layers: PositiveInt = 8
    l_max: PositiveInt = Field(default=4, le=10)
    """Highest degree of the features."""
    m_max: NonNegativeInt = 2
    """Highest order that the edges' convolutions keep, at most l_max."""
    num_heads: PositiveInt = 8
    attention_hidden: PositiveInt = 64
    """Channels between the two convolutions of an edge."""
    alpha_channels: PositiveInt = 64
    """Channels per head that an attention weight is made of."""
    value_channels: PositiveInt = 16
    """Channels per head of what an edge sends."""
    feed_forward_hidden: PositiveInt = 128
    edge_channels: PositiveInt = 128
    """Channels of the radial networks and of the elements' embeddings in them."""
    num_radial: PositiveInt = Field(default=600, ge=2)
    """K, Gaussians of the distance."""
    cutoff: PositiveFloat = 12.0
    """Å."""
    max_neighbors: PositiveInt | None = 20
    """Nearest neighbours of each atom; None: all within the cutoff."""
    ties: Literal["shell", "strict"] = "shell"
    """Rule for equal distances at the limit of `max_neighbors` (see `lamm.graph.neighbors`)."""
    num_elements: PositiveInt = Field(default=118, ge=2, le=119)
    """Rows of the embeddings; element Z is in row Z, so the elements are 1 to num_elements - 1."""
    grid_resolution: PositiveInt | None = 18
    """Steps of both angles of the grid on the sphere, even; None: the fewest that FAIR-Chem has."""
    norm: NormName = "layer_norm_sh"
    attention_activation: ActivationName = "separable_s2"
    feed_forward_activation: ActivationName = "separable_s2"
    """With `grid_mlp` the one of l = 0: ``separable_s2`` takes it out of the grid."""
    grid_mlp: bool = True
    """A network on the grid's points in the feed-forward part, instead of an activation."""
    alpha_norm: bool = True
    """Normalise what the attention weights are made of."""
    atom_edge_embedding: bool = True
    """Let the radial networks see the elements of both atoms."""
    shared_radial: bool = False
    """One radial weight for all orders of a degree, applied before the rotation."""
    alpha_dropout: Probability = 0.1
    """Of attention weights, in the encoder's layers."""
    drop_path: Probability = 0.1
    """Of a layer's attention or feed-forward part, for a structure at a time."""
    projection_dropout: Probability = 0.0
    """Of channels of those parts, for an atom at a time."""
    weight_init: Literal["uniform", "normal"] = "uniform"
    average_atoms: PositiveFloat = 77.81317
    """What the energy is divided by: atoms of an average structure."""
    average_degree: PositiveFloat = 23.395238876342773
    """What the sum over neighbours in the first embedding is divided by."""
    edge_block: PositiveInt | None = 256
    """Edges that are worked on at a time; all of them at once, and keeping all that the gradient
    needs, where it is None. It changes time and memory, not results."""

    no_architecture: ClassVar[frozenset[str]] = frozenset({"edge_block"})
    """Keys that two configurations of the same network may differ in."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.m_max > self.l_max:
            raise ConfigError(f"m_max is {self.m_max}, expected at most l_max, {self.l_max}.")
        steps = self.grid_resolution
        if steps is not None and (steps % 2 or steps < 2 * (self.l_max + 1)):
            raise ConfigError(
                f"grid_resolution is {steps}, expected an even number of at least "
                f"{2 * (self.l_max + 1)}, 2 (l_max + 1)."
            )
        return self

    @property
    def highest_element(self) -> int:
        """The last atomic number that has a row."""
        return self.num_elements - 1

    @property
    def graph(self) -> GraphConfig:
        """The edges that EquiformerV2 is given."""
        return GraphConfig(cutoff=self.cutoff, max_neighbors=self.max_neighbors, ties=self.ties)

    @property
    def edge_layout(self) -> Layout:
        """The coefficients in an edge's frame."""
        return Layout(self.l_max, self.m_max)

    @property
    def atom_layout(self) -> Layout:
        """The coefficients on an atom."""
        return Layout(self.l_max, self.l_max, by_degree=True)


class EdgeFrames(NamedTuple):
    """What all layers know of the edges."""

    source: Tensor
    """(E,) atom j."""
    target: Tensor
    """(E,) atom i."""
    source_element: Tensor
    """(E,) atomic number of j."""
    target_element: Tensor
    """(E,)."""
    radial: Radial
    """Gaussians of the distance."""
    wigner: Tensor
    """(E, M', M) from the atoms' frame to the edge's."""
    num_atoms: int
    """N."""
    block: int | None
    """Edges that are worked on at a time."""

    @property
    def grid_block(self) -> int | None:
        """Edges whose grids are made at a time."""
        return None if self.block is None else max(self.block // 4, 1)

    @property
    def atom_block(self) -> int | None:
        """Atoms that are worked on at a time: a grid is larger than an edge."""
        return None if self.block is None else max(self.block // 8, 1)


class SphericalFeatures(NamedTuple):
    """What the encoder gives to the heads."""

    coefficients: Tensor
    """(N, M, C) in the order of l, then m."""
    edges: EdgeFrames

    @property
    def scalars(self) -> Tensor:
        """(N, C), l = 0."""
        return self.coefficients[:, 0]

    @property
    def vectors(self) -> Tensor:
        """(N, 3, C), l = 1, whose order is x, y, z."""
        return self.coefficients[:, 1:4]

    def detach(self) -> SphericalFeatures:
        """The same without a gradient."""
        return self._replace(coefficients=self.coefficients.detach())


class RadialNetwork(nn.Module):
    """A network of the distance and both elements, up to its last layer, which `expand` is."""

    def __init__(self, config: EquiformerV2Config, outputs: int) -> None:
        super().__init__()
        width = config.edge_channels
        self.num_radial = config.num_radial
        inputs = config.num_radial
        self.source = self.target = None
        if config.atom_edge_embedding:
            self.source = _small_embedding(config.num_elements, width)
            self.target = _small_embedding(config.num_elements, width)
            inputs += 2 * width
        self.net = nn.Sequential(
            nn.Linear(inputs, width),
            nn.LayerNorm(width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.SiLU(),
            nn.Linear(width, outputs),
        )

    def forward(self, edges: EdgeFrames) -> Tensor:
        """Hidden features (E, edge_channels).

        The first layer is a sum of three: of the distance, of the source's element and of the
        target's. The latter two are tabulated.
        """
        first = self.net[0]
        assert isinstance(first, nn.Linear)
        hidden = radial_product(edges.radial, first.weight[:, : self.num_radial]) + first.bias
        if self.source is not None and self.target is not None:
            width = self.source.embedding_dim
            of_source, of_target = first.weight[:, self.num_radial :].split(width, dim=1)
            by_source = functional.linear(self.source.weight, of_source)  # (elements, width)
            by_target = functional.linear(self.target.weight, of_target)
            hidden = hidden + by_source.index_select(0, edges.source_element)
            hidden = hidden + by_target.index_select(0, edges.target_element)
        result: Tensor = self.net[1:6](hidden)
        return result

    @property
    def expand(self) -> tuple[Tensor, Tensor]:
        """Weight (outputs, edge_channels) and bias (outputs,) of the last layer."""
        last = self.net[6]
        assert isinstance(last, nn.Linear)
        return last.weight, last.bias


def _small_embedding(rows: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, width)
    nn.init.uniform_(embedding.weight, -0.001, 0.001)
    return embedding


class DegreeEmbedding(nn.Module):
    """Each atom's first features: what its neighbours' distances and elements say."""

    def __init__(self, config: EquiformerV2Config) -> None:
        super().__init__()
        self.layout, self.channels = config.edge_layout, config.channels
        self.average_degree = config.average_degree
        self.radial = RadialNetwork(config, (config.l_max + 1) * config.channels)

    def forward(self, edges: EdgeFrames) -> Tensor:
        """(N, M, C)."""
        rescale = constant(self.layout, "rescale", edges.wigner.device).to(edges.wigner.dtype)
        total = blockwise(
            self._send,
            (Rows(self.radial(edges)), Rows(edges.wigner)),
            (*self.radial.expand, rescale),
            block=edges.block,
            into=Into(edges.target, edges.num_atoms),
        )
        return total / self.average_degree

    def _send(
        self, hidden: Tensor, wigner: Tensor, weight: Tensor, bias: Tensor, rescale: Tensor
    ) -> Tensor:
        """Radial functions as m = 0 coefficients, turned back from the edges' frames."""
        degrees = self.layout.l_max + 1
        along = functional.linear(hidden, weight, bias).unflatten(1, (degrees, self.channels))
        return turn_back(along, wigner[:, :degrees], rescale[:degrees])


def turn_back(along: Tensor, wigner: Tensor, rescale: Tensor) -> Tensor:
    """From the edges' frames to the atoms': (E, R, C) to (E, M, C).

    Args:
        along: coefficients in the edges' frames.
        wigner: (E, R, M) from the atoms' frame to the edges'.
        rescale: (R,) of `Layout`.
    """
    return wigner.transpose(1, 2) @ (along * rescale[:, None])


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

    def degree(self, x: Tensor, edges: EdgeFrames, degree: int) -> Tensor:
        """The one degree of `forward`, (N, 2l + 1, outputs), at less cost."""
        alpha, hidden = self._hidden(x, edges)
        return self.project.degree(self._gather(alpha, hidden, edges, degree), degree)

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


class FeedForward(nn.Module):
    """A network on each atom's coefficients: (N, M, C) to (N, M, outputs)."""

    def __init__(self, config: EquiformerV2Config, outputs: int) -> None:
        super().__init__()
        hidden = config.feed_forward_hidden
        self.layout, self.resolution = config.atom_layout, config.grid_resolution
        self.linear_1 = SO3Linear(config.channels, hidden, config.l_max)
        self.activation = SphericalActivation(
            config.feed_forward_activation, self.layout, hidden, config.grid_resolution
        )
        self.scalar = self.gate = self.grid = None
        if config.grid_mlp:
            if config.feed_forward_activation == "separable_s2":
                self.scalar = nn.Linear(config.channels, hidden)
            self.grid = nn.Sequential(
                nn.Linear(hidden, hidden, bias=False),
                nn.SiLU(),
                nn.Linear(hidden, hidden, bias=False),
                nn.SiLU(),
                nn.Linear(hidden, hidden, bias=False),
            )
        elif self.activation.num_gates:
            self.gate = nn.Linear(config.channels, self.activation.num_gates)
        self.linear_2 = SO3Linear(hidden, outputs, config.l_max)

    def forward(self, x: Tensor, block: int | None) -> Tensor:
        """Apply it, to so many atoms at a time."""
        result: Tensor = self.linear_2(self._hidden(x, block))
        return result

    def scalars(self, x: Tensor, block: int | None) -> Tensor:
        """The l = 0 coefficients of `forward`, (N, outputs), at less cost."""
        gated = self.grid is None and self.activation.name == "gate"
        if self.scalar is not None:
            hidden = functional.silu(self.scalar(x[:, 0]))
        elif gated:
            hidden = functional.silu(self.linear_1.degree(x[:, 0], 0))
        elif self.gate is not None:
            hidden = functional.silu(self.gate(x[:, 0]))
        else:
            hidden = self._hidden(x, block)[:, 0]
        return self.linear_2.degree(hidden, 0)

    def idle_layers(self) -> list[nn.Module]:
        """Those that `scalars` doesn't need."""
        if self.scalar is not None and self.grid is not None:
            return [self.linear_1, self.grid]
        if self.gate is None:
            return []
        return [self.gate] if self.activation.name == "gate" else [self.linear_1]

    def _hidden(self, x: Tensor, block: int | None) -> Tensor:
        hidden: Tensor = self.linear_1(x)
        if self.grid is not None:
            weights = tuple(self.grid.parameters())
            hidden = blockwise(self._on_grid, (Rows(hidden),), weights, block=block)
            if self.scalar is not None:
                scalar = functional.silu(self.scalar(x[:, :1]))
                hidden = torch.cat((scalar, hidden[:, 1:]), dim=1)
            return hidden
        gates = x.new_zeros(len(x), 0) if self.gate is None else self.gate(x[:, 0])
        return blockwise(self.activation, (Rows(gates), Rows(hidden)), block=block)

    def _on_grid(self, x: Tensor, first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
        return grid_perceptron(x, first, middle, last, self.layout, self.resolution)


class Block(nn.Module):
    """One layer: attention over the neighbours, then a network on each atom."""

    def __init__(self, config: EquiformerV2Config) -> None:
        super().__init__()
        self.drop_path, self.dropout = config.drop_path, config.projection_dropout
        self.norm_1 = SphericalNorm(config.norm, config.l_max, config.channels)
        self.attention = Attention(config, config.channels, config.alpha_dropout)
        self.norm_2 = SphericalNorm(config.norm, config.l_max, config.channels)
        self.feed_forward = FeedForward(config, config.channels)

    def forward(self, x: Tensor, edges: EdgeFrames, batch: GraphBatch) -> Tensor:
        """The next coefficients (N, M, C)."""
        x = x + self._dropped(self.attention(self.norm_1(x), edges), batch)
        return x + self._dropped(self.feed_forward(self.norm_2(x), edges.atom_block), batch)

    def _dropped(self, change: Tensor, batch: GraphBatch) -> Tensor:
        """In training, leave the change out for some structures, and some channels of it."""
        if not self.training:
            return change
        if self.drop_path:
            kept = functional.dropout(change.new_ones(batch.num_structures), self.drop_path)
            change = change * kept.index_select(0, batch.structure_index)[:, None, None]
        if self.dropout:
            ones = change.new_ones(len(change), 1, change.shape[2])
            change = change * functional.dropout(ones, self.dropout)
        return change


class EquiformerV2(nn.Module):
    """Encoder of Eq. (1): embedding, then the layers, then a last norm."""

    def __init__(self, config: EquiformerV2Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_elements, config.channels)
        self.degree = DegreeEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = SphericalNorm(config.norm, config.l_max, config.channels)
        initialise(self, config.weight_init)

    def forward(self, batch: GraphBatch, vectors: Tensor) -> SphericalFeatures:
        """Encode the atoms.

        Args:
            batch: atoms and edges.
            vectors: (E, 3) the edges' vectors in Å, in the precision of the weights.
        """
        edges = self._edges(batch, vectors)
        scalars = self.embedding(batch.atomic_numbers)[:, None]  # (N, 1, C)
        rest = scalars.new_zeros(len(scalars), num_coefficients(self.config.l_max) - 1, 1)
        x = torch.cat((scalars, rest.expand(-1, -1, scalars.shape[2])), dim=1)
        x = x + self.degree(edges)
        for block in self.blocks:
            x = block(x, edges, batch)
        return SphericalFeatures(self.norm(x), edges)

    def _edges(self, batch: GraphBatch, vectors: Tensor) -> EdgeFrames:
        source, target = batch.edge_index[0], batch.edge_index[1]
        # Training on gradient forces differentiates twice, which blocks can't.
        twice = vectors.requires_grad and self.training
        block = None if twice else self.config.edge_block
        return EdgeFrames(
            source=source,
            target=target,
            source_element=batch.atomic_numbers.index_select(0, source),
            target_element=batch.atomic_numbers.index_select(0, target),
            radial=self._radial(torch.linalg.vector_norm(vectors, dim=1), block),
            wigner=edge_wigner(vectors, self.config.edge_layout),
            num_atoms=len(batch.atomic_numbers),
            block=block,
        )

    def _radial(self, distance: Tensor, block: int | None) -> Radial:
        """Gaussians of the distance (E,) in Å, whose bands pay on a CPU alone."""
        count, cutoff = self.config.num_radial, self.config.cutoff
        centres = torch.arange(count, device=distance.device, dtype=distance.dtype)
        steps = distance * ((count - 1) / cutoff)  # (E,)
        values = torch.exp(-0.5 * ((steps[:, None] - centres) / RADIAL_WIDTH) ** 2)  # (E, K)
        if block is None or distance.device.type != "cpu":
            return Radial(values)
        return sort_radial(values, steps, RADIAL_WIDTH)


@torch.no_grad()
def initialise(module: nn.Module, weight_init: str) -> None:
    """Draw first weights as FAIR-Chem does.

    Biases are zero. Matrices are uniform within 1/sqrt(inputs), as PyTorch draws them, or normal
    with that standard deviation; those of the radial networks are always uniform.
    """
    networks = [layer for layer in module.modules() if isinstance(layer, RadialNetwork)]
    radial = {id(layer) for network in networks for layer in network.modules()}
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
        if weight_init == "normal" and id(layer) not in radial:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 1 / math.sqrt(layer.in_features))
            elif isinstance(layer, SO3Linear):
                nn.init.normal_(layer.weight, 0, 1 / math.sqrt(layer.inputs))
