"""The encoders that there are, by name, each with the heads that take its features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self

from torch import Tensor, nn

from lamm.models.equiformer_v2 import EquiformerV2
from lamm.models.heads import EnergyHead, ForceHead
from lamm.models.painn import PaiNN
from lamm.models.spherical_heads import SphericalEnergyHead, SphericalForceHead


class AtomFeatures(Protocol):
    """What every encoder gives."""

    @property
    def scalars(self) -> Tensor:
        """(N, C)."""

    @property
    def vectors(self) -> Tensor:
        """(N, 3, C)."""

    def detach(self) -> Self:
        """The same without a gradient."""


class Head(Protocol):
    """What every head has besides its forward pass."""

    num_outputs: int

    def __call__(self, features: Any, *where: Any) -> Tensor:
        """Outputs."""

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
        """All weights by name."""

    def output_rows(self) -> list[tuple[Tensor, int, int]]:
        """Each tensor with a row per output: the dimension of the rows, and blocks of D of them."""

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Weights that no output depends on."""


class Architecture(NamedTuple):
    """An encoder, which is made from its configuration, and its heads."""

    encoder: type[nn.Module]
    energy_head: type[nn.Module]
    """Of the encoder's configuration and D; features, structure_index, B to (B, D), or to (B, 1)
    with the output wanted of each atom."""
    force_head: type[nn.Module]
    """Of the same; features to (N, D, 3), or likewise to (N, 1, 3)."""


ARCHITECTURES: dict[str, Architecture] = {
    "painn": Architecture(PaiNN, EnergyHead, ForceHead),
    "equiformer_v2": Architecture(EquiformerV2, SphericalEnergyHead, SphericalForceHead),
}
