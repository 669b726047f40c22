"""Writing a store: all of it, or nothing at its path."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lamm import __version__
from lamm.data.cards import (
    MAX_SKIPPED_LISTED,
    CardHeader,
    DatasetCard,
    FileRecord,
    Skipped,
)
from lamm.data.columns import (
    COUNTED,
    INDEX_SCHEMA,
    accept_precision,
    edge_counter,
    encode,
    position_precision,
    store_schema,
)
from lamm.data.shards import INDEX, WORK, Shards
from lamm.data.sources import file_sha256
from lamm.errors import DataError, LaMMError, StoreError
from lamm.files import beside, sync, write_json
from lamm.structure import Structure
from lamm.units import CODATA_YEAR

CARD = "card.json"
SHARD_STRUCTURES = 100_000
SHARD_BYTES = 60_000_000
MAX_KEYS_SEEN = 1000
"""Names in the source's records that a card lists."""
_BATCH = 256
_FILE_BYTES = 8192
"""Room for the schema, the footer and the padding of a shard."""
_ROW_BYTES = 192
"""Cell, energy, stress, offsets and masks of one structure, rounded up."""


__all__ = ["CARD", "INDEX", "StoreWriter", "file_sha256"]


def refuse_existing(path: Path) -> None:
    """Raise `StoreError` where a store can't be written because there is something at its path."""
    if path.exists() or path.is_symlink():
        raise StoreError(
            f"{path}: there is something at this path already.\n"
            "  Remove it, or write the store to another path."
        )


