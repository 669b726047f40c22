from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lamm.graph.batch import GraphBatch
from lamm.graph.neighbors import GraphConfig
from lamm.graph.packing import pack
from lamm.structure import Structure

GRAPH = GraphConfig(cutoff=4.0)


def structures(count):
    rng = np.random.default_rng(3)
    return [
        Structure(
            id=str(number),
            atomic_numbers=np.full(number + 2, 6),
            positions=rng.uniform(0, 5, (number + 2, 3)),
            energy=-1.5 * number,
            forces=rng.normal(size=(number + 2, 3)),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_unpacked_is_what_was_packed(count, dtype):
    batch = GraphBatch.from_structures(structures(count), GRAPH, dtype=dtype)
    packed = pack(batch)
    again = packed.to(torch.device("cpu")).unpack()
    for field in fields(GraphBatch):
        one, other = getattr(batch, field.name), getattr(again, field.name)
        if field.name == "edge_kind":
            assert one == other
            continue
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other)
        assert other.data_ptr() % 64 == 0 or other.numel() == 0
        assert other.is_contiguous()


def test_another_process_gets_one_block():
    batch = GraphBatch.from_structures(structures(4), GRAPH)
    loader = DataLoader([batch], batch_size=None, num_workers=1, collate_fn=pack)
    (packed,) = loader
    again = packed.unpack()
    names = [field.name for field in fields(again) if field.name != "edge_kind"]
    starts = {getattr(again, name).untyped_storage().data_ptr() for name in names}
    assert starts == {packed.buffer.untyped_storage().data_ptr()}
    assert torch.equal(again.forces, batch.forces)
    again.has_energy &= torch.zeros(4, dtype=torch.bool)
    assert not again.has_energy.any(), "the batch can be written to"
