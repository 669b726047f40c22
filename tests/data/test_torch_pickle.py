"""The unpickler of tensors: the same numbers as PyTorch's own, and nothing is ever run."""

import contextlib
import gc
import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pyg_samples import LAYOUTS, new_record, sample

from lamm.data.readers.torch_pickle import PygObject, fields, load_file, loads
from lamm.errors import DataError

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def _tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32)
    return {
        "matrix": base.reshape(8, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "empty in the middle": torch.zeros(2, 0, 3),
        "transposed": base.reshape(8, 3).t(),
        "every second": base[1::2],
        "column": base.reshape(8, 3)[:, 1],
        "last numbers": base[20:],
        "expanded": torch.tensor([7.0]).expand(5),
        "permuted": base.reshape(2, 3, 4).permute(2, 0, 1),
        "one among ones": base[5:6].reshape(1, 1, 1),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_any_kind_of_number_are_the_arrays_that_torch_gives(dtype, protocol):
    tensor = torch.tensor([[0, 1, 3], [2, 100, 5]]).to(dtype)
    array = fields(loads(pickle.dumps({"a": tensor}, protocol=protocol)))["a"]
    np.testing.assert_array_equal(array, _as_numpy(tensor), strict=True)


@pytest.mark.parametrize("name", _tensors())
def test_tensors_of_any_shape_and_strides_are_the_arrays_that_torch_gives(name):
    tensor = _tensors()[name]
    array = loads(pickle.dumps([tensor], protocol=-1))[0]
    np.testing.assert_array_equal(array, _as_numpy(tensor), strict=True)


def test_views_of_one_storage_are_each_right():
    base = torch.arange(12.0)
    first, second = loads(pickle.dumps((base[2:8], base.reshape(3, 4)[:, 2]), protocol=-1))
    np.testing.assert_array_equal(first, np.arange(2.0, 8.0))
    np.testing.assert_array_equal(second, [2.0, 6.0, 10.0])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        np.arange(4, dtype=">f4"),
        np.array([True, False]),
        np.zeros((0, 3)),
        np.array(["Cu", "O"]),
        np.float64(1.25),
        np.int64(-3),
        np.bool_(True),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_numpy_arrays_and_numbers_are_read(array, protocol):
    value = fields(loads(pickle.dumps({"a": array}, protocol=protocol)))["a"]
    np.testing.assert_array_equal(value, array)
    assert np.asarray(value).dtype == array.dtype


def test_sizes_and_types_of_torch_are_read():
    assert loads(pickle.dumps(torch.Size([2, 3]))) == (2, 3)
    assert loads(pickle.dumps([torch.float32])) == ["torch.float32"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_fields(layout):
    record = sample(3, comment="as it was", nothing=None)
    found = fields(loads(LAYOUTS[layout](record)))
    assert found.keys() == record.keys()
    for name, value in record.items():
        expected = _as_numpy(value) if isinstance(value, torch.Tensor) else value
        np.testing.assert_array_equal(found[name], expected)


def test_a_record_that_is_done_with_leaves_memory_at_once():
    def alive() -> int:
        return sum(type(one) is PygObject for one in gc.get_objects())

    pickled = new_record(sample())
    gc.collect()
    gc.disable()
    try:
        before = alive()
        record = loads(pickled)
        assert alive() > before
        fields(record)
        del record
        assert alive() == before
    finally:
        gc.enable()


def test_nothing_of_torch_geometric_is_imported():
    pickled = new_record(sample())
    loads(pickled)
    assert not any(name.startswith("torch_geometric") for name in sys.modules)


class _Calls:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _storage_bytes(tensor: torch.Tensor, zipped: bool) -> bytes:
    file = io.BytesIO()
    storage = torch.storage.TypedStorage(
        wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
    )
    torch.save(storage, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _with_storage(
    data: bytes, size: object = (3,), stride: object = (1,), offset: object = 0
) -> Any:
    """A pickle of one tensor whose storage and geometry are as given."""
    storage = _Calls(torch.storage._load_from_bytes, data)
    call = _Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
    return pickle.dumps(call, protocol=4)


def test_a_storage_in_a_zip_archive_is_read():
    data = _storage_bytes(torch.tensor([1.0, 2.0, 3.0]), zipped=True)
    np.testing.assert_array_equal(loads(_with_storage(data)), [1.0, 2.0, 3.0])


def test_a_storage_written_otherwise_than_usual_is_read_the_long_way():
    usual = _storage_bytes(torch.tensor([1.0, 2.0, 3.0]), zipped=False)
    from_gpu = usual.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert from_gpu != usual
    np.testing.assert_array_equal(loads(_with_storage(from_gpu)), [1.0, 2.0, 3.0])


def _attacks(mark: Path) -> dict[str, bytes]:
    """Pickles that leave a mark, written as an attacker would."""
    make = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    command = f"touch '{mark}'"
    calls = {
        "os.system": _Calls(os.system, command),
        "eval": _Calls(eval, make),
        "exec": _Calls(exec, make),
        "os.mkdir": _Calls(os.mkdir, str(mark)),
        "getattr": _Calls(_Got("mkdir"), str(mark)),
        "in a list of records": [sample(), _Calls(os.system, command)],
        "as a value of a record": {"pos": _Calls(os.system, command)},
        "as an argument": _Calls(torch.Size, (_Calls(os.mkdir, str(mark)),)),
    }
    attacks = {name: _dumps(call) for name, call in calls.items()}
    inner = pickle.dumps(_Calls(os.system, command), protocol=2)
    legacy = _storage_bytes(torch.ones(3), zipped=False)
    attacks["in a storage"] = _with_storage(inner)
    attacks["in the platform of a storage"] = _with_storage(legacy[:20] + inner + legacy[20:])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", inner)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    attacks["in a zipped storage"] = _with_storage(archive.getvalue())
    attacks["by an old instruction"] = b"(S'%s'\nios\nsystem\n." % command.encode()
    return attacks


class _Got:
    """Pickled as ``getattr(os, name)``; callable, so that a call can be made of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (os, self.name))

    def __call__(self) -> None: ...


class _ModulePickler(pickle._Pickler):
    """Writes a module as its import."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_module(self, module: ModuleType) -> None:
        self.save_reduce(__import__, (module.__name__,), obj=module)

    dispatch[ModuleType] = save_module


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _ModulePickler(file, protocol=4).dump(value)
    return file.getvalue()


@pytest.mark.parametrize("name", _attacks(Path("mark")))
def test_a_hostile_pickle_runs_nothing(name, tmp_path):
    mark = tmp_path / "mark"
    attack = _attacks(mark)[name]
    with pytest.raises(DataError):
        loads(attack)
    assert not mark.exists()
    with contextlib.suppress(Exception):
        pickle.loads(attack)
    assert mark.exists(), "not an attack: where nothing guards, it leaves no mark"


def test_the_message_names_what_a_pickle_wants_and_what_to_do():
    with pytest.raises(DataError, match=r"'posix.system'.*not loaded(.|\n)*another format"):
        loads(pickle.dumps(_Calls(os.system, "true")))


GLOBALS = {
    "function": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "class": b"ctorch_geometric.data.data\nData\n",
    "type": b"cnumpy\ndtype\n",
    "text": b"cnumpy\nndarray\n",
}


def _text(text: bytes) -> bytes:
    return b"U%c%s" % (len(text), text)


@pytest.mark.parametrize("attribute", [b"evil", b"__setstate__", b"fields"])
@pytest.mark.parametrize("state", [b"}%sK\x01s", b"N}%sK\x01s\x86"], ids=["dict", "slots"])
@pytest.mark.parametrize("name", GLOBALS)
def test_a_pickle_changes_nothing_of_what_it_is_given(name, state, attribute):
    with pytest.raises(DataError):
        loads(b"\x80\x02" + GLOBALS[name] + state % _text(attribute) + b"b.")
    record = sample()
    np.testing.assert_array_equal(fields(loads(new_record(record)))["pos"], record["pos"].numpy())


def test_attributes_of_a_record_hide_nothing_of_the_object_that_holds_them():
    hostile = {"fields": 1, "__class__": "int", "__setstate__": 2, "_state": 3, "pos": 4}
    data = loads(LAYOUTS["old"](hostile))
    assert type(data) is PygObject
    assert fields(data)["pos"] == 4
    assert fields(data)["_state"] == 3


def test_numpys_own_types_can_not_be_turned():
    state = b"(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    turned = b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R" + state + b"b."
    loads(turned)
    assert np.dtype("f8").byteorder == "="
    assert np.array([1.0]).tobytes() == struct.pack("=d", 1.0)


_DTYPE = b"\x80\x02cnumpy\ndtype\n"
_FRAME = b"\x95%c\x00\x00\x00\x00\x00\x00\x00"
_FROM_BUFFER = b"\x80\x02cnumpy.core.numeric\n_frombuffer\n"
NO_RECORDS = {
    "another text encoding": b"\x80\x02c_codecs\nencode\nU\x01aU\x05rot13\x86R.",
    "an array of objects": _DTYPE + b"U\x02O8\x89\x88\x87R.",
    "a type of fields": _DTYPE + b"U\x05i4,f8\x89\x88\x87R.",
    "an array of other length": _FROM_BUFFER + b"(U\x01aK\x01K\x01K\x01tR.",
    "data outside": b"\x80\x02U\x01aQ.",
    "an empty stack": b"\x80\x02R.",
    "a number as a function": b"\x80\x02K\x01)R.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "nothing": b"",
    "text": b"Hello, this is no pickle",
    "room for 2**31 objects": b"\x80\x02]r\x00\x00\x00\x80.",
    "2**60 bytes": b"\x80\x04\x8e\x00\x00\x00\x00\x00\x00\x00\x10.",
    "an extension": b"\x80\x02\x82\x01.",
    "a frame that ends within an instruction": b"\x80\x04" + _FRAME % 1 + b"K\x01.",
    "tuples in tuples as a key": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
    "a set": b"\x80\x04\x8f.",
    "a frame in a frame": b"\x80\x04" + _FRAME % 10 + _FRAME % 1 + b"N.",
}


def test_a_pickle_that_asks_for_more_memory_than_it_can_need_is_refused_before_it_gets_any():
    with pytest.raises(DataError, match="asks for room for 2147483648 objects"):
        loads(NO_RECORDS["room for 2**31 objects"])
    with pytest.raises(DataError, match="don't hold a whole one"):
        loads(NO_RECORDS["2**60 bytes"])


@pytest.mark.parametrize("name", NO_RECORDS)
def test_what_is_no_record_is_a_data_error(name):
    with pytest.raises(DataError):
        loads(NO_RECORDS[name])


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((4,), (1,), 0),
        ((3,), (1,), 1),
        ((2, 2), (2, 1), 0),
        ((1,), (1,), 3),
        ((2,), (1 << 62,), 0),
        ((1 << 40, 1 << 40), (0, 0), 0),
        ((1 << 21,), (0,), 0),
        ((-1,), (1,), 0),
        ((3,), (-1,), 2),
        ((3,), (1,), -1),
        ((3,), (1, 1), 0),
        ((3,), (), 0),
        ([3], [1], 0),
        ((3.0,), (1,), 0),
        ((True,), (1,), 0),
        ((3,), (1,), 0.0),
        ((1,) * 40, (1,) * 40, 0),
        (3, 1, 0),
    ],
)
def test_a_tensor_that_reaches_out_of_its_storage_is_refused(size, stride, offset):
    data = _storage_bytes(torch.ones(3), zipped=False)
    with pytest.raises(DataError, match="tensor"):
        loads(_with_storage(data, size, stride, offset))


def _zip_again(data: bytes, old: bytes, new: bytes) -> bytes:
    """A zip archive with some bytes replaced in its files, and the checksums that go with them."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(old, new))
    return file.getvalue()


def test_a_storage_with_fewer_numbers_than_it_says_is_refused():
    legacy = _storage_bytes(torch.ones(3), zipped=False)
    longer = legacy.replace(b"K\x03Nt", b"K\x04Nt").replace(b"\x03" + bytes(7), b"\x04" + bytes(7))
    zipped = _storage_bytes(torch.ones(3), zipped=True)
    for hostile in (longer, _zip_again(zipped, b"K\x03t", b"K\x04t")):
        with pytest.raises(DataError, match="a storage of 4 numbers has 12 bytes"):
            loads(_with_storage(hostile))
    with pytest.raises(DataError, match="two lengths"):
        loads(_with_storage(legacy.replace(b"K\x03Nt", b"K\x02Nt")))


def test_a_compressed_storage_is_refused_since_it_may_be_larger_than_any_memory():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02N.")
        file.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(DataError, match="compressed"):
        loads(_with_storage(archive.getvalue()))


def test_a_storage_within_a_storage_is_refused():
    data = _with_storage(_storage_bytes(torch.ones(3), zipped=False))
    with pytest.raises(DataError, match="_rebuild_tensor_v2"):
        loads(_with_storage(_storage_bytes(torch.ones(1), zipped=False)[:24] + data))


def test_a_record_cut_short_anywhere_is_a_data_error():
    pickled = new_record(sample())
    for length in range(0, len(pickled), 7):
        with pytest.raises(DataError):
            loads(pickled[:length])


def test_a_damaged_record_is_read_or_is_a_data_error_and_never_anything_else(rng):
    pickled = np.frombuffer(new_record(sample()), np.uint8)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(1500):
        damaged = pickled.copy()
        places = rng.integers(0, len(damaged), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            fields(loads(damaged.tobytes()))
            outcomes["read"] += 1
        except DataError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100


def test_a_record_that_is_neither_data_nor_a_dict_is_a_data_error():
    for value in (3, [1], {1: 2}):
        with pytest.raises(DataError, match="a record is a"):
            fields(loads(pickle.dumps(value)))


def test_a_file_is_named_where_it_can_not_be_read(tmp_path):
    with pytest.raises(DataError, match=r"none\.pkl: no such file"):
        load_file(tmp_path / "none.pkl")
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(list(range(1000)))[:-5])
    with pytest.raises(DataError, match=r"cut\.pkl: .*cut short"):
        load_file(tmp_path / "cut.pkl")
