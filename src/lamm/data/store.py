"""A data set on disk: memory-mapped Arrow shards, a small index, and a card.

A store is a folder with ``card.json``, ``index.arrow`` and ``shard-NNNNN.arrow``; see
`lamm.data.columns` for what they hold. Opening reads the card and maps the index. A shard is mapped
when the first structure of it is asked for, and a structure is a view of the mapped file.

    store = Store.open("runs/water")
    store[0].positions, store.index.num_atoms, store.card.functional
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32, Integer, UInt8, UInt64

from lamm.data.cards import DatasetCard, FileRecord, check_version
from lamm.data.columns import ENERGY, FORCES, INDEX_SCHEMA, Columns, read_batch, store_schema
from lamm.data.references import Normalisation
from lamm.data.writer import CARD, INDEX, StoreWriter, file_sha256
from lamm.errors import ConfigError, StoreError
from lamm.schema import parse
from lamm.structure import Structure

__all__ = ["Store", "StoreIndex", "StoreWriter", "file_sha256"]

MAX_MAPPED = 8192
"""Shards of a store that are mapped at a time. Linux gives a process 65,530 mappings in all."""


@dataclass(frozen=True, eq=False)
class StoreIndex:
    """What is known of each structure without reading it: arrays of one length, in row order."""

    num_atoms: Int32[np.ndarray, " structures"]
    num_edges: Int32[np.ndarray, " structures"]
    """Edges within the card's `edge_cutoff`, at most `edge_max_neighbors` per atom."""
    labels: UInt8[np.ndarray, " structures"]
    """Bits `lamm.data.columns.ENERGY`, `FORCES` (of at least one free atom) and `STRESS`."""
    shard: Int32[np.ndarray, " structures"]
    row: Int32[np.ndarray, " structures"]
    """Row within the shard."""
    split: UInt8[np.ndarray, " structures"]
    """What the source says: 0 nothing, 1 train, 2 val, 3 test; see `lamm.data.splits`."""
    id_hash: UInt64[np.ndarray, " structures"]
    """`lamm.data.splits.hash_id` of the structure's id."""

    def __len__(self) -> int:
        return len(self.num_atoms)

    @property
    def has_energy(self) -> Bool[np.ndarray, " structures"]:
        """Which structures have an energy."""
        return np.asarray((self.labels & ENERGY) > 0)

    @property
    def has_forces(self) -> Bool[np.ndarray, " structures"]:
        """Which structures have forces on at least one free atom."""
        return np.asarray((self.labels & FORCES) > 0)


class Store:
    """A data set on disk, open for reading; `Store.open` makes one."""

    def __init__(self, path: Path, card: DatasetCard, index: StoreIndex) -> None:
        self.path = path
        self.card = card
        self.index = index
        self._shards: list[Columns | None] = [None] * len(card.shards)
        self._mapped: deque[int] = deque()
        self._schema = store_schema(card.position_dtype)
        # A memory view gives Python numbers, and knows negative and missing places.
        self._shard_of, self._row_of = index.shard.data, index.row.data

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store; only its card and its index are read.

        Raises:
            StoreError: no store there, one that isn't complete, or one of another version.
        """
        folder = Path(path)
        card = _read_card(folder)
        return cls(folder, card, _read_index(folder, card))

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Another process opens the store itself."""
        return Store.open, (self.path,)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {len(self)} structures of '{self.card.name}')"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: SupportsIndex) -> Structure:
        """Structure `number`, whose arrays are read-only views of the mapped shard.

        Raises:
            IndexError: there is no such structure.
            StoreError: its shard is missing, cut short or damaged.
        """
        try:
            shard, row = self._shard_of[number], self._row_of[number]
        except IndexError:
            raise IndexError(f"structure {number} of {self.path}, which has {len(self)}") from None
        return (self._shards[shard] or self._map(shard)).structure(row)

    def __iter__(self) -> Iterator[Structure]:
        return self.structures(range(len(self)))

    def structures(self, rows: Iterable[int] | Integer[np.ndarray, " rows"]) -> Iterator[Structure]:
        """The structures of some rows, in the order given."""
        for row in rows:
            yield self[row]

    def normalisation(self) -> Normalisation:
        """Reference energies and scales that the card holds, fitted on its training split."""
        return self.card.normalisation()

    def verify(self) -> None:
        """Compare size and checksum of every file with the card.

        Raises:
            StoreError: a file is missing, cut short or damaged.
        """
        for record in (self.card.index, *self.card.shards):
            path = _checked_size(self.path, record)
            found = file_sha256(path)
            if found != record.sha256:
                raise StoreError(
                    f"{path}: sha256 is {found}, expected {record.sha256}: the file is damaged.\n"
                    "  Copy the store again, or ingest its source again."
                )

    def _map(self, shard: int) -> Columns:
        record = self.card.shards[shard]
        path = _checked_size(self.path, record)
        batch = _checked_batch(path, record, self._schema)
        try:
            columns = Columns(batch)
        except pa.ArrowInvalid as error:
            raise StoreError(f"{path}: {error}.\n  Ingest the source again.") from error
        if len(self._mapped) == MAX_MAPPED:
            # Structures that somebody still holds keep their own shard mapped.
            self._shards[self._mapped.popleft()] = None
        self._mapped.append(shard)
        self._shards[shard] = columns
        return columns