class StoreWriter:
    """Takes structures and leaves a store; a context manager.

    Everything goes to a hidden folder beside `path`. Leaving the block without an error checks,
    closes and syncs it, and then renames it to `path`; with an error nothing stays behind.

        with StoreWriter("runs/water", CardHeader(name="water")) as writer:
            writer.add(structure)
        writer.card.num_structures

    A structure without an id is named by its place in the store, ``row:N``.

    Args:
        path: folder of the new store; there must be nothing yet.
        header: what is known of the data.
        shard_structures: most structures of a shard.
        shard_bytes: largest shard, unless a single structure is larger.
        folder: where the store is until it is whole. Named, closed shards that an earlier writer of
            the same store left there are taken up (`num_added` counts their structures), and they
            stay there if this one doesn't come to its end either.
    """

    def __init__(
        self,
        path: str | Path,
        header: CardHeader,
        *,
        shard_structures: int = SHARD_STRUCTURES,
        shard_bytes: int = SHARD_BYTES,
        folder: Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.header = header
        self.shard_structures = shard_structures
        self.shard_bytes = shard_bytes
        self._resumes = folder is not None
        self.folder = folder or beside(self.path)
        self.num_added = 0
        self._card: DatasetCard | None = None
        self._position_dtype: str | None = header.position_dtype
        self._count_edges = edge_counter(header)
        self._waiting: list[Structure] = []
        self._batches: list[pa.RecordBatch] = []  # of the shard that is being filled
        self._rows, self._bytes = 0, _FILE_BYTES
        self._shards = Shards(self.folder)
        self._num_skipped = 0
        self._skipped: list[Skipped] = []
        self._keys_found: dict[str, str] = {}
        self._keys_seen: dict[str, None] = {}
        self._source_sha256: dict[str, str] = {}

    @property
    def card(self) -> DatasetCard:
        """The card of the finished store."""
        if self._card is None:
            raise ValueError("the card exists when the `with` block has ended without an error.")
        return self._card

    def __enter__(self) -> Self:
        refuse_existing(self.path)
        try:
            if not self._resumes:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path}: can't write a store there ({error}).") from error
        if self._resumes:
            dtype = self._shards.take_up()
            self._position_dtype = self._position_dtype or dtype
            self.num_added = self._shards.num_rows
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as late:
            error = late
            raise
        finally:
            if not self._is_kept(error):
                shutil.rmtree(self.folder, ignore_errors=True)

    def _is_kept(self, error: BaseException | None) -> bool:
        """Whether what is written stays after an error: it can be gone on with."""
        if error is None or not self._resumes:
            return False
        return bool(self._shards.records) or not isinstance(error, LaMMError)

    @property
    def num_closed(self) -> int:
        """Structures in shards that are closed: these stay if the writer is stopped."""
        return self._shards.num_rows

    def add(self, structure: Structure) -> None:
        """Take one structure in.

        Raises:
            DataError: something is wrong with it, or its positions are more precise than the store.
        """
        structure.check()
        where = structure.origin or structure.id or f"structure {self.num_added}"
        self._position_dtype = accept_precision(
            self._position_dtype, self.header, structure.positions.dtype.name, where
        )
        if not structure.id:
            structure = replace(structure, id=f"row:{self.num_added}")
        self.num_added += 1
        self._waiting.append(structure)
        if len(self._waiting) == _BATCH:
            self._encode_waiting()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Take structures in that `lamm.data.columns.encode` has made a batch of."""
        self._encode_waiting()
        self._position_dtype = accept_precision(
            self._position_dtype,
            self.header,
            position_precision(batch.schema),
            batch.column("origin")[0].as_py(),
        )
        self.num_added += batch.num_rows
        self._append(batch)

    def skip(self, record: str, reason: str) -> None:
        """Note in the card that a record of the source isn't in the store."""
        self._num_skipped += 1
        if len(self._skipped) < MAX_SKIPPED_LISTED:
            self._skipped.append(Skipped(record=record, reason=reason))

    def note_source(self, name: str, sha256: str) -> None:
        """Note in the card a file that structures came from."""
        self._source_sha256[name] = sha256

    def note_keys(self, name: str, keys_found: Mapping[str, str], keys_seen: Iterable[str]) -> None:
        """Note in the card what a source calls things.

        Args:
            name: of the source.
            keys_found: what it calls each label.
            keys_seen: every name in its records.

        Raises:
            DataError: an earlier source calls a label otherwise.
        """
        self._keys_seen.update(dict.fromkeys(keys_seen))
        for label, key in keys_found.items():
            known = self._keys_found.setdefault(label, key)
            if known != key:
                raise DataError(
                    f"{name}: its {label} label is called '{key}', and '{known}' in the files "
                    f"before it.\n  If both mean the same, ingest them as two stores; "
                    f"else choose one with `keys: {{{label}: {known}}}` in the card."
                )

    def _encode_waiting(self) -> None:
        if self._waiting:
            batch = encode(self._waiting, self._position_dtype or "float64", self._count_edges)
            self._waiting = []
            self._append(batch)

    def _append(self, batch: pa.RecordBatch) -> None:
        """Put rows into the open shard, and into new ones whenever it is full."""
        batch = _cast(batch, self._position_dtype or "float64")
        ends = np.cumsum(_row_bytes(batch))
        first = 0
        while first < batch.num_rows:
            taken = int(ends[first - 1]) if first else 0
            fitting = int(np.searchsorted(ends, self.shard_bytes - self._bytes + taken, "right"))
            last = min(fitting, first + self.shard_structures - self._rows)
            if last <= first:
                if self._rows:
                    self._close_shard()
                    continue
                last = first + 1  # larger than a shard, alone in one
            self._batches.append(batch.slice(first, last - first))
            self._rows += last - first
            self._bytes += int(ends[last - 1]) - taken
            first = last

    def _close_shard(self) -> None:
        table = pa.Table.from_batches(self._batches).combine_chunks()
        (batch,) = table.to_batches()
        self._shards.close(batch, self._position_dtype or "float64")
        self._batches, self._rows, self._bytes = [], 0, _FILE_BYTES

    def _finish(self) -> None:
        self._encode_waiting()
        if self._batches:
            self._close_shard()
        if not self._shards.records:
            skipped = f" All {self._num_skipped} records were skipped, the first for: " + (
                f"{self._skipped[0].reason}" if self._skipped else ""
            )
            raise DataError(
                f"{self.path}: no structure to store."
                + (skipped if self._skipped else " The source has no records.")
            )
        card = self._make_card(self._shards.join_index())
        write_json(self.folder / CARD, card.model_dump(mode="json"))
        for path in self.folder.iterdir():
            sync(path)
        sync(self.folder)
        try:
            self.folder.rename(self.path)
        except OSError as error:
            raise StoreError(
                f"{self.path}: something appeared at this path while the store was written "
                f"({error}).\n  Remove it and write the store again."
            ) from error
        shutil.rmtree(self.path / WORK)  # last: up to here a run that is killed can be gone on with
        sync(self.path.parent)
        self._card = card

    def _make_card(self, index: FileRecord) -> DatasetCard:
        totals, header = self._shards.totals.card_entries(), self.header
        values: dict[str, Any] = {
            **header.model_dump(),
            **totals,
            "name": header.name or self.path.name,
            "labels_chosen": header.labels is not None,
            "task": header.task or ("S2EF-Total" if totals["labels"] else "denoising"),
            "position_dtype": self._position_dtype,
            "lamm_version": __version__,
            "factors": header.units.factors(),
            "codata_year": CODATA_YEAR,
            "keys_found": self._keys_found,
            "keys_seen": tuple(self._keys_seen)[:MAX_KEYS_SEEN],
            "source_sha256": self._source_sha256,
            "shards": self._shards.records,
            "index": index,
            "num_skipped": self._num_skipped,
            "skipped": self._skipped,
        }
        return DatasetCard.model_validate(values)


def _cast(batch: pa.RecordBatch, position_dtype: str) -> pa.RecordBatch:
    """The batch with its columns in order and its positions in the precision of the store."""
    kinds = store_schema(position_dtype)
    for name in COUNTED:
        kinds = kinds.append(INDEX_SCHEMA.field(name))
    return batch if batch.schema == kinds else batch.select(kinds.names).cast(kinds)


def _row_bytes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """About how much of a shard each row takes, rather too much than too little."""
    atoms = pc.list_value_length(batch.column("atomic_numbers")).to_numpy().astype(np.int64)
    width = batch.schema.field("positions").type.value_type.bit_width // 8
    size = _ROW_BYTES + atoms * (2 + 3 * width)
    size += 12 * atoms * batch.column("forces").is_valid().to_numpy(zero_copy_only=False)
    for name in ("id", "origin"):
        size += pc.binary_length(batch.column(name)).to_numpy()
    return np.asarray(size)
