"""Sizes of EquiformerV2 and of its graph."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lamm.errors import ConfigError
from lamm.graph.neighbors import GraphConfig
from lamm.models.so3 import Layout
from lamm.models.spherical import ActivationName, NormName
from lamm.schema import Frozen

Probability = Annotated[float, Field(ge=0, lt=1)]


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
    edge_block: PositiveInt | None = 512
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
