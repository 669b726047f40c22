"""A batch in one block of memory: one thing to hand to another process, one copy to a device.

A batch has 17 arrays. Between processes each would go by a file of its own, and to a GPU by a copy
of its own; both cost more than the arrays of a small batch are worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamm.graph.batch import EdgeKind, GraphBatch

_ALIGNMENT = 64
"""Every array starts at a multiple of so many bytes, as a tensor of its own would."""
_TENSORS = tuple(field.name for field in fields(GraphBatch) if field.name != "edge_kind")


class _Place(NamedTuple):
    """Where an array is."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """The arrays of a `GraphBatch` one after another."""

    buffer: Tensor
    """(bytes,) uint8."""
    places: tuple[_Place, ...]
    edge_kind: EdgeKind

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the bytes: a file in shared memory takes longer than to copy."""
        return _packed_of_bytes, (self.buffer.numpy(), self.places, self.edge_kind)

    def pin_memory(self) -> PackedBatch:
        """The same in page-locked memory, from where a copy to a GPU needn't be waited for."""
        return PackedBatch(self.buffer.pin_memory(), self.places, self.edge_kind)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> PackedBatch:
        """The same on a device, by one copy."""
        buffer = self.buffer.to(device, non_blocking=non_blocking)
        return PackedBatch(buffer, self.places, self.edge_kind)

    def unpack(self) -> GraphBatch:
        """The batch; its tensors are views of the block."""
        tensors = {
            place.name: self.buffer[place.start : place.start + place.num_bytes]
            .view(place.dtype)
            .view(place.shape)
            for place in self.places
        }
        return GraphBatch(**tensors, edge_kind=self.edge_kind)


def _packed_of_bytes(
    data: NDArray[np.uint8], places: tuple[_Place, ...], edge_kind: EdgeKind
) -> PackedBatch:
    return PackedBatch(torch.from_numpy(data), places, edge_kind)


def pack(batch: GraphBatch) -> PackedBatch:
    """Copy the arrays of a batch on the CPU into one block."""
    places, end = [], 0
    for name in _TENSORS:
        tensor: Tensor = getattr(batch, name)
        size = tensor.numel() * tensor.element_size()
        places.append(_Place(name, tensor.dtype, tuple(tensor.shape), end, size))
        end += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
    packed = PackedBatch(torch.empty(end, dtype=torch.uint8), tuple(places), batch.edge_kind)
    into = packed.unpack()
    for name in _TENSORS:
        getattr(into, name).copy_(getattr(batch, name))
    return packed
