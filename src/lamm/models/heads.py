"""Energy and force heads (Eqs. 2-4) whose last layer has one output per subset (Sec. 3.2).

A head gives all D outputs at once: next to the layers before it the last one costs nothing, and
structures of any subsets share a batch. Energies are summed, and outputs written, in float32 or
more, whatever precision the layers run in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lamm.models.layers import (
    ScaledSiLU,
    last_layer,
    safe_norm,
    segment_sum,
    two_layers,
    xavier_linear,
)
from lamm.models.painn import Features


def _full_precision(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in float32 or more, mixed precision or not."""
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        return functional.linear(x.to(dtype), layer.weight.to(dtype), bias)


class EnergyHead(nn.Module):
    """Scalars of the atoms to D energies of each structure, Eqs. (2) and (3)."""

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.net = two_layers(channels, channels // 2, num_outputs)

    def forward(self, features: Features, structure_index: Tensor, num_structures: int) -> Tensor:
        """Normalised energies (B, D), summed over each structure's atoms."""
        hidden = self.net[:2](features.scalars)  # (N, C / 2)
        atomic = _full_precision(last_layer(self.net), hidden)  # (N, D)
        return segment_sum(atomic, structure_index, num_structures)

    def output_rows(self) -> list[tuple[Tensor, int]]:
        """Each tensor with a row per output, and how many blocks of D rows it has."""
        last = last_layer(self.net)
        return [(last.weight, 1), (last.bias, 1)]


class GatedBlock(nn.Module):
    """Mix scalars and vectors into fewer of both, the vectors scaled by gates made of scalars."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.length_mix = xavier_linear(inputs, inputs, bias=False)
        self.vector_mix = xavier_linear(inputs, outputs, bias=False)
        self.net = two_layers(2 * inputs, inputs, 2 * outputs)
        self.activation = ScaledSiLU()

    def forward(self, features: Features) -> Features:
        """Scalars (N, C) and vectors (N, 3, C) to `outputs` channels of each."""
        scalars, vectors = features
        lengths = safe_norm(self.length_mix(vectors))  # (N, C)
        mixed = self.vector_mix(vectors)  # (N, 3, outputs)
        out = self.net(torch.cat((scalars, lengths.to(scalars.dtype)), dim=1))
        scalars, gates = out.split(self.outputs, dim=1)
        return Features(self.activation(scalars), gates[:, None] * mixed)


class ForceHead(nn.Module):
    """Scalars and vectors of the atoms to D forces of each, Eq. (4); not the energy's gradient."""

    def __init__(self, channels: int, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.first = GatedBlock(channels, channels // 2)
        self.last = GatedBlock(channels // 2, num_outputs)

    def forward(self, features: Features) -> Tensor:
        """Normalised forces (N, D, 3)."""
        scalars, vectors = self.first(features)
        dtype = self.last.vector_mix.weight.dtype
        with torch.autocast(scalars.device.type, enabled=False):
            forces: Tensor = self.last(Features(scalars.to(dtype), vectors.to(dtype))).vectors
        return forces.to(torch.promote_types(dtype, torch.float32)).transpose(1, 2)

    def output_rows(self) -> list[tuple[Tensor, int]]:
        """Each tensor with a row per output, and how many blocks of D rows it has."""
        last = last_layer(self.last.net)
        return [(self.last.vector_mix.weight, 1), (last.weight, 2), (last.bias, 2)]


Head = EnergyHead | ForceHead


@torch.no_grad()
def copy_head(target: Head, source: Head, columns: Mapping[int, int]) -> None:
    """Copy a head's shared layers, and some of its outputs, into another.

    Args:
        target: what is changed; outputs that `columns` doesn't name stay as they are.
        source: head of the same kind and width.
        columns: output of `target` to output of `source`.
    """
    rows = {id(tensor): blocks for tensor, blocks in target.output_rows()}
    theirs = dict(source.named_parameters())
    for name, own in target.named_parameters():
        if id(own) not in rows:
            own.copy_(theirs[name])
            continue
        new = own.unflatten(0, (rows[id(own)], target.num_outputs))
        old = theirs[name].unflatten(0, (rows[id(own)], source.num_outputs))
        _copy_columns(new, old, list(columns), list(columns.values()))


def _copy_columns(new: Tensor, old: Tensor, to: Sequence[int], of: Sequence[int]) -> None:
    new[:, to] = old[:, of].to(new)
