r"""PaiNN, the encoder of LaMM-S: a scalar and a vector feature on every atom.

Equivariant message passing for the prediction of tensorial properties and molecular spectra,
K. T. Schütt, O. T. Unke and M. Gastegger, ICML 2021, https://arxiv.org/abs/2102.03150; with the
constants of FAIR-Chem, whose weights it takes.

    encoder = PaiNN(PaiNNConfig(channels=64, num_layers=3, cutoff=6.0, max_neighbors=None))
    batch = GraphBatch.from_structures(structures, encoder.config.graph)
    scalars, vectors = encoder(batch, edge_vectors(batch))  # (N, C), (N, 3, C)
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from lamm.errors import ConfigError
from lamm.graph.batch import GraphBatch
from lamm.graph.neighbors import GraphConfig
from lamm.models.layers import GaussianBasis, two_layers, xavier_linear
from lamm.models.messages import Edges, Pairs, group_pairs, sum_messages, sum_pair_messages
from lamm.schema import Frozen

SHORTEST_EDGE = 1e-6
"""Å; a given edge that is shorter has no direction, and its unit vector is shorter than 1."""

BLOCK = 65536
"""Pairs times channels that are worked on at a time, so that they stay in the cache."""
FEWEST_BLOCKS = 5
"""Blocks of a batch with few pairs: the shorter the range of distances that a block has, the fewer
Gaussians it meets, down to a third of `BLOCK`, below which it takes longer to go from one to the
next."""


class PaiNNConfig(Frozen):
    """Sizes of PaiNN and of its graph; the defaults are LaMM-S (Sec. 3)."""

    name: Literal["painn"] = "painn"
    channels: PositiveInt = Field(default=512, ge=2)
    """C, channels of both features."""
    num_layers: PositiveInt = 6
    num_radial: PositiveInt = Field(default=128, ge=2)
    """K, Gaussians of the distance."""
    cutoff: PositiveFloat = 12.0
    """Å."""
    max_neighbors: PositiveInt | None = 50
    """Nearest neighbours of each atom; None: all within the cutoff, as smooth energies need."""
    ties: Literal["shell", "strict"] = "shell"
    """Rule for equal distances at the limit of `max_neighbors` (see `lamm.graph.neighbors`)."""
    num_elements: PositiveInt = Field(default=118, le=118)
    """Elements 1 to this have a row in the embedding, number Z in row Z - 1."""
    envelope_exponent: PositiveInt = 5
    smooth_cutoff: bool = False
    """Let the filters' biases fade out with the envelope too. In FAIR-Chem's PaiNN they don't, and
    the energy jumps a little where a neighbour crosses the cutoff."""
    layer_scales: tuple[float, ...] | None = None
    """What each layer's scalars are multiplied by, fitted to data; None: 1 everywhere."""

    no_architecture: ClassVar[frozenset[str]] = frozenset()
    """Keys that two configurations of the same network may differ in."""

    @model_validator(mode="after")
    def _one_scale_per_layer(self) -> Self:
        if self.layer_scales is not None and len(self.layer_scales) != self.num_layers:
            raise ConfigError(
                f"layer_scales has {len(self.layer_scales)} numbers, expected one for each of the "
                f"{self.num_layers} layers."
            )
        return self

    @property
    def highest_element(self) -> int:
        """The last atomic number that has a row."""
        return self.num_elements

    @property
    def graph(self) -> GraphConfig:
        """The edges that PaiNN is given: each with its reverse."""
        return GraphConfig(
            cutoff=self.cutoff,
            max_neighbors=self.max_neighbors,
            ties=self.ties,
            symmetric=True,
        )


class Features(NamedTuple):
    """What an encoder gives to the heads."""

    scalars: Tensor
    """(N, C)."""
    vectors: Tensor
    """(N, 3, C)."""

    def detach(self) -> Features:
        """The same without a gradient."""
        return Features(self.scalars.detach(), self.vectors.detach())


