"""What reading leaves between the sources and the store: pieces of a part, and a log of them.

A *part* is a file, or a range of its records. Whoever reads a part leaves it in *pieces* of up to
`PIECE` records: encoded batches in a file, and then a line in the part's log that says what the
piece is. A piece in the log is whole; so reading can be broken off at any instant and go on behind
the last piece, and the store can take pieces up while the part is still being read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lamm.data.cards import CardHeader
from lamm.data.columns import accept_precision, edge_counter, encode
from lamm.data.readers import FORMATS, KeysFound, OnError, SkippedRecord
from lamm.data.readers.paths import source_split
from lamm.errors import DamagedFileError, DataError
from lamm.structure import Structure

PIECE = 1000
"""Records of a piece, but the last of a part, which has fewer."""
_BATCH = 250
_POLL_S = 0.05


class Part(NamedTuple):
    """A range of records of one source."""

    number: int
    format: str
    path: Path
    name: str
    """What ids and origins call the file."""
    start: int
    stop: int | None
    """Number of the first record that isn't part of it; None: to the end of the file."""
    weight: float
    """Share of all bytes of all sources."""
    is_last: bool
    """Whether no other part of the source comes after it."""


@dataclass(frozen=True)
class Piece:
    """Records `start` to before `next_record` of a source, as they are in the spool."""

    file: str
    """Name of the file with the batches; empty without a structure."""
    start: int
    next_record: int
    num_structures: int
    skipped: list[SkippedRecord]
    keys_found: dict[str, str]
    keys_seen: list[str]
    fraction: float | None
    """Share of the source that has been read, where that is known."""
    is_last: bool

    @classmethod
    def from_line(cls, line: str) -> Piece:
        """A piece from its line in the log."""
        values = json.loads(line)
        values["skipped"] = [SkippedRecord(*record) for record in values["skipped"]]
        return cls(**values)


class SupersededError(RuntimeError):
    """Another ingestion has taken over the spool."""


@dataclass(frozen=True)
class Spool:
    """The folder that pieces are in.

    Args:
        folder: where; reachable by every process that reads.
        run: counts the runs of this ingestion; an earlier run's process that is still alive stops
            when it notices the next.
    """

    folder: Path
    run: int

    def claim(self) -> None:
        """Make this the current run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run").write_text(str(self.run), encoding="utf-8")

    def release(self) -> None:
        """Tell whoever still reads into the spool to stop."""
        if self.folder.is_dir():
            (self.folder / "run").write_text("ended", encoding="utf-8")

    def check_claim(self) -> None:
        """Stop if there is a later run.

        Raises:
            SupersededError: there is one.
            DataError: the folder isn't there: on another machine, or removed.
        """
        try:
            current = (self.folder / "run").read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"{self.folder}: a reading process can't see this folder ({error.strerror}).\n"
                "  Sources and --to have to be at the same path on every machine of a cluster."
            ) from error
        if current != str(self.run):
            raise SupersededError(f"run {self.run} of {self.folder} was followed by {current}")

    def log(self, part: int) -> Path:
        """The log of a part in this run."""
        return self.folder / f"part-{part:06d}.run-{self.run}.jsonl"

    def batches(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """The batches of a piece.

        Raises:
            OSError: the file isn't there.
            pyarrow.ArrowInvalid: it is damaged.
        """
        if piece.file:
            with (
                pa.OSFile(str(self.folder / piece.file)) as file,
                pa.ipc.open_stream(file) as stream,
            ):
                yield from stream

    def remove(self, piece: Piece) -> None:
        """Remove the batches of a piece, which are in the store."""
        if piece.file:
            (self.folder / piece.file).unlink(missing_ok=True)

    def read(
        self, part: Part, start: int, header: CardHeader, on_error: OnError
    ) -> Iterator[Piece]:
        """Read a part from a record on, and leave it in pieces, giving each when it is in the log.

        Args:
            part: what to read.
            start: the first record that isn't in the spool yet.
            header: what is known of the data.
            on_error: what becomes of a record that can't be used.

        Raises:
            DataError: a record can't be used, or the source can't be read.
        """
        found = KeysFound()
        records = FORMATS[part.format].read(
            part.path,
            header,
            on_error=on_error,
            name=part.name,
            found=found,
            start=start,
            stop=part.stop,
        )
        encoder = Encoder(header)
        split = source_split(part.path, header.split)
        with self.log(part.number).open("a", encoding="utf-8") as log:
            is_last = False
            while not is_last:
                taken = _take(records, part, start, on_error)
                if split is not None:
                    taken = [with_split(record, split) for record in taken]
                is_last = len(taken) < PIECE
                self.check_claim()
                piece = self._write(part, start, taken, found, encoder, on_error, is_last)
                log.write(json.dumps(asdict(piece), ensure_ascii=False) + "\n")
                log.flush()
                yield piece
                start = piece.next_record

    def _write(
        self,
        part: Part,
        start: int,
        records: list[Structure | SkippedRecord],
        found: KeysFound,
        encoder: Encoder,
        on_error: OnError,
        is_last: bool,
    ) -> Piece:
        structures, skipped = sort_out(records, encoder.header, on_error)
        file = f"part-{part.number:06d}.run-{self.run}.{start}.arrow" if structures else ""
        with ExitStack() as stack:
            stream: pa.RecordBatchStreamWriter | None = None
            for batch in encoder.batches(structures):
                if stream is None:
                    sink = stack.enter_context(pa.OSFile(str(self.folder / file), "wb"))
                    stream = stack.enter_context(pa.ipc.new_stream(sink, batch.schema))
                stream.write_batch(batch)
        return Piece(
            file=file,
            start=start,
            next_record=start + len(records),
            num_structures=len(structures),
            skipped=skipped,
            keys_found=dict(found.names),
            keys_seen=list(found.seen),
            fraction=found.fraction,
            is_last=is_last,
        )

    def earlier(self, part: int, start: int) -> list[Piece]:
        """Pieces of a part that earlier runs left, one behind the other from its first record."""
        pieces: dict[int, Piece] = {}
        for run in range(self.run):
            log = Spool(self.folder, run).log(part)
            if log.exists():
                pieces |= {piece.start: piece for piece in _whole_lines(log.read_bytes())}
        chain: list[Piece] = []
        while start in pieces and not (chain and chain[-1].is_last):
            chain.append(pieces[start])
            start = chain[-1].next_record
        return chain

    def follow(self, part: int, is_done: Callable[[], bool]) -> Iterator[Piece]:
        """The pieces that another process leaves of a part, as they come.

        Args:
            part: its number.
            is_done: says that the process is done with it; raises what it has failed with.
        """
        log, position = self.log(part), 0
        while True:
            done = is_done()
            content = b""
            if log.exists():
                with log.open("rb") as file:
                    file.seek(position)
                    content = file.read()
            content = content[: content.rfind(b"\n") + 1]
            position += len(content)
            for piece in _whole_lines(content):
                yield piece
                if piece.is_last:
                    return
            if done:
                return
            time.sleep(_POLL_S)


def _take(
    records: Iterator[Structure | SkippedRecord], part: Part, start: int, on_error: OnError
) -> list[Structure | SkippedRecord]:
    """The next records of a piece; where others are skipped, so is the rest of a damaged file."""
    taken: list[Structure | SkippedRecord] = []
    try:
        for record in islice(records, PIECE):
            taken.append(record)
    except DamagedFileError as error:
        if on_error == "stop":
            raise
        rest = f"{part.name}:{start + len(taken)} and all that follows"
        taken.append(SkippedRecord(rest, str(error)))
    return taken


def _whole_lines(content: bytes) -> Iterator[Piece]:
    """Pieces of a log, up to a line that was cut short."""
    for line in content.split(b"\n")[:-1]:
        try:
            yield Piece.from_line(line.decode())
        except (ValueError, TypeError):
            return


def with_split(record: Structure | SkippedRecord, split: str) -> Structure | SkippedRecord:
    """The record with a split, where it hasn't got one."""
    if isinstance(record, SkippedRecord) or record.split is not None:
        return record
    return replace(record, split=split)


