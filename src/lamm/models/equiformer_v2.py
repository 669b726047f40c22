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
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lamm.graph.batch import GraphBatch
from lamm.models.attention import Attention
from lamm.models.blockwise import Into, Rows, blockwise
from lamm.models.edge_frames import EdgeFrames, RadialNetwork, edge_frames, turn_back
from lamm.models.equiformer_config import EquiformerV2Config
from lamm.models.so3 import constant, num_coefficients
from lamm.models.spherical import SO3Linear, SphericalActivation, SphericalNorm, grid_perceptron

__all__ = ["EquiformerV2", "EquiformerV2Config", "FeedForward", "SphericalFeatures", "initialise"]


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

    def scalars(self, x: Tensor, block: int | None, column: Tensor | None = None) -> Tensor:
        """The l = 0 coefficients of `forward`, (N, outputs), at less cost.

        With `column` (N,), the output wanted of each atom, that one alone: (N, 1).
        """
        return self.linear_2.output(self.hidden_scalars(x, block), 0, column)

    def hidden_scalars(self, x: Tensor, block: int | None) -> Tensor:
        """What the linear layer that gives `scalars` is given: (N, hidden)."""
        gated = self.grid is None and self.activation.name == "gate"
        if self.scalar is not None:
            return functional.silu(self.scalar(x[:, 0]))
        if gated:
            return functional.silu(self.linear_1.degree(x[:, 0], 0))
        if self.gate is not None:
            return functional.silu(self.gate(x[:, 0]))
        return self._hidden(x, block)[:, 0]

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

    after_layers = ("norm",)
    """What comes after the last layer, for rates that fall from layer to layer."""

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
        # Training on gradient forces differentiates twice, which blocks can't.
        twice = vectors.requires_grad and self.training
        block = None if twice else self.config.edge_block
        edges = edge_frames(batch, vectors, self.config, block)
        scalars = self.embedding(batch.atomic_numbers)[:, None]  # (N, 1, C)
        rest = scalars.new_zeros(len(scalars), num_coefficients(self.config.l_max) - 1, 1)
        x = torch.cat((scalars, rest.expand(-1, -1, scalars.shape[2])), dim=1)
        x = x + self.degree(edges)
        for layer in self.blocks:
            x = layer(x, edges, batch)
        return SphericalFeatures(self.norm(x), edges)


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
