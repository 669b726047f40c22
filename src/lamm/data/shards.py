"""The shards of a store that is being written, and what their rows add up to.

A shard that is closed is whole: its file, its part of the index, and its line in ``shards.jsonl``.
So a writer that was stopped at any instant can take up the closed shards again (`Shards.take_up`).
Nothing that grows with the store is kept in memory.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lamm.data.cards import FileRecord
from lamm.data.columns import (
    INDEX_SCHEMA,
    Columns,
    read_batch,
    store_schema,
    write_batch,
)
from lamm.data.sources import file_sha256
from lamm.data.totals import Totals
from lamm.data.unique import SeenHashes
from lamm.errors import DataError

INDEX = "index.arrow"
_LOG = "shards.jsonl"
WORK = "work"
"""Folder of what isn't part of the finished store."""


class Shards:
    """Closed shards in a folder.

    Args:
        folder: where they are; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / WORK
        self.records: list[FileRecord] = []
        self.num_rows = 0
        self.totals = Totals()
        self._seen = SeenHashes(self.work / "ids")

    def take_up(self) -> str | None:
        """Count the shards in again that an earlier writer closed; remove what it left unfinished.

        Returns:
            ``float32`` or ``float64``, the precision of their positions; None without any.
        """
        log = self.work / _LOG
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        dtype = None
        for line in lines:
            record = _whole_record(line)
            if record is None or not self._is_whole(record):
                break
            batch = read_batch(self.folder / record.name)
            dtype = (
                "float32"
                if batch.schema.field("positions").type.value_type == pa.float32()
                else "float64"
            )
            self._count(Columns(batch), read_batch(self._index_part(len(self.records))), record)
        for path in self.folder.glob("shard-*.arrow"):
            if path.name not in {record.name for record in self.records}:
                path.unlink()
        self.work.mkdir(exist_ok=True)
        log.write_text("".join(_line(record) for record in self.records), encoding="utf-8")
        return dtype

    def close(self, batch: pa.RecordBatch, position_dtype: str) -> None:
        """Write rows, with the columns of `lamm.data.columns.COUNTED`, as the next shard.

        Raises:
            DataError: an id is that of an earlier structure.
        """
        number = len(self.records)
        path = self.folder / f"shard-{number:05d}.arrow"
        columns = Columns(batch)
        labels, id_hash = (batch.column(name).to_numpy() for name in ("labels", "id_hash"))
        index = {
            "num_atoms": columns.num_atoms,
            "num_edges": batch.column("num_edges").to_numpy(),
            "labels": labels,
            "shard": np.full(batch.num_rows, number, dtype=np.int32),
            "row": np.arange(batch.num_rows, dtype=np.int32),
            "split": columns.split,
            "id_hash": id_hash,
        }
        index_batch = pa.RecordBatch.from_pydict(index, schema=INDEX_SCHEMA)
        self.work.mkdir(exist_ok=True)
        write_batch(path, batch.select(store_schema(position_dtype).names))
        write_batch(self._index_part(number), index_batch)
        record = file_record(path, batch.num_rows)
        self._count(columns, index_batch, record)
        with (self.work / _LOG).open("a", encoding="utf-8") as log:
            log.write(_line(record))

    def _count(self, columns: Columns, index: pa.RecordBatch, record: FileRecord) -> None:
        id_hash = index.column("id_hash").to_numpy()
        self._refuse_duplicates(columns, id_hash)
        self.totals.add(columns, index.column("labels").to_numpy(), id_hash)
        self.records.append(record)
        self.num_rows += record.rows

    def _refuse_duplicates(self, columns: Columns, id_hash: NDArray[np.uint64]) -> None:
        """Two records of one id would share their split and their noise; name them and stop."""
        for row in self._seen.add(id_hash):
            name, origin = columns.name(int(row))
            for other, other_origin in self._called(columns, id_hash, int(row)):
                if other == name:
                    raise DataError(
                        f"id '{name}' is given twice: to {other_origin or 'one structure'} and to "
                        f"{origin or 'another'}.\n  An id names one structure of a store. Choose "
                        "another key with `keys: {id: KEY}` in the card, or `keys: {id: none}` to "
                        "number the records."
                    )

    def _called(
        self, columns: Columns, id_hash: NDArray[np.uint64], row: int
    ) -> list[tuple[str, str]]:
        """Ids and origins of the structures before `row` whose id has the same hash."""
        names = []
        for number, record in enumerate(self.records):
            earlier = read_batch(self._index_part(number)).column("id_hash").to_numpy()
            places = np.flatnonzero(earlier == id_hash[row])
            if len(places):
                shard = Columns(read_batch(self.folder / record.name))
                names += [shard.name(int(place)) for place in places]
        return names + [
            columns.name(int(place)) for place in np.flatnonzero(id_hash[:row] == id_hash[row])
        ]

    def join_index(self) -> FileRecord:
        """Write the index of all rows from its parts, through mapped files: of any size."""
        arrays = []
        for field in INDEX_SCHEMA:
            dtype = field.type.to_pandas_dtype()
            column = np.memmap(self.work / field.name, dtype, "w+", shape=(self.num_rows,))
            first = 0
            for number, record in enumerate(self.records):
                part = read_batch(self._index_part(number)).column(field.name)
                column[first : first + record.rows] = part.to_numpy()
                first += record.rows
            arrays.append(
                pa.Array.from_buffers(field.type, self.num_rows, [None, pa.py_buffer(column)])
            )
        path = self.folder / INDEX
        write_batch(path, pa.RecordBatch.from_arrays(arrays, schema=INDEX_SCHEMA))
        return file_record(path, self.num_rows)

    def _index_part(self, number: int) -> Path:
        return self.work / f"index-{number:05d}.arrow"

    def _is_whole(self, record: FileRecord) -> bool:
        path, index = self.folder / record.name, self._index_part(len(self.records))
        if not (path.is_file() and index.is_file() and path.stat().st_size == record.bytes):
            return False
        try:
            rows = read_batch(index).num_rows
        except (OSError, pa.ArrowInvalid):
            return False
        return rows == record.rows and file_sha256(path) == record.sha256


def file_record(path: Path, rows: int) -> FileRecord:
    """What a card says of a file of a store."""
    return FileRecord(
        name=path.name, rows=rows, bytes=path.stat().st_size, sha256=file_sha256(path)
    )


def _line(record: FileRecord) -> str:
    return json.dumps(record.model_dump()) + "\n"


def _whole_record(line: str) -> FileRecord | None:
    """A line of the log; None for one that was cut short."""
    try:
        return FileRecord.model_validate_json(line)
    except ValueError:
        return None