class Encoder:
    """Structures to batches, all in the precision of the first.

    Args:
        header: may settle the precision, and says which edges are counted.
    """

    def __init__(self, header: CardHeader) -> None:
        self.header = header
        self._count_edges = edge_counter(header)
        self._dtype: str | None = header.position_dtype
        self._last: np.dtype[Any] | None = None

    def batches(self, structures: list[Structure]) -> Iterator[pa.RecordBatch]:
        """Batches of the structures, in their order."""
        for first in range(0, len(structures), _BATCH):
            batch = structures[first : first + _BATCH]
            for one in batch:
                if one.positions.dtype is not self._last:
                    self._last = one.positions.dtype
                    self._dtype = accept_precision(
                        self._dtype, self.header, self._last.name, one.origin
                    )
            yield encode(batch, self._dtype or "float64", self._count_edges)


def sort_out(
    records: Iterable[Structure | SkippedRecord], header: CardHeader, on_error: OnError
) -> tuple[list[Structure], list[SkippedRecord]]:
    """The structures that fit the card, and the records that don't, with the reason.

    Raises:
        DataError: a structure is periodic or not, against the card, and isn't to be skipped.
    """
    structures: list[Structure] = []
    skipped: list[SkippedRecord] = []
    for record in records:
        if isinstance(record, SkippedRecord):
            skipped.append(record)
        elif header.max_atoms is not None and record.num_atoms > header.max_atoms:
            reason = f"{record.num_atoms} atoms, more than max_atoms {header.max_atoms}"
            skipped.append(SkippedRecord(record.origin, reason))
        elif header.periodic is not None and bool(record.pbc.any()) != header.periodic:
            reason = (
                f"pbc is {record.pbc.tolist()}, and the card says `periodic: "
                f"{str(header.periodic).lower()}`. Mend the record, or leave `periodic` out."
            )
            if on_error == "stop":
                raise DataError(f"{record.origin}: {reason}")
            skipped.append(SkippedRecord(record.origin, reason))
        else:
            structures.append(record)
    return structures, skipped
