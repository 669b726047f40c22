"""From source files to a store: read, check, convert, count; on several processes.

Each file is read by one process, which leaves encoded batches in a spool beside the new store; the
batches go into the store in the order of the files. So the store is the same, byte for byte, for
any number of processes, and no more than a batch of each is in memory.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pyarrow as pa

from lamm.data.cards import CardHeader, DatasetCard
from lamm.data.columns import accept_precision, edge_counter, encode
from lamm.data.readers import FORMATS, KeysFound, OnError, SkippedRecord
from lamm.data.writer import SHARD_BYTES, SHARD_STRUCTURES, StoreWriter, file_sha256
from lamm.errors import ConfigError, DataError, nearest_names
from lamm.structure import Structure

_BATCH = 256


class IngestProgress(NamedTuple):
    """How far an ingestion is."""

    files_done: int
    files: int
    structures: int


Progress: TypeAlias = Callable[[IngestProgress], None]


@dataclass(frozen=True)
class _Source:
    """A file, and what its records are called."""

    path: Path
    name: str
    spool: Path


@dataclass
class _Spooled:
    """What a process found in a file, beside the structures in the spool."""

    sha256: str = ""
    keys_found: dict[str, str] = field(default_factory=dict)
    skipped: list[SkippedRecord] = field(default_factory=list)
    num_structures: int = 0


def ingest(
    format: str,
    sources: Sequence[str | Path],
    to: str | Path,
    header: CardHeader,
    *,
    workers: int = 1,
    on_error: OnError = "stop",
    progress: Progress | None = None,
    shard_structures: int = SHARD_STRUCTURES,
    shard_bytes: int = SHARD_BYTES,
) -> DatasetCard:
    """Make a store of source files.

    With more than one worker, a script that calls this needs the usual ``if __name__ ==
    "__main__":`` around its own start.

    Args:
        format: a name in `lamm.data.readers.FORMATS`.
        sources: files, and folders whose files of that format are taken, in order of their names.
        to: folder of the new store.
        header: what is known of the data.
        workers: processes that read.
        on_error: ``stop`` at a record that can't be used, or ``skip`` it and say so in the card.
        progress: called now and then.
        shard_structures: most structures of a shard.
        shard_bytes: largest shard.

    Returns:
        The card of the store.

    Raises:
        ConfigError: an unknown format.
        DataError: a source is missing or damaged, a record can't be used, two records have one id.
        StoreError: there is something at `to` already.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format '{format}'. {nearest_names(format, FORMATS)}")
    paths = find_sources(sources, FORMATS[format].suffixes)
    writer = StoreWriter(to, header, shard_structures=shard_structures, shard_bytes=shard_bytes)
    with writer:
        jobs = [
            _Source(path, name, writer.folder / f"spool-{number}")
            for number, (path, name) in enumerate(zip(paths, distinct_names(paths), strict=True))
        ]
        so_far = IngestProgress(0, len(jobs), 0)

        def tick(structures: int = 0, files: int = 0) -> None:
            nonlocal so_far
            so_far = IngestProgress(
                so_far.files_done + files, so_far.files, so_far.structures + structures
            )
            if progress is not None:
                progress(so_far)

        results = _read_all(format, jobs, header, workers, on_error, tick)
        for job, spooled in zip(jobs, results, strict=True):
            _take(writer, job, spooled)
            tick(files=1)
    return writer.card


def _take(writer: StoreWriter, job: _Source, spooled: _Spooled) -> None:
    """Move what was found in a file into the store."""
    if spooled.num_structures:
        with pa.OSFile(str(job.spool)) as file, pa.ipc.open_stream(file) as batches:
            for batch in batches:
                writer.add_batch(batch)
        job.spool.unlink()
    writer.note_source(job.name, spooled.sha256, spooled.keys_found)
    for record in spooled.skipped:
        writer.skip(*record)


