"""What EquiformerV2 knows of an edge: its frame, and networks of its length and its elements."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lamm.graph.batch import GraphBatch
from lamm.models.bands import Radial, radial_product, sort_radial
from lamm.models.equiformer_config import EquiformerV2Config
from lamm.models.so3 import edge_wigner

RADIAL_WIDTH = 2.0
"""Standard deviation of the Gaussians of the distance, in steps between their centres."""


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
        """Edges whose grids are made at a time.

        An odd number, lest the lines of a grid lie a multiple of 4 KiB apart in memory, where they
        would drive each other out of the cache: the products then took up to 20 times as long.
        """
        return None if self.block is None else self.block // 16 | 1

    @property
    def atom_block(self) -> int | None:
        """Atoms that are worked on at a time, odd as well: a grid is larger than an edge."""
        return None if self.block is None else self.block // 32 | 1


def edge_frames(
    batch: GraphBatch, vectors: Tensor, config: EquiformerV2Config, block: int | None
) -> EdgeFrames:
    """Make what all layers share.

    Args:
        batch: atoms and edges.
        vectors: (E, 3) the edges' vectors in Å.
        config: sizes.
        block: edges that are worked on at a time.
    """
    source, target = batch.edge_index[0], batch.edge_index[1]
    return EdgeFrames(
        source=source,
        target=target,
        source_element=batch.atomic_numbers.index_select(0, source),
        target_element=batch.atomic_numbers.index_select(0, target),
        radial=_gaussians(torch.linalg.vector_norm(vectors, dim=1), config, block),
        wigner=edge_wigner(vectors, config.edge_layout),
        num_atoms=len(batch.atomic_numbers),
        block=block,
    )


def _gaussians(distance: Tensor, config: EquiformerV2Config, block: int | None) -> Radial:
    """Gaussians of the distance (E,) in Å, whose bands pay on a CPU alone."""
    centres = torch.arange(config.num_radial, device=distance.device, dtype=distance.dtype)
    steps = distance * ((config.num_radial - 1) / config.cutoff)  # (E,)
    values = torch.exp(-0.5 * ((steps[:, None] - centres) / RADIAL_WIDTH) ** 2)  # (E, K)
    if block is None or distance.device.type != "cpu":
        return Radial(values)
    return sort_radial(values, steps, RADIAL_WIDTH)


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


def turn_back(along: Tensor, wigner: Tensor, rescale: Tensor) -> Tensor:
    """From the edges' frames to the atoms': (E, R, C) to (E, M, C).

    Args:
        along: coefficients in the edges' frames.
        wigner: (E, R, M) from the atoms' frame to the edges'.
        rescale: (R,) of `Layout`.
    """
    return wigner.transpose(1, 2) @ (along * rescale[:, None])
