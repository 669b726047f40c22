"""ASE's databases, SQLite (``.db``) and JSON, row by row; SchNetPack's ways of using them too.

Rows are decoded here rather than by `ase.db`, which would make the tables of a database that isn't
there, keep a JSON file in memory as a whole, and count its way to a row.
"""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from lamm.data.readers.ase_record import AseRecord, Metadata, held, merged
from lamm.data.readers.common import reading
from lamm.errors import DataError

Load = Callable[[], AseRecord]

_RESULTS: Final = ("energy", "free_energy", "forces", "stress")
_COLUMNS: Final = (
    *("unique_id", "numbers", "positions", "cell", "pbc", "constraints"),
    *_RESULTS,
    *("key_value_pairs", "data"),
)
_OLDEST: Final = 5
"""Version of the tables; ASE itself reads older ones only to convert them."""
_DTYPE, _SHAPE = "_dtype_", "_shape_"
_BITS: Final = np.array([1, 2, 4])
_CHUNK: Final = 1 << 20
_LONGEST_KEY: Final = 4096
_KEY = re.compile(r'\s*[{,]\s*"([^"\\]*)"\s*:\s*')
_OTHER = re.compile(r"\s*[^\s{},]")
_END = re.compile(r"(?:\s*\{)?\s*\}")


class SqliteRows:
    """The rows of a SQLite database, in the order of their ids.

    Args:
        path: the file, not compressed.
        source: what the user calls it.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self._path, self._source = path, source
        with reading(source), path.open("rb"):
            pass
        with self._open() as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
            if "systems" not in tables:
                raise DataError(
                    f"{source}: a SQLite database without the table 'systems': not one of ASE's."
                )
            facts = {}
            if "information" in tables:
                facts = dict(database.execute("SELECT name, value FROM information"))
            columns = {row[1] for row in database.execute("PRAGMA table_info(systems)")}
            version = int(facts.get("version", 1))
            if version < _OLDEST or not columns.issuperset(_COLUMNS):
                raise DataError(
                    f"{source}: a database of ASE's version {version}, expected {_OLDEST} to 9.\n"
                    f"  Convert it: python -m ase.db.convert {source.name}"
                )
            counted = database.execute("SELECT COUNT(*), MIN(id), MAX(id) FROM systems").fetchone()
        self.size: int | None = counted[0]
        self._first, self._last = counted[1] or 0, counted[2] or 0
        self._metadata: dict[str, Any] = _json(facts.get("metadata", "{}"), source)

    def metadata(self) -> dict[str, Any]:
        """What the database says of itself."""
        return self._metadata

    def records(self, first: int, last: int | None, step: int) -> Iterator[tuple[str, Load]]:
        """The rows that a slice means, each with the name that follows the file's."""
        size = self.size or 0
        end = size if last is None else min(last, size)
        columns = ", ".join(_COLUMNS)
        if self._last - self._first + 1 == size:
            # No row was ever deleted, so that ids tell where each is.
            query = f"SELECT {columns} FROM systems WHERE id >= ? ORDER BY id"
            argument = self._first + first
        else:
            query = f"SELECT {columns} FROM systems ORDER BY id LIMIT -1 OFFSET ?"
            argument = first
        with self._open() as database:
            rows = islice(database.execute(query, (argument,)), 0, max(end - first, 0), step)
            for number, row in zip(range(first, end, step), rows, strict=False):
                yield str(number), partial(_sqlite_record, row)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open for reading; without locks, which some file systems lack, where nobody writes."""
        written = any(
            self._path.with_name(self._path.name + tail).exists() for tail in ("-wal", "-journal")
        )
        address = self._path.resolve().as_uri() + ("?mode=ro" if written else "?immutable=1")
        try:
            with closing(sqlite3.connect(address, uri=True)) as database:
                yield database
        except sqlite3.Error as error:
            raise DataError(
                f"{self._source}: can't be read as a SQLite database ({error}). Fetch it again, "
                "or name its format with `reader: {format: ...}` if it is none."
            ) from error


class JsonRows:
    """The rows of a JSON database, in the order of the file.

    Args:
        path: the file, not compressed.
        source: what the user calls it.
    """

    size: int | None = None

    def __init__(self, path: Path, source: Path) -> None:
        self._path, self._source = path, source

    def metadata(self) -> dict[str, Any]:
        """What the database says of itself, at its end."""
        found = (value for key, value in self._members() if key == "metadata")
        return next(found, None) or {}

    def records(self, first: int, last: int | None, step: int) -> Iterator[tuple[str, Load]]:
        """The rows that a slice means, each with the name that follows the file's."""
        for number, row in islice(enumerate(self._rows()), first, last, step):
            yield str(number), partial(_json_record, row)

    def _rows(self) -> Iterator[Any]:
        number = 0
        for key, row in self._members():
            if key.isdecimal():
                yield row
                number += 1
        if not number:
            raise DataError(
                f"{self._source}: no rows in it, so that it is no database of ASE's.\n"
                "  For pymatgen's structures there is the format `pymatgen`."
            )

    def _members(self) -> Iterator[tuple[str, Any]]:
        with reading(self._source), self._path.open(encoding="utf-8") as file:
            yield from json_members(file, self._source)