def find_sources(sources: Sequence[str | Path], suffixes: Sequence[str]) -> list[Path]:
    """The files that a list of files and folders means.

    Raises:
        DataError: one is missing or is given twice, or a folder has no file of the format.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(
                path
                for path in source.rglob("*")
                if path.is_file() and path.name.lower().endswith(tuple(suffixes))
            )
            if not inside:
                raise DataError(
                    f"{source}: no file in this folder ends in {', '.join(suffixes)}.\n"
                    "  Name the files themselves, or another format."
                )
            paths += inside
        elif source.exists():
            paths.append(source)
        else:
            raise DataError(f"{source}: no such file or folder. Check the path.")
    if not paths:
        raise DataError("no source file was named.")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{path}: the file is named twice among the sources.")
        seen.add(path.resolve())
    return paths


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own, with as many folders before it as tell it from the others.

    Ids of records without a name are made of it, so it shouldn't change when files are added.
    """
    parts = [path.resolve().parts for path in paths]
    names = []
    for mine in parts:
        length = 1
        rivals = [other for other in parts if other is not mine and other[-1] == mine[-1]]
        while any(other[-length:] == mine[-length:] for other in rivals):
            length += 1
        names.append("/".join(mine[-length:]))
    return names


def _read_all(
    format: str,
    jobs: Sequence[_Source],
    header: CardHeader,
    workers: int,
    on_error: OnError,
    tick: Callable[[int], None],
) -> Iterator[_Spooled]:
    """Read every file into its spool; the results come in the order of the files."""
    if workers <= 1 or len(jobs) == 1:
        for job in jobs:
            yield _read_one(format, job, header, on_error, tick)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context)
    try:
        futures = [pool.submit(_read_one, format, job, header, on_error) for job in jobs]
        for future in futures:
            spooled = future.result()
            tick(spooled.num_structures)
            yield spooled
    finally:
        pool.shutdown(cancel_futures=True)


def _read_one(
    format: str,
    job: _Source,
    header: CardHeader,
    on_error: OnError,
    tick: Callable[[int], None] | None = None,
) -> _Spooled:
    """Read one file into its spool; what a worker process does."""
    spooled, found = _Spooled(), KeysFound()
    records = FORMATS[format].read(job.path, header, on_error=on_error, name=job.name, found=found)
    structures = _accepted(records, header, on_error, spooled)
    with ExitStack() as stack:
        spool: pa.RecordBatchStreamWriter | None = None
        for batch in _encoded(structures, header):
            if spool is None:
                file = stack.enter_context(pa.OSFile(str(job.spool), "wb"))
                spool = stack.enter_context(pa.ipc.new_stream(file, batch.schema))
            spool.write_batch(batch)
            spooled.num_structures += batch.num_rows
            if tick is not None:
                tick(batch.num_rows)
    spooled.sha256 = file_sha256(job.path)
    spooled.keys_found = found.names
    return spooled


def _accepted(
    records: Iterable[Structure | SkippedRecord],
    header: CardHeader,
    on_error: OnError,
    spooled: _Spooled,
) -> Iterator[Structure]:
    """The structures that fit the card; the others are put down as skipped."""
    for record in records:
        if isinstance(record, SkippedRecord):
            spooled.skipped.append(record)
            continue
        largest = header.max_atoms
        if largest is not None and record.num_atoms > largest:
            reason = f"{record.num_atoms} atoms, more than max_atoms {largest}"
            spooled.skipped.append(SkippedRecord(record.origin, reason))
            continue
        periodic = bool(record.pbc.any())
        if header.periodic is not None and periodic != header.periodic:
            reason = (
                f"pbc is {record.pbc.tolist()}, and the card says `periodic: "
                f"{str(header.periodic).lower()}`. Mend the record, or leave `periodic` out."
            )
            if on_error == "stop":
                raise DataError(f"{record.origin}: {reason}")
            spooled.skipped.append(SkippedRecord(record.origin, reason))
            continue
        yield record


def _encoded(structures: Iterator[Structure], header: CardHeader) -> Iterator[pa.RecordBatch]:
    """The structures in batches of columns, all in the precision of the first."""
    count_edges = edge_counter(header)
    dtype: str | None = header.position_dtype
    while batch := list(islice(structures, _BATCH)):
        for one in batch:
            dtype = accept_precision(dtype, header, one.positions.dtype.name, one.origin)
        yield encode(batch, dtype or "float64", count_edges)