class Message(nn.Module):
    r"""What an atom hears from its neighbours.

    With :math:`(a, b, c)_{ij} = \phi(s_j) \circ W(d_{ij})`:

    .. math::

        \Delta s_i = \sum_j a_{ij}, \quad
        \Delta \vec v_i = \frac{1}{\sqrt C} \sum_j
            \left( \frac{\vec v_j \circ b_{ij}}{\sqrt 3} + \hat r_{ij} c_{ij} \right)
    """

    def __init__(self, channels: int, num_radial: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.net = two_layers(channels, channels, 3 * channels)
        self.filter = xavier_linear(num_radial, 3 * channels)

    def forward(self, scalars: Tensor, vectors: Tensor | None, edges: Edges | Pairs) -> Features:
        """Changes of scalars (N, C) and vectors (N, 3, C); None: all vectors are zero."""
        channels = scalars.shape[1]
        a, b, c = self.net(self.norm(scalars)).split(channels, dim=1)  # (N, C) each
        b, c = b * (3 * channels) ** -0.5, c * channels**-0.5
        weight: Tensor = self.filter.weight
        bias: Tensor = self.filter.bias
        if vectors is None:
            sent = torch.cat((a, c), dim=1)  # (N, 2C)
            weight, bias = _without_second(weight, channels), _without_second(bias, channels)
        else:
            sent = torch.cat((a, (b[:, None] * vectors).flatten(1), c), dim=1)  # (N, 5C)
        if isinstance(edges, Pairs):
            received = sum_pair_messages(sent, weight, bias, edges)  # (N, 4C)
        else:
            received = sum_messages(sent, weight, bias, edges)  # (N, 4C)
        ds, dv = received.split((channels, 3 * channels), dim=1)
        return Features(ds, dv.unflatten(1, (3, channels)))


def _without_second(rows: Tensor, channels: int) -> Tensor:
    """The first and the third C of 3C rows."""
    first, _, third = rows.split(channels)
    return torch.cat((first, third))


class Update(nn.Module):
    r"""What an atom makes of its own features.

    With :math:`\vec v_1, \vec v_2` two mixtures of the vectors and
    :math:`(p, q, r) = \phi(s, |\vec v_2|)`:

    .. math::

        \Delta s = \left( p + q\, \vec v_1 \cdot \vec v_2 / \sqrt C \right) / \sqrt 2, \quad
        \Delta \vec v = r\, \vec v_1
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = xavier_linear(channels, 2 * channels, bias=False)
        self.net = two_layers(2 * channels, channels, 3 * channels)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Features:
        """Changes of scalars (N, C) and vectors (N, 3, C)."""
        channels = scalars.shape[1]
        first, second = self.mix(vectors).split(channels, dim=2)  # (N, 3, C) each
        dot = (first * second).sum(dim=1) * channels**-0.5  # (N, C)
        length = ((second * second).sum(dim=1) + 1e-8).sqrt()  # (N, C), smooth at zero
        p, q, r = self.net(torch.cat((scalars, length), dim=1)).split(channels, dim=1)
        return Features((p + q * dot) * 2**-0.5, r[:, None] * first)


class PaiNN(nn.Module):
    """Encoder of Eq. (1): embedding, then message and update in each layer."""

    def __init__(self, config: PaiNNConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_elements, config.channels)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.basis = GaussianBasis(config.num_radial, config.cutoff, config.envelope_exponent)
        self.messages = nn.ModuleList(
            Message(config.channels, config.num_radial) for _ in range(config.num_layers)
        )
        self.updates = nn.ModuleList(Update(config.channels) for _ in range(config.num_layers))
        scales = torch.tensor(config.layer_scales or (1.0,) * config.num_layers)
        self.scales = nn.Parameter(scales, requires_grad=False)  # fitted before training, not by it

    def forward(self, batch: GraphBatch, vectors: Tensor) -> Features:
        """Encode the atoms.

        Args:
            batch: atoms and paired edges.
            vectors: (E, 3) the edges' vectors in Å, in the precision of the weights.
        """
        edges = self._edges(batch, vectors)
        s = self.embedding(batch.atomic_numbers - 1)  # (N, C)
        v = None  # zero: nothing points anywhere before the first message
        for message, update, scale in zip(self.messages, self.updates, self.scales, strict=True):
            ds, dv = message(s, v, edges)
            s, v = (s + ds) * 2**-0.5, dv if v is None else v + dv
            ds, dv = update(s, v)
            s, v = (s + ds) * scale, v + dv
        assert v is not None, "there is a layer"
        return Features(s, v)

    def _edges(self, batch: GraphBatch, vectors: Tensor) -> Edges | Pairs:
        """Directions and radial functions of the edges, or of half of them in pairs.

        Pairs are faster, on a CPU.
        """
        source, target = batch.edge_index[0], batch.edge_index[1]
        in_pairs = vectors.device.type == "cpu" and batch.edge_kind == "paired"
        given = vectors
        if in_pairs:
            first = first_of_pair(batch).nonzero().squeeze(-1)  # (E / 2,)
            length = torch.linalg.vector_norm(vectors.detach().index_select(0, first), dim=1)
            first = first[length.argsort(stable=True)]
            source, target = source[first], target[first]
            vectors = vectors.index_select(0, first)
        distance = torch.linalg.vector_norm(vectors, dim=1)  # (E,)
        unit = vectors / distance.clamp(min=SHORTEST_EDGE)[:, None]
        radial, envelope = self.basis(distance)
        fade = envelope if self.config.smooth_cutoff else torch.ones_like(envelope)
        edges = Edges(source, target, unit, torch.cat((radial, fade[:, None]), dim=1))
        if not in_pairs:
            return edges
        steps = distance.detach() * ((self.config.num_radial - 1) / self.config.cutoff)
        return group_pairs(edges, steps, block_pairs(len(first), self.config.channels), given)


def block_pairs(num_pairs: int, channels: int) -> int:
    """Pairs that are worked on at a time."""
    most = max(BLOCK // channels, 32)
    return max(min(most, -(-num_pairs // FEWEST_BLOCKS)), most // 3)


def first_of_pair(batch: GraphBatch) -> Tensor:
    """(E,) whether an edge is the one of its pair that stands for both."""
    source, target = batch.edge_index[0], batch.edge_index[1]
    x, y, z = batch.cell_offsets.unbind(1)
    negative = (x < 0) | ((x == 0) & ((y < 0) | ((y == 0) & (z < 0))))
    return (source < target) | ((source == target) & negative)
