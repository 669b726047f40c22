"""Energy and force heads (Eqs. 2-4) whose last layer has one output per subset (Sec. 3.2).

A head gives all D outputs at once: next to the layers before it the last one costs nothing, and
structures of any subsets share a batch. Energies are summed, and outputs written, in float32 or
more, whatever precision the layers run in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lamm.models.layers import (
    ScaledSiLU,
    chosen_output,
    last_layer,
    safe_norm,
    segment_sum,
    two_layers,
    xavier_linear,
)
from lamm.models.painn import Features, PaiNNConfig


def _full_precision(layer: nn.Linear, x: Tensor, column: Tensor | None) -> Tensor:
    """Apply a linear layer, or one output of it, in float32 or more, mixed precision or not."""
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    x, weight, bias = x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        if column is not None:
            return chosen_output(x, weight, bias, column)
        return functional.linear(x, weight, bias)


class OutputRows(Protocol):
    """What `copy_head` and `silence` have to know of a head."""

    num_outputs: int

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All weights by name."""

    def output_rows(self) -> list[tuple[Tensor, int, int]]:
        """Each tensor with a row per output: the dimension of the rows, and blocks of D of them."""

    def factor_rows(self) -> list[tuple[Tensor, int]]:
        """Each tensor whose rows are factors of an output, and the dimension they lie along."""


class EnergyHead(nn.Module):
    """Scalars of the atoms to D energies of each structure, Eqs. (2) and (3)."""

    def __init__(self, config: PaiNNConfig, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        channels = config.channels
        self.net = two_layers(channels, channels // 2, num_outputs)

    def forward(
        self,
        features: Features,
        structure_index: Tensor,
        num_structures: int,
        column: Tensor | None = None,
    ) -> Tensor:
        """Normalised energies (B, D), summed over each structure's atoms.

        With `column` (N,), the output wanted of each atom, that one alone: (B, 1).
        """
        atomic = _full_precision(last_layer(self.net), self.hidden(features), column)  # (N, D)
        return segment_sum(atomic, structure_index, num_structures)

    def hidden(self, features: Features) -> Tensor:
        """What the last layer, which is linear, is given: (N, C / 2)."""
        hidden: Tensor = self.net[:2](features.scalars)
        return hidden

    def output_rows(self) -> list[tuple[Tensor, int, int]]:
        """Each tensor with a row per output: the dimension of the rows, and blocks of D of them."""
        last = last_layer(self.net)
        return [(last.weight, 0, 1), (last.bias, 0, 1)]

    def factor_rows(self) -> list[tuple[Tensor, int]]:
        """Each tensor whose rows are factors of an output, and the dimension they lie along."""
        last = last_layer(self.net)
        return [(last.weight, 0), (last.bias, 0)]

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Weights that no energy depends on: none."""
        yield from ()


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
        mixed = self.vector_mix(features.vectors)  # (N, 3, outputs)
        out = self.net(self._invariants(features))
        scalars, gates = out.split(self.outputs, dim=1)
        return Features(self.activation(scalars), gates[:, None] * mixed)

    def vector_of(self, features: Features, column: Tensor) -> Tensor:
        """One of the vectors of `forward` for each atom, (N, 3, 1); `column` (N,) says which."""
        mixed = chosen_output(features.vectors, self.vector_mix.weight, None, column)
        hidden, last = self.net[:2](self._invariants(features)), last_layer(self.net)
        gates = chosen_output(hidden, last.weight, last.bias, self.outputs + column)  # (N, 1)
        return gates[:, None] * mixed

    def _invariants(self, features: Features) -> Tensor:
        """Scalars, and lengths of mixed vectors: (N, 2C)."""
        scalars, vectors = features
        lengths = safe_norm(self.length_mix(vectors))  # (N, C)
        return torch.cat((scalars, lengths.to(scalars.dtype)), dim=1)


class ForceHead(nn.Module):
    """Scalars and vectors of the atoms to D forces of each, Eq. (4); not the energy's gradient."""

    def __init__(self, config: PaiNNConfig, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        channels = config.channels
        self.first = GatedBlock(channels, channels // 2)
        self.last = GatedBlock(channels // 2, num_outputs)

    def forward(self, features: Features, column: Tensor | None = None) -> Tensor:
        """Normalised forces (N, D, 3).

        With `column` (N,), the output wanted of each atom, that one alone: (N, 1, 3).
        """
        scalars, vectors = self.first(features)
        dtype = self.last.vector_mix.weight.dtype
        with torch.autocast(scalars.device.type, enabled=False):
            between = Features(scalars.to(dtype), vectors.to(dtype))
            if column is None:
                forces: Tensor = self.last(between).vectors
            else:
                forces = self.last.vector_of(between, column)
        return forces.to(torch.promote_types(dtype, torch.float32)).transpose(1, 2)

    def output_rows(self) -> list[tuple[Tensor, int, int]]:
        """Each tensor with a row per output: the dimension of the rows, and blocks of D of them."""
        last = last_layer(self.last.net)
        return [(self.last.vector_mix.weight, 0, 1), (last.weight, 0, 2), (last.bias, 0, 2)]

    def factor_rows(self) -> list[tuple[Tensor, int]]:
        """Each tensor whose rows are factors of an output, and the dimension they lie along."""
        return [(self.last.vector_mix.weight, 0)]

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Weights that no force depends on: none."""
        yield from ()


@torch.no_grad()
def silence(head: OutputRows, outputs: Iterable[int]) -> None:
    """Let some outputs of a head start at zero: what a subset's references say, and no force.

    A sum over atoms of random outputs is far from any energy, the farther the larger the structure,
    and the first hundreds of steps of a short training would only undo it.
    """
    for tensor, dim in head.factor_rows():
        tensor.index_fill_(
            dim, torch.tensor(sorted(outputs), dtype=torch.int64, device=tensor.device), 0.0
        )


@torch.no_grad()
def scale_output(head: OutputRows, output: int, factor: float) -> None:
    """Multiply one output of a head."""
    for tensor, dim in head.factor_rows():
        tensor.select(dim, output).mul_(factor)


@torch.no_grad()
def copy_head(target: OutputRows, source: OutputRows, columns: Mapping[int, int]) -> None:
    """Copy a head's shared layers, and some of its outputs, into another.

    Args:
        target: what is changed; outputs that `columns` doesn't name stay as they are.
        source: head of the same kind and width.
        columns: output of `target` to output of `source`.
    """
    rows = {id(tensor): (dim, blocks) for tensor, dim, blocks in target.output_rows()}
    theirs = dict(source.named_parameters())
    for name, own in target.named_parameters():
        if id(own) not in rows:
            own.copy_(theirs[name])
            continue
        dim, blocks = rows[id(own)]
        new = own.unflatten(dim, (blocks, target.num_outputs)).movedim(dim + 1, 0)
        old = theirs[name].unflatten(dim, (blocks, source.num_outputs)).movedim(dim + 1, 0)
        new[list(columns)] = old[list(columns.values())].to(new)