def _read_card(folder: Path) -> DatasetCard:
    ingest = "Make a store with `lamm data ingest FORMAT SOURCE --to STORE`."
    if not folder.exists():
        raise StoreError(f"{folder}: there is no store at this path.\n  {ingest}")
    if not folder.is_dir():
        raise StoreError(
            f"{folder}: found a file, expected a store, which is a folder.\n  {ingest}"
        )
    path = folder / CARD
    if not path.is_file():
        half = any(folder.glob("shard-*.arrow")) or folder.name.startswith(".")
        found = "a store that was only half written" if half else "a folder that is not a store"
        raise StoreError(f"{folder}: found {found}: it has no {CARD}.\n  {ingest}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        check_version(values, path)
        return parse(DatasetCard, values, str(path))
    except ConfigError as error:
        raise StoreError(f"{error}\n  The card is damaged: ingest the source again.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(
            f"{path}: can't be read ({error}).\n  The card is damaged: ingest the source again."
        ) from error


def _read_index(folder: Path, card: DatasetCard) -> StoreIndex:
    batch = _checked_batch(_checked_size(folder, card.index), card.index, INDEX_SCHEMA)
    in_shards = sum(shard.rows for shard in card.shards)
    if not batch.num_rows == in_shards == card.num_structures:
        raise StoreError(
            f"{folder}: {INDEX} has {batch.num_rows} structures, the shards {in_shards}, and the "
            f"card says {card.num_structures}; expected one number.\n"
            "  The files are of different stores: ingest the source again."
        )
    return StoreIndex(
        **{field.name: batch.column(field.name).to_numpy() for field in fields(StoreIndex)}
    )


def _checked_size(folder: Path, record: FileRecord) -> Path:
    path = folder / record.name
    try:
        found = path.stat().st_size
    except OSError as error:
        raise StoreError(
            f"{path}: the file is missing ({error.strerror}); the card lists it.\n"
            "  Copy the store again, or ingest its source again."
        ) from error
    if found != record.bytes:
        raise StoreError(
            f"{path}: found {found} bytes, expected {record.bytes}: the file is "
            f"{'cut short' if found < record.bytes else 'not the one that was written'}.\n"
            "  Copy the store again, or ingest its source again."
        )
    return path


def _checked_batch(path: Path, record: FileRecord, schema: pa.Schema) -> pa.RecordBatch:
    try:
        batch = read_batch(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"{path}: not a readable Arrow file ({error}).\n"
            "  Copy the store again, or ingest its source again."
        ) from error
    if batch.schema != schema or batch.num_rows != record.rows:
        raise StoreError(
            f"{path}: found {batch.num_rows} rows of {', '.join(batch.schema.names)}; expected "
            f"{record.rows} rows of {', '.join(schema.names)}.\n  Ingest the source again."
        )
    return batch
