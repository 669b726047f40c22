"""Pickles of tensors and of PyTorch Geometric's `Data`, read with neither library.

A pickle is a program: Python's unpickler calls whatever it names. The one here knows the few names
that files of structures need, and what it gives for each is a stand-in of our own: tensors become
NumPy arrays, `Data` of either layout becomes `PygObject`, which holds what it was given. Any other
name is an error, also inside the bytes in which PyTorch wraps the numbers of a tensor.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from lamm.data.readers.common import reading
from lamm.data.readers.pickle_opcodes import MAX_TUPLES, end_of_pickle
from lamm.errors import DataError

MAX_REPEATED: Final = 1 << 20
"""Elements of a tensor that may be larger than its storage (one that repeats its numbers)."""

_BFLOAT16: Final = "bfloat16"
_STORAGES: Final = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
"""PyTorch's storages and the NumPy type of their numbers."""

_MAGIC_NUMBER: Final = 0x1950A86A20F9469CFC6C
_LEGACY: Final = re.compile(
    rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.\x80\x02M\xe9\x03\."  # magic number, version
    rb"\x80\x02}q\x00\(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03"
    rb"X\r\x00\x00\x00little_endianq\x02\x88X\n\x00\x00\x00type_sizesq\x03}q\x04\(X\x05\x00\x00\x00"
    rb"shortq\x05K\x02X\x03\x00\x00\x00intq\x06K\x04X\x04\x00\x00\x00longq\x07K\x04uu\."
    rb"\x80\x02\(X\x07\x00\x00\x00storageq\x00ctorch\n(\w{1,20})\nq\x01"
    rb"X(.)\x00\x00\x00([0-9]{1,20})q\x02X\x03\x00\x00\x00cpuq\x03"
    rb"(?:K(.)|M(..)|J(....))N?tq\x04Q\."
    rb"\x80\x02\]q\x00X\2\x00\x00\x00\3q\x01a\.",
    re.DOTALL,
)
"""A storage of the CPU just as PyTorch writes one: read at a glance, since it is most of a file.
What looks otherwise takes the long way, through `_legacy_storage`."""


class _FrozenType(type):
    """A class that a pickle can't change."""

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise DataError(f"a hostile pickle: it changes '{name}' of a class.")

    __delattr__ = __setattr__  # type: ignore[assignment]


class _Known(metaclass=_FrozenType):
    """A function that a pickle may call and can't change."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise DataError(f"a hostile pickle: it changes '{name}' of a function.")

    def __setstate__(self, state: object) -> NoReturn:
        raise DataError("a hostile pickle: it changes a function.")


class PygObject(metaclass=_FrozenType):
    """A `Data` of PyTorch Geometric, or a part of one, as the attributes that were written."""

    __slots__ = ("_state",)
    _state: dict[str, Any]

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise DataError(f"an object's state is a {type(state).__name__}, expected a dict.")
        state.pop("_parent", None)  # a ring of objects would wait for the garbage collector
        self._state = state

    def fields(self) -> dict[str, Any]:
        """The attributes of the graph; `Data` has kept them in two layouts.

        Up to version 1.7 they are the object's own attributes, with None for those that are not
        there; since 2.0 they are in a `GlobalStorage`.

        Raises:
            DataError: neither layout.
        """
        state = getattr(self, "_state", {})
        if (store := state.get("_store")) is not None:
            state = store._state.get("_mapping") if isinstance(store, PygObject) else None
            if not isinstance(state, dict):
                raise DataError("a `Data` object without the `_mapping` that its layout has.")
        return state


class _NumpyType(metaclass=_FrozenType):
    """A dtype by name. A pickle could turn NumPy's own, which are shared, into others."""

    __slots__ = ("_name", "_order")
    _name: str
    _order: str

    def __init__(self, name: str, *_: object) -> None:
        if not re.fullmatch(r"[biuf]\d{1,2}|[US]\d{1,6}", str(name)):
            raise DataError(f"an array of {name!r}, expected numbers or text.")
        self._name, self._order = name, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise DataError(f"a dtype has the byte order {state[1]!r}, expected '<' or '>'.")
        self._order = state[1]

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._order.replace("=", "<") + self._name)


class _NumpyArray(metaclass=_FrozenType):
    """A NumPy array, which a pickle fills after it was made."""

    __slots__ = ("array",)
    array: NDArray[Any]

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, numpy_type, fortran, raw = state
        self.array = _numpy_array(raw, numpy_type, shape, "F" if fortran else "C")


def _numpy_array(
    raw: bytes | bytearray, numpy_type: _NumpyType, shape: Sequence[int], order: str, *_: object
) -> NDArray[Any]:
    if not isinstance(numpy_type, _NumpyType) or not isinstance(raw, (bytes, bytearray)):
        raise DataError("an array that isn't one of numbers.")
    sizes, dtype = _naturals(shape), numpy_type.dtype()
    if math.prod(sizes) * dtype.itemsize != len(raw):
        raise DataError(f"an array of shape {sizes} has {len(raw)} bytes: the file is damaged.")
    flat = np.frombuffer(raw, dtype)
    return flat.reshape(sizes, order="F" if order == "F" else "C")


