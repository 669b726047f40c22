"""From source files to a store: read, check, convert, count; side by side, and with a second try.

Every file is a part, or several where its format lets reading begin anywhere. Parts are read into
the spool (`lamm.data.spool`) by this process, by several, or by a Dask cluster; this process moves
the pieces into the store in the order of the sources. So the store is the same, byte for byte, for
any number of processes, and after any number of interruptions; no more than a few pieces and one
shard are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa

from lamm.data.cards import FORMAT_VERSION, CardHeader, DatasetCard
from lamm.data.catalogue import load_catalogue
from lamm.data.readers import FORMATS, Format, OnError
from lamm.data.readers.common import reader_options
from lamm.data.reading import Pool, reading_pool
from lamm.data.sources import distinct_names, find_sources, source_sha256
from lamm.data.spool import PIECE, Part, Piece, Spool
from lamm.data.staging import staging
from lamm.data.writer import SHARD_BYTES, SHARD_STRUCTURES, StoreWriter, refuse_existing
from lamm.errors import ConfigError, StoreError, nearest_names

PART_RECORDS = 10 * PIECE
"""Records of a part, in formats where reading can begin at any record."""


class IngestProgress(NamedTuple):
    """How far an ingestion is."""

    files_done: int
    files: int
    structures: int
    skipped: int = 0
    fraction: float = 0.0
    """About how much of all sources has been read, from 0 to 1."""
    taken_up: int = 0
    """Structures that an earlier run had read."""


Progress: TypeAlias = Callable[[IngestProgress], None]


def ingest(
    format: str,
    sources: Sequence[str | Path],
    to: str | Path,
    header: CardHeader,
    *,
    workers: int = 1,
    cluster: str | None = None,
    on_error: OnError = "stop",
    restart: bool = False,
    progress: Progress | None = None,
    shard_structures: int = SHARD_STRUCTURES,
    shard_bytes: int = SHARD_BYTES,
) -> DatasetCard:
    """Make a store of source files.

    An ingestion that is broken off goes on when it is called again with the same arguments. With
    more than one worker, a script that calls this needs the usual ``if __name__ == "__main__":``
    around its own start.

    Args:
        format: a name in `lamm.data.readers.FORMATS`.
        sources: files, and folders whose files of that format are taken, in order of their names.
        to: folder of the new store.
        header: what is known of the data; it goes before what the format itself settles.
        workers: processes that read.
        cluster: address of a Dask scheduler whose workers read instead; they see the same paths.
        on_error: ``stop`` at a record that can't be used, or ``skip`` it and say so in the card.
        restart: throw away what a run that was broken off has left.
        progress: called now and then.
        shard_structures: most structures of a shard.
        shard_bytes: largest shard.

    Returns:
        The card of the store.

    Raises:
        ConfigError: an unknown format or option.
        DataError: a source is missing or damaged, a record can't be used, two records have one id.
        StoreError: there is something at `to` already, or the rest of another ingestion.
    """
    kind = known_format(format)
    header = complete_header(kind, header)
    reader_options(header, kind.options)
    paths = find_sources(sources, kind.suffixes, folders=kind.folders)
    names = distinct_names(paths)
    states = [_size_and_time(path) for path in paths]
    job = {
        "format": format,
        "sources": [
            [str(path.resolve()), *state] for path, state in zip(paths, states, strict=True)
        ],
        "card": header.model_dump(mode="json"),
        "shards": [shard_structures, shard_bytes],
        "version": [FORMAT_VERSION, PIECE, PART_RECORDS],
    }
    to = Path(to)
    refuse_existing(to)
    with staging(to, job, restart=restart) as stage:
        writer = StoreWriter(
            to,
            header,
            shard_structures=shard_structures,
            shard_bytes=shard_bytes,
            folder=stage.folder,
        )
        spool = Spool(stage.spool, stage.run)
        with writer, reading_pool(spool, workers, cluster) as pool:
            sizes = [size for size, _ in states]
            parts = list(split_into_parts(format, paths, names, sizes, header))
            _Ingestion(spool, parts, writer, progress).run(pool, header, on_error)
    return writer.card


def known_source(name: str) -> tuple[str, dict[str, Any]]:
    """Format and card entries of what `lamm data ingest` is asked to read.

    Args:
        name: a format, or a data set of the catalogue.

    Raises:
        ConfigError: it is neither.
    """
    if name in FORMATS:
        return name, {}
    catalogue = load_catalogue()
    if name not in catalogue:
        raise ConfigError(
            f"'{name}' is neither a format nor a data set of the catalogue. "
            f"{nearest_names(name, [*FORMATS, *catalogue])}\n"
            "  `lamm data formats` and `lamm data list` show them."
        )
    entry = catalogue[name]
    return entry.format, entry.header.model_dump(exclude_unset=True)


def known_format(name: str) -> Format:
    """A format by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown format '{name}'. {nearest_names(name, FORMATS)}")
    return FORMATS[name]


def complete_header(kind: Format, header: CardHeader) -> CardHeader:
    """The header with what the format settles itself, where the header says nothing."""
    return merged_header(kind.header, header)


def merged_header(below: Mapping[str, Any], header: CardHeader) -> CardHeader:
    """A header over the entries of a lesser one; `units`, `keys` and `reader` entry by entry."""
    written = header.model_dump(exclude_unset=True)
    values = {**below, **written}
    for nested in ("units", "keys", "reader"):
        if nested in below and nested in written:
            values[nested] = {**below[nested], **written[nested]}
    return CardHeader.model_validate(values)


