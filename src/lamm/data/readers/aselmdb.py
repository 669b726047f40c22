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
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    SkippedRecord,
    checked,
    choose_key,
    element_numbers,
    label_value,
)
from lamm.data.readers.extxyz import USUAL_KEYS
from lamm.data.readers.lmdb_records import lmdb_transaction
from lamm.data.splits import SPELLINGS
from lamm.errors import DataError, nearest_names
from lamm.structure import Structure

SUFFIXES: Final = (".aselmdb",)
_NESTED = ("key_value_pairs", "data")
_NOT_LABELS = ("numbers", "positions", "cell", "pbc", "constraints", "unique_id", "ctime", "mtime")
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

    Labels are looked for in the row, in its key-value pairs and in its data. A structure is named
    by the row's ``unique_id``, unless the card names another key.

    Raises:
        DataError: a row can't become a structure, or the file can't be read.
    """
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    with lmdb_transaction(path) as transaction:
        ids = _ids(transaction, path)
        records = (
            (f"row {ids[number]}", f"{name}:{number}", transaction.get(b"%d" % ids[number]))
            for number in range(len(ids))[start:stop]
        )
        yield from checked(
            path,
            records,
            lambda value, origin: _structure(_row(value), header, origin, found),
            on_error,
        )


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


def _structure(row: dict[str, Any], header: CardHeader, origin: str, found: KeysFound) -> Structure:
    numbers, positions = _array(row, "numbers"), _array(row, "positions")
    if numbers is None or positions is None:
        raise DataError(f"no numbers and positions; the row has: {', '.join(row) or 'nothing'}.")
    present = _present(row)
    found.see(present)
    factors = header.units.factors()
    labels = _labels(present, header, factors, found)
    cell, pbc = _array(row, "cell"), _array(row, "pbc")
    fixed = None if header.keys.fixed == IGNORED else _fixed(row, len(numbers))
    return Structure(
        atomic_numbers=element_numbers(np.asarray(numbers)),
        positions=np.asarray(positions, dtype=np.float64).reshape(-1, 3) * factors["length"],
        cell=np.zeros((3, 3)) if cell is None else _matrix(cell) * factors["length"],
        pbc=np.zeros(3, dtype=bool) if pbc is None else np.asarray(pbc, dtype=bool),
        energy=labels.get("energy"),
        forces=labels.get("forces"),
        stress=labels.get("stress"),
        fixed=fixed,
        id=_id(row, present, header.keys.id) or origin,
        origin=origin,
        split=_split(present, header.keys.split),
    )


def _present(row: Mapping[str, Any]) -> dict[str, Any]:
    """All values by their names; the row's own go before those of its data."""
    present: dict[str, Any] = {}
    for nested in reversed(_NESTED):
        inner = row.get(nested)
        if isinstance(inner, Mapping):
            present.update(inner)
    present.update({key: row[key] for key in row if key not in (*_NESTED, *_NOT_LABELS)})
    return present


def _labels(
    present: Mapping[str, Any],
    header: CardHeader,
    factors: Mapping[str, float],
    found: KeysFound,
) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    for label in ("energy", "forces", "stress") if header.labels is None else header.labels:
        named = getattr(header.keys, label)
        promised = header.labels is not None or named is not None
        key = choose_key(label, named, USUAL_KEYS[label], present, promised)
        if key is not None and (value := _plain(present[key])) is not None:
            labels[label] = label_value(label, key, value) * factors[label]
            found.note(label, key)
    return labels


def _array(row: Mapping[str, Any], key: str) -> Any:
    return _plain(row.get(key))


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
        except (ValueError, TypeError) as error:
            raise DataError(f"an array that can't be read: {error}.") from error
    if value.get("__ase_objtype__") == "cell":
        return _plain(value.get("array"))
    return value


def _matrix(cell: Any) -> NDArray[np.float64]:
    matrix: NDArray[np.float64] = np.asarray(cell, dtype=np.float64)
    return matrix.reshape(3, 3) if matrix.size == 9 else matrix


def _fixed(row: Mapping[str, Any], num_atoms: int) -> NDArray[np.bool_] | None:
    """(N,) atoms that a constraint holds still; one held along some axis counts."""
    fixed = np.zeros(num_atoms, dtype=bool)
    for constraint in row.get("constraints") or ():
        if constraint.get("name") not in ("FixAtoms", "FixCartesian"):
            continue
        held = constraint.get("kwargs", {})
        indices = _plain(held.get("indices", held.get("a")))
        try:
            fixed[np.asarray(indices, dtype=np.int64)] = True
        except (IndexError, TypeError, ValueError):
            raise DataError(f"the constraint {constraint} names atoms that aren't there.") from None
    return fixed if fixed.any() else None


def _id(row: Mapping[str, Any], present: Mapping[str, Any], key: str | None) -> str | None:
    if key == IGNORED:
        return None
    if key is None:
        return row.get("unique_id")
    value = row.get(key, present.get(key))
    if value is None:
        raise DataError(
            f"no '{key}', which the card names under `keys.id`; the row has: {', '.join(present)}."
        )
    return str(value)


def _split(present: Mapping[str, Any], key: str | None) -> str | None:
    if key is None or key == IGNORED:
        return None
    value = str(present.get(key))
    if value.lower() not in SPELLINGS:
        raise DataError(f"'{key}' is {value!r}. {nearest_names(value.lower(), SPELLINGS)}")
    return SPELLINGS[value.lower()]