def json_members(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    """Names and values of a JSON object, one after the other; no more of it is in memory.

    Raises:
        DataError: the file isn't a JSON object, or was cut short.
    """
    decode = json.JSONDecoder().raw_decode
    text, place = "", 0
    while True:
        key = _KEY.match(text, place)
        if key:
            try:
                value, end = decode(text, key.end())
            except json.JSONDecodeError:
                end = len(text)
            if end < len(text):  # else a number might go on in what follows
                yield key[1], value
                place = end
                continue
        elif _END.match(text, place):
            return
        elif len(text) - place > _LONGEST_KEY or _OTHER.match(text, place):
            raise DataError(
                f"{path}: found {text[place : place + 40]!r}, expected a JSON object of rows as "
                "ASE's databases are.\n  For lists of pymatgen's structures there is the format "
                "`pymatgen`."
            )
        more = file.read(max(_CHUNK, len(text) - place))
        if not more:
            raise DataError(f"{path}: not valid JSON, or cut short: it ends within a value.")
        text, place = text[place:] + more, 0


def schnetpack_metadata(metadata: Mapping[str, Any], with_references: bool, path: Path) -> Metadata:
    """Units and reference energies in the metadata of a database.

    SchNetPack 2 has ``atomrefs`` by property; before, it was a table whose columns
    ``atref_labels`` names.

    Args:
        metadata: of the database.
        with_references: whether references are to be added.
        path: the file, for messages.

    Raises:
        DataError: references are wanted and there are none.
    """
    units = {str(key): str(unit) for key, unit in _mapping(metadata, "_property_unit_dict").items()}
    if isinstance(metadata.get("_distance_unit"), str):
        units["positions"] = metadata["_distance_unit"]
    if not with_references:
        return Metadata(units, {})
    tables: Any = metadata.get("atomrefs")
    try:
        if isinstance(tables, list):
            columns = np.asarray(tables, dtype=np.float64).T
            tables = dict(zip(metadata["atref_labels"], columns, strict=True))
        references = {
            str(key): np.asarray(table, dtype=np.float64).reshape(-1)
            for key, table in dict(tables or {}).items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: the metadata's 'atomrefs' make no table ({error!r}).") from error
    if not references:
        raise DataError(
            f"{path}: the metadata has no 'atomrefs', but: {', '.join(metadata) or 'nothing'}.\n"
            "  Leave `add_atomrefs` out of `reader` in the card."
        )
    return Metadata(units, references)


def _sqlite_record(row: tuple[Any, ...]) -> AseRecord:
    """A row of the table."""
    from ase.db.core import bytes_to_object

    values = dict(zip(_COLUMNS, row, strict=True))
    try:
        numbers = _array(values["numbers"], "<i4")
        data = values["data"]
        return AseRecord(
            numbers=numbers,
            positions=_array(values["positions"], "<f8").reshape(-1, 3),
            cell=_array(values["cell"], "<f8").reshape(3, 3),
            pbc=(values["pbc"] & _BITS).astype(bool),
            held=held(json.loads(values["constraints"] or "[]"), len(numbers)),
            values=merged(
                {
                    "energy": values["energy"],
                    "free_energy": values["free_energy"],
                    "forces": _shaped(values["forces"], (-1, 3)),
                    "stress": _shaped(values["stress"], (-1,)),
                },
                json.loads(values["key_value_pairs"] or "{}"),
                _data(
                    bytes_to_object(data) if isinstance(data, bytes) else json.loads(data or "{}")
                ),
            ),
            unique_id=values["unique_id"],
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, AssertionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the row is damaged ({type(error).__name__}: {error}).") from error


def _json_record(row: Any) -> AseRecord:
    """A row of a JSON database."""
    if not isinstance(row, dict) or "numbers" not in row:
        raise DataError("no 'numbers' in it: not a row of a database of ASE.")
    try:
        numbers = np.asarray(_decoded(row["numbers"]))
        if numbers.dtype.kind not in "iuf":
            raise DataError(f"'numbers' holds {numbers.dtype}, expected atomic numbers.")
        return AseRecord(
            numbers=numbers,
            positions=np.asarray(_decoded(row["positions"]), dtype=np.float64),
            cell=np.asarray(_decoded(row.get("cell", np.zeros((3, 3)))), dtype=np.float64),
            pbc=np.asarray(_decoded(row.get("pbc", [False] * 3)), dtype=bool),
            held=held(row.get("constraints") or [], len(numbers)),
            values=merged(
                {key: _decoded(row.get(key)) for key in _RESULTS},
                row.get("key_value_pairs") or {},
                _data(row.get("data") or {}),
            ),
            unique_id=row.get("unique_id"),
        )
    except (LookupError, AttributeError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the row is damaged ({type(error).__name__}: {error}).") from error


def _array(blob: bytes, dtype: str) -> NDArray[Any]:
    return np.frombuffer(blob, dtype)


def _shaped(blob: bytes | None, shape: tuple[int, ...]) -> NDArray[Any] | None:
    return None if blob is None else _array(blob, "<f8").reshape(shape)


def _decoded(value: Any) -> Any:
    """An array or a cell as ASE writes them to JSON."""
    if isinstance(value, dict) and "__ndarray__" in value:
        shape, dtype, flat = value["__ndarray__"]
        return np.array(flat, dtype=dtype).reshape(shape)
    if isinstance(value, dict) and "__ase_objtype__" in value:
        return _decoded(value.get("array"))
    return value


def _data(data: Any) -> dict[str, Any]:
    """A row's ``data``; arrays that SchNetPack before 1.0 wrote as base64 text are arrays again."""
    if not isinstance(data, dict):
        return {}
    values = {}
    for key, value in data.items():
        if key.startswith((_DTYPE, _SHAPE)):
            continue
        if isinstance(value, str) and _DTYPE + key in data:
            flat = np.frombuffer(base64.b64decode(value), np.dtype(data[_DTYPE + key]))
            values[key] = flat.reshape(data.get(_SHAPE + key, flat.shape))
        else:
            values[key] = _decoded(value)
    return values


def _mapping(metadata: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = metadata.get(key)
    return value if isinstance(value, Mapping) else {}


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: its metadata is not JSON ({error}).") from error
    return value if isinstance(value, dict) else {}