def _numpy_scalar(numpy_type: _NumpyType, raw: bytes) -> Any:
    return _numpy_array(raw, numpy_type, (), "C")[()]


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes, as protocol 2 writes them: the text of which they are the encoding."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise DataError(f"text encoded as {str(encoding)[:20]!r}, expected 'latin1'.")
    return text.encode("latin1")


def _naturals(values: Sequence[int]) -> tuple[int, ...]:
    """Sizes, strides or a shape, if that is what they are."""
    if not isinstance(values, tuple) or len(values) > 32:
        raise DataError("a tensor whose sizes are not a short tuple: the file is damaged.")
    if not all(type(value) is int and value >= 0 for value in values):
        raise DataError(f"a tensor has sizes or strides {values}: the file is damaged.")
    return values


def _tensor(
    storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> NDArray[Any]:
    """A tensor as an array on the numbers of its storage, none of them outside it."""
    size, stride = _naturals(size), _naturals(stride)
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(size) != len(stride):
        raise DataError("a tensor without a storage, or not as many strides as sizes.")
    (offset,) = _naturals((offset,))
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and last >= len(storage):
        raise DataError(
            f"a tensor of size {size}, strides {stride} from {offset} reaches beyond the "
            f"{len(storage)} numbers of its storage: the file is damaged."
        )
    if count == 0:
        return np.zeros(size, storage.dtype)
    if count > max(len(storage), MAX_REPEATED):
        raise DataError(f"a tensor of size {size} repeats the {len(storage)} numbers it has.")
    if last - offset + 1 == count and _in_order(size, stride):
        return storage[offset : offset + count].reshape(size)
    steps = [step * storage.itemsize for step in stride]
    return as_strided(storage[offset:], size, steps, writeable=False)


def _in_order(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the numbers lie one after the other, the last index the fastest."""
    expected = 1
    for n, step in zip(reversed(size), reversed(stride), strict=True):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


class _Stored(NamedTuple):
    """What is known of a storage before its numbers are."""

    kind: str
    key: str
    length: int


def _numbers(data: bytes, kind: str, start: int, length: int) -> NDArray[Any]:
    """The numbers of a storage, where they lie."""
    itemsize = 2 if kind == _BFLOAT16 else np.dtype(kind).itemsize
    if length < 0 or start + length * itemsize > len(data):
        raise DataError(
            f"a storage of {length} numbers has {len(data) - start} bytes: the file is damaged."
        )
    if kind == _BFLOAT16:  # the upper half of a float32
        upper = np.frombuffer(data, "<u2", length, start)
        return (upper.astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, kind, length, start)


def _storage(data: bytes) -> NDArray[Any]:
    """The numbers of a storage that was saved by itself, as PyTorch wraps it in a pickle."""
    if not isinstance(data, bytes):
        raise DataError("a tensor whose storage isn't in bytes: the file is damaged.")
    header = _LEGACY.match(data)
    if header is not None and (kind := _STORAGES.get(header[1].decode())) is not None:
        length = int.from_bytes(header[4] or header[5] or header[6], "little")
        stored = _Stored(kind, "", length)
        return _block(data, header.end(), stored)
    if data.startswith(b"PK"):
        return _zipped_storage(data)
    return _legacy_storage(data)


def _block(data: bytes, start: int, stored: _Stored) -> NDArray[Any]:
    if int.from_bytes(data[start : start + 8], "little") != stored.length:
        raise DataError("a storage tells two lengths: the file is damaged.")
    return _numbers(data, stored.kind, start + 8, stored.length)


def _legacy_storage(data: bytes) -> NDArray[Any]:
    """A storage in five pickles (magic number, version, platform, itself, keys) and its numbers."""
    parts, end = [], 0
    for _ in range(5):
        start, end = end, end_of_pickle(data, end)
        parts.append(_StorageUnpickler(io.BytesIO(data[start:end])).load())
    magic, _, _, stored, keys = parts
    if magic != _MAGIC_NUMBER or not isinstance(stored, _Stored) or keys != [stored.key]:
        raise DataError("a tensor's storage isn't as PyTorch saves one: the file is damaged.")
    return _block(data, end, stored)


def _zipped_storage(data: bytes) -> NDArray[Any]:
    """A storage in a zip archive, as PyTorch saves one since version 1.6."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if sum(sizes.values()) > len(data):
            raise DataError("a tensor's storage is compressed, as PyTorch never saves one.")
        root = next((name for name in sizes if name.endswith("data.pkl")), "").removesuffix(
            "data.pkl"
        )
        pickled = archive.read(f"{root}data.pkl")
        end_of_pickle(pickled)
        stored = _StorageUnpickler(io.BytesIO(pickled)).load()
        if not isinstance(stored, _Stored):
            raise DataError("a tensor's storage isn't as PyTorch saves one: the file is damaged.")
        return _numbers(archive.read(f"{root}data/{stored.key}"), stored.kind, 0, stored.length)


class _StorageUnpickler(pickle.Unpickler):
    """Knows storages and nothing else."""

    def find_class(self, module: str, name: str) -> str:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.storage" and name == "UntypedStorage":
            return "|u1"
        raise _unknown(module, name)

    def persistent_load(self, pid: Any) -> _Stored:
        word, kind, key, _, length, *view = pid
        whole = word == "storage" and kind in ("|u1", *_STORAGES.values()) and view in ([], [None])
        if not whole or not isinstance(key, str) or type(length) is not int:
            raise DataError("a tensor's storage isn't as PyTorch saves one: the file is damaged.")
        return _Stored(kind, key, length)


def _unknown(module: str, name: str) -> DataError:
    return DataError(
        f"the pickle wants '{module}.{name}', which files of structures don't need and which is "
        "therefore not loaded: it could run a program.\n  If you trust the file, open it with the "
        "library that wrote it, and export the structures in another format, such as extxyz."
    )


def _ordered_dict(pairs: Sequence[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    return dict(pairs)


_TENSOR, _STORAGE = _Known(_tensor), _Known(_storage)
_DICT, _SCALAR, _ARRAY = _Known(_ordered_dict), _Known(_numpy_scalar), _Known(_numpy_array)
_EMPTY_ARRAY = _Known(lambda *_: _NumpyArray())
_NAMES: Final[dict[tuple[str, str], object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _TENSOR,
    ("torch._utils", "_rebuild_tensor"): _TENSOR,
    ("torch._utils", "_rebuild_parameter"): _Known(lambda tensor, *_: tensor),
    ("torch.storage", "_load_from_bytes"): _STORAGE,
    ("torch", "Size"): _Known(lambda sizes=(): _naturals(sizes)),
    ("collections", "OrderedDict"): _DICT,
    ("torch_geometric.data.data", "Data"): PygObject,
    ("torch_geometric.data.data", "DataEdgeAttr"): PygObject,
    ("torch_geometric.data.data", "DataTensorAttr"): PygObject,
    ("torch_geometric.data.storage", "GlobalStorage"): PygObject,
    ("torch_geometric.data.storage", "BaseStorage"): PygObject,
    ("numpy", "dtype"): _NumpyType,
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): _Known(_latin1),
    ("__builtin__", "bytes"): _Known(lambda: b""),  # no bytes at all, as protocol 2 writes them
    **{
        (f"numpy.{core}.{module}", name): known
        for core in ("core", "_core")
        for module, name, known in (
            ("multiarray", "scalar", _SCALAR),
            ("multiarray", "_reconstruct", _EMPTY_ARRAY),
            ("numeric", "_frombuffer", _ARRAY),
        )
    },
    **{("torch", name): f"torch.{name}" for name in ("float16", "float32", "float64", "bfloat16")},
    **{("torch", name): f"torch.{name}" for name in ("int32", "int64", "uint8", "bool")},
}
"""All that a pickle may name, and what it gets."""


class _Unpickler(pickle.Unpickler):
    """Gives the stand-ins of `_NAMES`, and imports nothing."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _unknown(module, name) from None

    def persistent_load(self, pid: object) -> NoReturn:
        raise DataError("the pickle refers to data outside itself, which isn't there.")


def loads(data: bytes, max_tuples: int = MAX_TUPLES) -> Any:
    """What a pickle holds: dicts, lists, numbers, text; arrays for tensors; `PygObject` for `Data`.

    Arrays share the memory of what was read and can't be written to. Use `fields` on a record.

    Args:
        data: the pickle.
        max_tuples: most tuples that it may have; a tensor has about five.

    Raises:
        DataError: not a pickle, damaged, or it names something that isn't known here.
    """
    end_of_pickle(data, max_tuples=max_tuples)
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except DataError:
        raise
    except Exception as error:  # whatever a damaged or hostile pickle sets off is its own fault
        raise DataError(
            f"a pickle that can't be read ({type(error).__name__}: {error})."
        ) from error


def load_file(path: str | Path) -> Any:
    """What a file with one pickle holds; see `loads`.

    Raises:
        DataError: the file can't be read, or as `loads` does.
    """
    path = Path(path)
    with reading(path):
        data = path.read_bytes()
    try:
        return loads(data, max_tuples=sys.maxsize)  # of any number of records
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def fields(record: Any) -> dict[str, Any]:
    """The names and values of a record, those that are None left out.

    Args:
        record: a `PygObject`, or a dict whose keys are names.

    Raises:
        DataError: neither.
    """
    found = record.fields() if isinstance(record, PygObject) else record
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise DataError(
            f"a record is a {type(record).__name__}, expected a `Data` object of PyTorch Geometric "
            "or a dict of tensors with names."
        )
    return {
        name: value.array if isinstance(value, _NumpyArray) else value
        for name, value in found.items()
        if value is not None
    }
