"""Records pickled as OCP's scripts do, with stand-ins for PyTorch Geometric's classes."""

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import lmdb
import torch

_OLD_ATTRIBUTES = ("x", "edge_index", "edge_attr", "y", "pos", "normal", "face")


def _class(name: str, module: str) -> type:
    return type(name, (), {"__module__": module})


@contextmanager
def pyg_modules() -> Iterator[tuple[type, type]]:
    """Modules under PyG's names for as long as something is pickled; gives Data, GlobalStorage."""
    data, storage = "torch_geometric.data.data", "torch_geometric.data.storage"
    names = ("torch_geometric", "torch_geometric.data", data, storage)
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: ModuleType(name) for name in names})
    for name in ("Data", "DataEdgeAttr", "DataTensorAttr"):
        setattr(sys.modules[data], name, _class(name, data))
    sys.modules[storage].GlobalStorage = _class("GlobalStorage", storage)
    try:
        yield sys.modules[data].Data, sys.modules[storage].GlobalStorage
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def old_record(record: dict[str, Any], protocol: int = -1) -> bytes:
    """`Data` as PyG 1.7 pickles it: attributes of the object, the usual ones also where None."""
    with pyg_modules() as (data_class, _):
        data = data_class()
        data.__dict__.update(dict.fromkeys(_OLD_ATTRIBUTES), **record)
        return pickle.dumps(data, protocol=protocol)


def new_record(record: dict[str, Any], protocol: int = -1) -> bytes:
    """`Data` as PyG 2 pickles it: a storage that knows its parent, beside two classes."""
    with pyg_modules() as (data_class, storage_class):
        data, storage = data_class(), storage_class()
        module = sys.modules["torch_geometric.data.data"]
        storage.__dict__.update(_mapping=dict(record), _parent=data)
        data.__dict__.update(
            _edge_attr_cls=module.DataEdgeAttr, _tensor_attr_cls=module.DataTensorAttr
        )
        data.__dict__["_store"] = storage
        return pickle.dumps(data, protocol=protocol)


def dict_record(record: dict[str, Any], protocol: int = -1) -> bytes:
    """A plain dict of tensors."""
    return pickle.dumps(dict(record), protocol=protocol)


LAYOUTS: dict[str, Callable[..., bytes]] = {
    "old": old_record,
    "new": new_record,
    "dict": dict_record,
}


def sample(number: int = 0, **others: Any) -> dict[str, Any]:
    """An S2EF record of four atoms as OC20 has them; None leaves an entry out."""
    random = torch.Generator().manual_seed(number)
    record = {
        "pos": torch.randn(4, 3, generator=random),
        "cell": torch.diag(torch.tensor([5.0, 6.0, 20.0]))[None],
        "atomic_numbers": torch.tensor([29.0, 29.0, 6.0, 8.0]),
        "natoms": 4,
        "tags": torch.tensor([0, 1, 2, 2]),
        "fixed": torch.tensor([1.0, 0.0, 0.0, 0.0]),
        "y": -1.5 - number,
        "force": torch.randn(4, 3, generator=random),
        "sid": torch.LongTensor([700 + number // 2]),
        "fid": torch.LongTensor([number % 2]),
        **others,
    }
    return {key: value for key, value in record.items() if value is not None}


def relaxation(number: int = 0, **others: Any) -> dict[str, Any]:
    """An IS2RE record as OC20 has them, with forces of the first structure."""
    entries = {"y": None, "fid": None, "y_init": 3.0, "y_relaxed": -2.25 - number, **others}
    return sample(number, sid=800 + number, pos_relaxed=torch.zeros(4, 3), **entries)


def write_lmdb(
    path: Path, records: Sequence[bytes], keys: Sequence[bytes] = (), length: int | None = None
) -> Path:
    """An LMDB in one file, as OCP's scripts write it; numbered unless keys are given."""
    env = lmdb.open(str(path), map_size=1 << 24, subdir=False, meminit=False)
    names = keys or [f"{number}".encode("ascii") for number in range(len(records))]
    with env.begin(write=True) as transaction:
        for name, record in zip(names, records, strict=True):
            transaction.put(name, record)
        if length is not None:
            transaction.put(b"length", pickle.dumps(length, protocol=-1))
    env.close()
    return path