def split_into_parts(
    format: str,
    paths: Sequence[Path],
    names: Sequence[str],
    sizes: Sequence[int],
    header: CardHeader,
) -> Iterator[Part]:
    """The parts of all sources, in their order; one depends on nothing but its source."""
    count = FORMATS[format].count
    total = sum(max(size, 1) for size in sizes)
    number = 0
    for path, name, size in zip(paths, names, sizes, strict=True):
        weight = max(size, 1) / total
        records = count(path, header) if count is not None else None
        if not records:
            yield Part(number, format, path, name, 0, records, weight, is_last=True)
            number += 1
            continue
        for start in range(0, records, PART_RECORDS):
            stop = min(start + PART_RECORDS, records)
            share = weight * (stop - start) / records
            yield Part(number, format, path, name, start, stop, share, is_last=stop == records)
            number += 1


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of change, to tell whether a source is still the same."""
    status = path.stat()
    if not path.is_dir():
        return status.st_size, status.st_mtime_ns
    inside = [inner.stat() for inner in path.rglob("*") if inner.is_file()]
    return sum(one.st_size for one in inside), max((one.st_mtime_ns for one in inside), default=0)


class _Ingestion:
    """Moves what the parts' readers leave in the spool into the store."""

    def __init__(
        self, spool: Spool, parts: list[Part], writer: StoreWriter, progress: Progress | None
    ) -> None:
        self.spool = spool
        self.parts = parts
        self.writer = writer
        self.progress = progress
        self.in_shards = writer.num_closed  # of an earlier run
        self.taken_up = 0
        self.so_far = IngestProgress(0, len({part.path for part in parts}), 0)
        self.parts_done = 0.0
        self.in_open_shard: deque[tuple[int, Piece]] = deque()

    def run(self, pool: Pool, header: CardHeader, on_error: OnError) -> None:
        """Read all parts and put their pieces into the store, in the order of the sources."""
        self.spool.claim()
        starts = self._starts()
        readers = []
        checksums: dict[Path, Callable[[], str]] = {}
        for part, start in zip(self.parts, starts, strict=True):
            readers.append(pool.read(part, start, header, on_error))
            if part.path not in checksums:
                checksums[part.path] = pool.call(source_sha256, part.path)
        for part, start, pieces in zip(self.parts, starts, readers, strict=True):
            for piece in self.spool.earlier(part.number, part.start):
                if start is None or piece.start < start:
                    self._take(part, piece)
            for piece in pieces:
                self._take(part, piece)
            self.parts_done += part.weight
            if part.is_last:
                self.writer.note_source(part.name, checksums[part.path]())
                self.so_far = self.so_far._replace(files_done=self.so_far.files_done + 1)
            self._tell(0.0)

    def _starts(self) -> list[int | None]:
        """Where reading begins in each part; None where all of it is in the spool.

        Raises:
            StoreError: closed shards have rows that the spool knows nothing of.
        """
        starts: list[int | None] = []
        rows = 0
        complete = True
        for part in self.parts:
            start: int | None = part.start
            for piece in self.spool.earlier(part.number, part.start):
                in_shards = complete and rows + piece.num_structures <= self.in_shards
                if not (in_shards or self._is_whole(piece)):
                    break
                rows += piece.num_structures if complete else 0
                start = None if piece.is_last else piece.next_record
            complete = complete and start is None
            starts.append(start)
        if rows < self.in_shards:
            raise StoreError(
                f"{self.writer.path}: what was ingested before is damaged: {self.in_shards} "
                f"structures in shards, of which the log knows {rows}.\n  Add --restart."
            )
        self.taken_up = rows
        return starts

    def _is_whole(self, piece: Piece) -> bool:
        try:
            rows = sum(int(batch.num_rows) for batch in self.spool.batches(piece))
        except (OSError, pa.ArrowInvalid):
            return False
        return rows == piece.num_structures

    def _take(self, part: Part, piece: Piece) -> None:
        """Put a piece into the store, but for the rows that closed shards have already."""
        before = self.so_far.structures
        known = min(max(self.in_shards - before, 0), piece.num_structures)
        if known < piece.num_structures:
            for batch in self.spool.batches(piece):
                if known < batch.num_rows:
                    self.writer.add_batch(batch.slice(known))
                known = max(known - batch.num_rows, 0)
        self.writer.note_keys(part.name, piece.keys_found, piece.keys_seen)
        for record in piece.skipped:
            self.writer.skip(*record)
        self.so_far = self.so_far._replace(
            structures=before + piece.num_structures,
            skipped=self.so_far.skipped + len(piece.skipped),
        )
        self._forget_closed(piece)
        if part.stop is None:
            self._tell((piece.fraction or 0.0) * part.weight)
        else:
            self._tell((piece.next_record - part.start) / (part.stop - part.start) * part.weight)

    def _forget_closed(self, piece: Piece) -> None:
        """Remove pieces from the spool as soon as all their rows are in closed shards."""
        self.in_open_shard.append((self.so_far.structures, piece))
        while self.in_open_shard and self.in_open_shard[0][0] <= self.writer.num_closed:
            self.spool.remove(self.in_open_shard.popleft()[1])

    def _tell(self, of_this_part: float) -> None:
        if self.progress is not None:
            self.progress(
                self.so_far._replace(
                    fraction=min(self.parts_done + of_this_part, 1.0),
                    taken_up=min(self.taken_up, self.so_far.structures),
                )
            )
