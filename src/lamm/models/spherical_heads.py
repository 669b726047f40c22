"""Energy and force heads of EquiformerV2, with one output per subset (Sec. 3.2).

Both are blocks of the encoder whose last linear layer has D channels. Of what such a block makes
only l = 0 is an energy and only l = 1 a force; the rest isn't computed, and the weights that lead
there alone (`idle_parameters`) stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lamm.models.attention import Attention
from lamm.models.equiformer_config import EquiformerV2Config
from lamm.models.equiformer_v2 import FeedForward, SphericalFeatures, initialise
from lamm.models.layers import segment_sum


class SphericalEnergyHead(nn.Module):
    """Coefficients of the atoms to D energies of each structure, Eqs. (2) and (3)."""

    def __init__(self, config: EquiformerV2Config, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs, self.average_atoms = num_outputs, config.average_atoms
        self.block = FeedForward(config, num_outputs)
        initialise(self, config.weight_init)

    def forward(
        self,
        features: SphericalFeatures,
        structure_index: Tensor,
        num_structures: int,
        column: Tensor | None = None,
    ) -> Tensor:
        """Normalised energies (B, D), summed over each structure's atoms in float32 or more.

        With `column` (N,), the output wanted of each atom, that one alone: (B, 1).
        """
        block = features.edges.atom_block
        atomic = self.block.scalars(features.coefficients, block, column)  # (N, D)
        return segment_sum(atomic, structure_index, num_structures) / self.average_atoms

    def hidden(self, features: SphericalFeatures) -> Tensor:
        """What the last layer, which is linear, is given for an energy: (N, hidden)."""
        return self.block.hidden_scalars(features.coefficients, features.edges.atom_block)

    def output_rows(self) -> list[tuple[Tensor, int, int]]:
        """Each tensor with a row per output: the dimension they lie along, and how many blocks."""
        return [(self.block.linear_2.weight, 1, 1), (self.block.linear_2.bias, 0, 1)]

    def factor_rows(self) -> list[tuple[Tensor, int]]:
        """Each tensor whose rows are factors of an output, and the dimension they lie along."""
        return [(self.block.linear_2.weight, 1), (self.block.linear_2.bias, 0)]

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Weights that no energy depends on."""
        for unused in self.block.idle_layers():
            yield from unused.parameters()


class SphericalForceHead(nn.Module):
    """Coefficients of the atoms to D forces of each, Eq. (4); not the energy's gradient."""

    def __init__(self, config: EquiformerV2Config, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.block = Attention(config, num_outputs, dropout=0.0)
        initialise(self, config.weight_init)

    def forward(self, features: SphericalFeatures, column: Tensor | None = None) -> Tensor:
        """Normalised forces (N, D, 3), in float32 or more.

        With `column` (N,), the output wanted of each atom, that one alone: (N, 1, 3).
        """
        forces = self.block.degree(features.coefficients, features.edges, 1, column)  # (N, 3, D)
        return forces.to(torch.promote_types(forces.dtype, torch.float32)).transpose(1, 2)

    def output_rows(self) -> list[tuple[Tensor, int, int]]:
        """Each tensor with a row per output: the dimension they lie along, and how many blocks."""
        return [(self.block.project.weight, 1, 1), (self.block.project.bias, 0, 1)]

    def factor_rows(self) -> list[tuple[Tensor, int]]:
        """Each tensor whose rows are factors of an output, and the dimension they lie along."""
        return [(self.block.project.weight, 1)]

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Weights that no force depends on."""
        block = self.block
        yield block.project.bias
        yield from block.convolution_2.nonzero[1:].parameters()
        if block.activation.name == "gate":  # which doesn't mix orders
            yield from block.convolution_1.nonzero[1:].parameters()
