"""ASE databases in an LMDB (``.aselmdb``): OMat24, OMol25, ODAC25 and others.

Keys are the ids ``1``, ``2``, ...; a value is a row of ASE's database as JSON, compressed by zlib.
``nextid`` and ``deleted_ids`` tell which ids there are. Arrays are nested lists, or ASE's
``{"__ndarray__": [shape, dtype, values]}``. Read without ASE's database code.
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import lmdb
import numpy as np

from lamm.data.cards import CardHeader
from lamm.data.readers.ase_record import AseRecord, ase_structure, held, merged
from lamm.data.readers.common import KeysFound, SkippedRecord, checked
from lamm.data.readers.lmdb_records import lmdb_transaction
from lamm.errors import DataError
from lamm.structure import Structure

SUFFIXES: Final = (".aselmdb",)
_NESTED = ("key_value_pairs", "data")
_NOT_VALUES = ("numbers", "positions", "cell", "pbc", "constraints", "ctime", "mtime")
_MAX_ROW_BYTES: Final = 1 << 28


class RowIds(Sequence[int]):
    """The ids of a database in order: those from 1 that weren't deleted.

    Args:
        next_id: one more than the last.
        deleted: those that aren't there.
    """

    def __init__(self, next_id: int, deleted: Sequence[int]) -> None:
        self._deleted = sorted(set(deleted))
        # The place that each deleted id would have among those that are left.
        self._places = [one - 1 - number for number, one in enumerate(self._deleted)]
        self._length = max(next_id - 1 - len(self._deleted), 0)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        if not 0 <= place < self._length:
            raise IndexError(place)
        return place + 1 + bisect_left(self._places, place + 1)


def read_aselmdb(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read the rows of a database, in eV and Å; see `Reader` in `format.py`.

    Labels are looked for in the row, in its key-value pairs and in its data; the first of these
    that has the name counts. Ids are, where `keys.id` doesn't say, an ``id`` among these, or the
    row's ``unique_id``.

    Raises:
        DataError: a row can't become a structure, or the file can't be read.
    """
    path, found = Path(path), found or KeysFound()
    name, factors = name or path.name, header.units.factors()

    def build(value: bytes | memoryview | None, origin: str) -> Structure:
        return ase_structure(_record(_row(value)), header, origin, found, factors)

    with lmdb_transaction(path) as transaction:
        ids = _ids(transaction, path)
        records = (
            (f"row {ids[number]}", f"{name}:{number}", transaction.get(b"%d" % ids[number]))
            for number in range(len(ids))[start:stop]
        )
        yield from checked(path, records, build, on_error)


def count_aselmdb(path: str | Path, header: CardHeader) -> int:
    """How many rows a database has.

    Raises:
        DataError: the file can't be read.
    """
    with lmdb_transaction(Path(path)) as transaction:
        return len(_ids(transaction, Path(path)))


def _ids(transaction: lmdb.Transaction, path: Path) -> RowIds:
    next_id, deleted = (transaction.get(key) for key in (b"nextid", b"deleted_ids"))
    if next_id is None:
        raise DataError(
            f"{path}: an LMDB without 'nextid', so not one of ASE's databases.\n"
            "  LMDBs of pickled records are read by the format 'oc-lmdb'."
        )
    try:
        return RowIds(int(_json(next_id)), [] if deleted is None else _json(deleted))
    except (ValueError, TypeError, zlib.error) as error:
        raise DataError(f"{path}: its ids can't be read ({error}). Fetch it again.") from error


def _json(value: bytes | memoryview) -> Any:
    stream = zlib.decompressobj()
    text = stream.decompress(value, _MAX_ROW_BYTES)
    if stream.unconsumed_tail:
        raise ValueError(f"more than {_MAX_ROW_BYTES} bytes when decompressed")
    if not stream.eof:
        raise ValueError("the compressed row is cut short")
    return json.loads(text)


def _row(value: bytes | memoryview | None) -> dict[str, Any]:
    if value is None:
        raise DataError("the row is missing, and isn't among the deleted ones.")
    try:
        row = _json(value)
    except (ValueError, zlib.error) as error:
        raise DataError(f"not a row of ASE's database: {error}.") from error
    if not isinstance(row, dict):
        raise DataError(f"found {type(row).__name__}, expected a row of ASE's database.")
    return row


class _Values(Mapping[str, Any]):
    """What a row has besides its atoms, by name; an array is made when it is asked for.

    Rows of OMol25 have dozens of arrays, of which two are labels.

    Args:
        row: a row of the database.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        own = {key: row[key] for key in row if key not in (*_NESTED, *_NOT_VALUES)}
        places = [own, *(row[key] for key in _NESTED if isinstance(row.get(key), Mapping))]
        self._values = merged(*places)

    def __getitem__(self, key: str) -> Any:
        return _plain(self._values[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _record(row: Mapping[str, Any]) -> AseRecord:
    """The atoms of a row, and its values.

    Raises:
        DataError: it has no atoms, or what it has for them is damaged.
    """
    if row.get("numbers") is None or row.get("positions") is None:
        raise DataError(f"no numbers and positions; the row has: {', '.join(row) or 'nothing'}.")
    try:
        # As float64, so that half an element isn't rounded to one.
        numbers = np.atleast_1d(np.asarray(_plain(row["numbers"]), dtype=np.float64))
        cell = np.asarray(_plain(row.get("cell", np.zeros((3, 3)))), dtype=np.float64)
        return AseRecord(
            numbers=numbers,
            positions=np.asarray(_plain(row["positions"]), dtype=np.float64).reshape(-1, 3),
            cell=cell.reshape(3, 3) if cell.size == 9 else cell,
            pbc=np.asarray(_plain(row.get("pbc", np.zeros(3))), dtype=bool),
            held=held(map(_constraint, row.get("constraints") or ()), len(numbers)),
            values=_Values(row),
            unique_id=row.get("unique_id"),
        )
    except DataError:
        raise
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"the row is damaged ({type(error).__name__}: {error}).") from error


def _constraint(written: Mapping[str, Any]) -> dict[str, Any]:
    """A constraint whose indices are lists or arrays."""
    named = {key: _plain(value) for key, value in written.get("kwargs", {}).items()}
    return {"name": written.get("name"), "kwargs": named}


def _plain(value: Any) -> Any:
    """Nested lists or an array of what ASE has written; anything else as it is.

    Raises:
        DataError: an array whose values aren't as many as its shape says.
    """
    if not isinstance(value, dict):
        return value
    if "__ndarray__" in value:
        try:
            shape, dtype, flat = value["__ndarray__"]
            return np.array(flat, dtype=np.dtype(str(dtype))).reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise DataError(f"an array that can't be read: {error}.") from error
    if value.get("__ase_objtype__") == "cell":
        return _plain(value.get("array"))
    return value
