"""``lamm data list`` and ``lamm data download``: the data sets that LaMM knows, and their files."""

from __future__ import annotations

import logging
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lamm.cli import common
from lamm.cli.common import JsonFlag

if TYPE_CHECKING:
    from lamm.data.catalogue import Entry, SourceFile
    from lamm.data.download import Downloaded

logger = logging.getLogger(__name__)

_LOG_EVERY = 20.0
"""Seconds between two lines of progress of a file where there is no terminal."""


def list_command(
    name: Annotated[str | None, typer.Argument(help="Say all about this one.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the data sets that can be downloaded or ingested by name."""
    from lamm.data.catalogue import find, load_catalogue

    if name is not None:
        entry = find(name)
        if as_json:
            common.emit_json(_as_json(entry))
            return
        for line in _details(entry):
            common.say(line)
        return
    entries = list(load_catalogue().values())
    if as_json:
        common.emit_json({"datasets": [_as_json(entry) for entry in entries]})
        return
    table = [
        (
            "name",
            "domain",
            "task",
            "functional",
            "labels",
            "structures",
            "size",
            "licence",
            "parts",
        ),
        *map(_row, entries),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [
            text.rjust(width) if number in (5, 6) else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        common.say("  ".join(cells).rstrip())
    common.say("\n`lamm data list NAME` says more; `lamm data download NAME` brings the files.")


def _row(entry: Entry) -> tuple[str, ...]:
    """An entry as a line of the table."""
    header = entry.header
    labels = ", ".join(label[0].upper() for label in header.labels or ())
    texts = (
        entry.name,
        header.domain,
        header.task or "",
        header.functional,
        "N" if header.task == "denoising" else labels,
        f"{entry.structures:,}" if entry.structures else "",
        _total_size(entry),
        header.licence,
        _count_parts(entry),
    )
    return tuple(text or "-" for text in texts)


def _total_size(entry: Entry) -> str:
    from lamm.data.download import describe_bytes

    size = entry.about_bytes
    return describe_bytes(size) if size else ""


def _count_parts(entry: Entry) -> str:
    if entry.manual:
        return "by hand"
    if entry.listing:
        return "as listed"
    return f"{len(entry.parts):,}"


def _as_json(entry: Entry) -> dict[str, Any]:
    """An entry with its files; what the source doesn't publish is null."""
    value = entry.model_dump(mode="json", exclude={"header"})
    value["header"] = entry.header.model_dump(mode="json", exclude_unset=True)
    value["parts"] = len(entry.parts) if entry.blocks else list(entry.parts)
    value["about_bytes"] = entry.about_bytes
    for listed, file in zip(value["files"], entry.files, strict=True):
        listed["name"] = file.file_name
        listed["about_bytes"] = file.about_bytes
        listed["checksum_published"] = bool(file.md5 or file.sha256)
    return value


def _details(entry: Entry) -> Iterator[str]:
    """All that a person may want to know of an entry."""
    header = entry.header
    yield f"{entry.name}: {entry.title}"
    facts = {
        "domain": header.domain,
        "task": header.task,
        "functional": header.functional,
        "labels": ", ".join(header.labels or ()) or "none",
        "energy": header.energy_convention,
        "units": f"energy {header.units.energy}, length {header.units.length}",
        "structures": f"{entry.structures:,}" if entry.structures else None,
        "licence": header.licence,
        "homepage": entry.homepage,
    }
    for key, text in facts.items():
        if text:
            yield f"  {key + ':':12} {text}"
    for text in header.citation:
        yield f"  {'cite:':12} {text}"
    if entry.notes:
        yield textwrap.fill(
            entry.notes, 100, initial_indent=f"  {'note:':12} ", subsequent_indent=" " * 15
        )
    yield from _describe_files(entry)
    for text in entry.evidence:
        yield f"  {'from:':12} {text}"
    yield f"ingest as format '{entry.format}':"
    yield f"  lamm data ingest {entry.name} FILES... --to stores/{entry.name}"


def _describe_files(entry: Entry) -> Iterator[str]:
    """Where the files are, part by part."""
    if entry.manual:
        yield f"by hand: {entry.manual}"
        return
    if entry.listing:
        yield f"files: as listed at {entry.listing}"
        return
    if entry.choose:
        yield f"choose parts: {entry.choose}"
    if entry.blocks is not None:
        last = entry.blocks.count - 1
        yield f"parts 0 to {last} at most, of {entry.blocks.records:,} numbers each:"
        for number in (0, 1, last):
            yield f"  {number}: {entry.blocks.block(number).url}"
        yield "  no checksums are published"
        return
    yield "parts:"
    for file in entry.files:
        yield f"  {file.part}: {file.url}"
        yield f"    {_describe_file(file)}"


def _describe_file(file: SourceFile) -> str:
    from lamm.data.download import describe_bytes

    pieces = [
        f"{file.bytes:,} bytes"
        if file.bytes is not None
        else f"about {describe_bytes(file.size)}"
        if file.size is not None
        else "size unknown",
        f"unpacked about {describe_bytes(file.unpacked_size)}" if file.unpacked_size else "",
        f"{file.structures:,} structures" if file.structures else "",
        f"for {file.split}" if file.split else "",
        "goes with the data, is not ingested" if file.aside else "",
        f"sha256 {file.sha256}" if file.sha256 else "",
        f"md5 {file.md5}" if file.md5 else "",
        "" if file.md5 or file.sha256 else "no checksum is published",
    ]
    return "; ".join(piece for piece in pieces if piece)


def download_command(
    name: Annotated[str, typer.Argument(help="A data set of `lamm data list`.")],
    parts: Annotated[
        list[str] | None,
        typer.Option("--parts", help="Parts: names, patterns (val_*), or numbers (0-9)."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder of the files; data/NAME where left out.")
    ] = None,
    no_unpack: Annotated[bool, typer.Option("--no-unpack", help="Leave archives packed.")] = False,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep archives after unpacking.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, max=16, help="Files at a time.")] = 2,
    mirror: Annotated[
        str, typer.Option(help="Ask this address, such as https://mirror.org, for the same paths.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Download the files of a data set, check and unpack them.

    What is there already isn't fetched again; a download that broke off goes on.
    """
    from lamm.data.catalogue import find
    from lamm.data.download import download, ingest_command

    common.start_logging(quiet=as_json)
    entry = find(name)
    folder = to or Path("data") / name
    chosen = [word for text in parts or () for word in text.replace(",", " ").split()]
    try:
        with _progress(quiet=as_json) as watch:
            downloaded = download(
                entry,
                folder,
                chosen,
                unpack=not no_unpack,
                keep_archives=keep_archives,
                jobs=jobs,
                mirror=mirror,
                watch=watch,
            )
    except KeyboardInterrupt:
        logger.warning("stopped; what has arrived is kept in %s, the same command goes on", folder)
        raise
    command = ingest_command(entry, downloaded.sources)
    if as_json:
        common.emit_json(_report(entry, folder, downloaded, command))
        return
    for line in _summary(folder, downloaded):
        common.say(line)
    common.say(f"licence: {entry.header.licence}; cite: {'; '.join(entry.header.citation)}")
    common.say(f"next:\n  {command}")


def _report(entry: Entry, folder: Path, downloaded: Downloaded, command: str) -> dict[str, Any]:
    """What a download left, for a program."""
    files = [
        {
            "part": one.file.part,
            "name": one.file.file_name,
            "state": one.state,
            "bytes": one.record.bytes if one.record else None,
            "sha256": one.record.sha256 if one.record else None,
            "checked": one.record.checked if one.record else None,
            "product": one.record.product or None if one.record else None,
        }
        for one in downloaded.files
    ]
    return {
        "dataset": entry.name,
        "folder": folder,
        "files": files,
        "sources": [str(path) for path in downloaded.sources],
        "ingest": command,
    }


def _summary(folder: Path, downloaded: Downloaded) -> Iterator[str]:
    """What a download left, for a person."""
    from lamm.data.arrivals import RECORDS
    from lamm.data.download import describe_bytes

    states = [one.state for one in downloaded.files]
    size = sum(one.record.bytes for one in downloaded.files if one.record)
    counts = [
        f"{states.count('fetched')} downloaded",
        f"{states.count('there')} already there" if "there" in states else "",
        f"{states.count('missing')} not at the source" if "missing" in states else "",
    ]
    yield f"{', '.join(filter(None, counts))}, {describe_bytes(size)} -> {folder}"
    unchecked = sum(
        one.record is not None and one.record.checked == "none" for one in downloaded.files
    )
    if unchecked:
        yield (
            f"{unchecked} without a published checksum; {folder / RECORDS} has the sha256 of what "
            "came"
        )


class _Bars:
    """A bar for each file that is under way, and how many files are done."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.tasks: dict[str, tuple[str, TaskID]] = {}
        self.count = ""

    def show(self, name: str, stage: str, done: int, total: int | None) -> None:
        """Move the bar of a file; a new stage begins a new one, so that its rate is its own."""
        before, task = self.tasks.pop(name, ("", TaskID(0)))
        if before and before != stage:
            self.bar.remove_task(task)
        if stage == "done":
            self.count = f" ({done:,} of {total:,} files done)" if total != 1 else ""
            return
        if before != stage:
            task = self.bar.add_task("", total=total, completed=done)
        self.tasks[name] = (stage, task)
        self.bar.update(
            task, description=f"{stage} {name}{self.count}", completed=done, total=total
        )


class _Lines:
    """A log line now and then for each file."""

    def __init__(self) -> None:
        self.spoken: dict[str, float] = {}
        self.count = ""

    def show(self, name: str, stage: str, done: int, total: int | None) -> None:
        """Say how far a file is, if that is due."""
        now = time.monotonic()
        if stage == "done":
            self.spoken.pop(name, None)
            self.count = f"; {done:,} of {total:,} files done" if total != 1 else ""
        elif now - self.spoken.setdefault(name, now) > _LOG_EVERY:
            self.spoken[name] = now
            logger.info("%s %s: %s%s", stage, name, _describe_progress(done, total), self.count)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, str, int, int | None], None]]:
    """Bars on a terminal, else log lines."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _Lines().show
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bars(bar).show


def _describe_progress(done: int, total: int | None) -> str:
    from lamm.data.download import describe_bytes

    if not total:
        return describe_bytes(done)
    return f"{describe_bytes(done)} of {describe_bytes(total)} ({100 * done / total:.0f} %)"
