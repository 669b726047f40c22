"""Bring a data set of the catalogue into a folder: fetched, checked, unpacked, ready to ingest.

A line of ``downloaded.jsonl`` beside the files says of each what arrived (size, checksum, whether
it was unpacked), so that nothing is fetched twice and a later download can be compared where the
source publishes no checksum.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shlex
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from lamm.data.arrivals import Record, Records
from lamm.data.catalogue import FOLDERS, Entry, SourceFile, Unpack
from lamm.data.fetch import (
    PATIENT,
    DownloadError,
    NotThereError,
    Patience,
    Stop,
    StoppedError,
    fetch,
    finish,
    forget,
    part_path,
)
from lamm.data.unpack import unpack
from lamm.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_CHUNK: Final = 1 << 20
_MANY: Final = 12
"""Sources that the next command names one by one; more are named by their folder."""

Stage: TypeAlias = Literal["fetching", "checking", "unpacking", "done"]
Watch: TypeAlias = Callable[[str, Stage, int, int | None], None]
"""Is told the file, what is done with it, and how many bytes are done, of how many; at ``done``,
how many files are done, of how many."""


class Arrived(NamedTuple):
    """A file of the data set after the download."""

    file: SourceFile
    state: Literal["fetched", "there", "missing"]
    record: Record | None


class Downloaded(NamedTuple):
    """What a download left in its folder."""

    files: tuple[Arrived, ...]
    sources: tuple[Path, ...]
    """What to give to the ingestion."""


@dataclass(frozen=True)
class _Job:
    """What holds for every file of a download."""

    folder: Path
    records: Records
    unpack: bool
    keep_archives: bool
    mirror: str
    patience: Patience
    stop: Stop
    watch: Watch


def download(
    entry: Entry,
    to: Path,
    parts: Sequence[str] = (),
    *,
    unpack: bool = True,
    keep_archives: bool = False,
    jobs: int = 2,
    mirror: str = "",
    patience: Patience = PATIENT,
    watch: Watch = lambda name, stage, done, total: None,
) -> Downloaded:
    """Bring the files of a data set, or of some of its parts.

    Args:
        entry: the data set.
        to: folder of its files; what is there already and whole is not fetched again.
        parts: names, patterns or numbers of parts; all where left out.
        unpack: whether archives are unpacked.
        keep_archives: whether archives stay after they were unpacked.
        jobs: files that are brought side by side.
        mirror: address to ask instead of the source's host; the rest of each address stays.
        patience: for how long faults of the network are met with another attempt.
        watch: is told how far each file is; called from several threads.

    Raises:
        ConfigError: an unknown part, or one must be chosen.
        DataError: a file can't be had, is damaged, or can't be unpacked; the disk is too small.
    """
    if entry.listing:
        _make_folder(to)
        listed = _listed_files(entry, to, mirror, patience)
        entry = entry.model_copy(update={"listing": "", "files": listed})
    files = entry.choose_files(parts)
    _make_folder(to)
    records = Records(to)
    todo = [file for file in files if not _done(file, to, records, unpack)]
    _check_space(todo, to, unpack=unpack, keep_archives=keep_archives, jobs=jobs)
    stop = Stop()
    # `time.sleep` would go on where the others have ended; a caller's own is the caller's.
    waiting = replace(patience, sleep=stop.sleep) if patience.sleep is time.sleep else patience
    job = _Job(to, records, unpack, keep_archives, mirror, waiting, stop, watch)
    arrived = tuple(_side_by_side(job, files, jobs))
    if all(one.state == "missing" for one in arrived):
        raise DownloadError(f"{entry.name}: the source has none of these parts.")
    return Downloaded(arrived, tuple(_sources(to, arrived, unpack)))


def _listed_files(
    entry: Entry, folder: Path, mirror: str, patience: Patience
) -> tuple[SourceFile, ...]:
    """The files of a figshare record, with the sizes and checksums that figshare computed."""
    path = folder / ".listing.json"
    try:
        fetch(_mirrored(entry.listing, mirror), path, patience=patience)
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))["files"]
            return tuple(
                SourceFile(
                    part=one["name"],
                    url=one["download_url"],
                    name=one["name"],
                    bytes=one["size"],
                    md5=one["computed_md5"] or None,
                    unpack=_kind_of(one["name"]),
                )
                for one in listed
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DownloadError(
                f"{entry.listing}: found something else, expected figshare's list of files "
                f"({type(error).__name__}: {error}).\n  Get the files by hand: {entry.homepage}"
            ) from error
    finally:
        forget(path)


def _kind_of(name: str) -> Unpack:
    """How a file is packed, by its name."""
    for ending in (*FOLDERS, "xz", "gz"):
        if name.endswith(f".{ending}"):
            return ending
    return "tar.gz" if name.endswith(".tgz") else "none"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be made: {error.strerror}.") from error


def _side_by_side(job: _Job, files: Sequence[SourceFile], jobs: int) -> Iterator[Arrived]:
    """Bring several files at a time; the first fault ends them all."""
    finished = itertools.count(1)

    def bring(file: SourceFile) -> Arrived:
        arrived = _bring(job, file)
        job.watch(file.file_name, "done", next(finished), len(files))
        return arrived

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [pool.submit(bring, file) for file in files]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            faults = [fault for one in done if (fault := one.exception()) is not None]
        finally:
            # Also where the user breaks in: what is under way ends at its next chunk.
            job.stop.set()
            pool.shutdown(cancel_futures=True)
    for fault in faults:
        if not isinstance(fault, StoppedError):
            raise fault
    for future in futures:
        yield future.result()


def _done(file: SourceFile, folder: Path, records: Records, unpack: bool) -> bool:
    """Whether nothing is left to do: the file is there and known, or what it was unpacked to is."""
    record = records.get(file.file_name)
    if record is None or record.url != file.url:
        return False
    if unpack and file.unpack != "none":
        return bool(record.product) and (folder / record.product).exists()
    return _size(folder / file.file_name) == record.bytes


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _bring(job: _Job, file: SourceFile) -> Arrived:
    """Fetch, check and unpack one file, each only where it isn't done."""
    job.stop.check()
    if _done(file, job.folder, job.records, job.unpack):
        return Arrived(file, "there", job.records.get(file.file_name))
    target = job.folder / file.file_name
    record = job.records.get(file.file_name)
    state: Literal["fetched", "there"] = "there"
    if not target.exists():
        try:
            record = _fetch_checked(job, file, target)
        except NotThereError:
            if not file.optional:
                raise
            logger.warning("%s: the source has no such file; left out", file.url)
            return Arrived(file, "missing", None)
        state = "fetched"
    elif record is None or record.url != file.url or _size(target) != record.bytes:
        record = _check_given(job, file, target)
    if job.unpack and file.unpack != "none":
        record = _unpack(job, file, target, record)
    return Arrived(file, state, record)


def _fetch_checked(job: _Job, file: SourceFile, target: Path) -> Record:
    """Fetch a file until its checksum is right, from zero for the second time."""
    part = part_path(target)
    url = _mirrored(file.url, job.mirror)

    def tell(done: int, total: int | None) -> None:
        job.stop.check()
        job.watch(file.file_name, "fetching", done, total or file.about_bytes)

    fault = ""
    for _ in range(2):
        fetch(url, part, size=file.bytes, patience=job.patience, tell=tell)
        record, fault = _check(job, file, part)
        if not fault:
            finish(part, target)
            job.records.add(record)
            return record
        logger.warning("%s: damaged (%s); fetched once more from its first byte", url, fault)
        forget(part)
    raise DownloadError(
        f"{url}: damaged twice: {fault}.\n  The source may have a new version, or something on the "
        "way changes the file. Nothing of it was kept."
    )


def _check_given(job: _Job, file: SourceFile, target: Path) -> Record:
    """Take a file that was there before, if it is the right one."""
    record, fault = _check(job, file, target)
    if fault:
        raise DataError(
            f"{target}: this file was there, and is not the one that belongs here: {fault}.\n"
            "  Move it away, or delete it to have it downloaded."
        )
    job.records.add(record)
    return record


def _check(job: _Job, file: SourceFile, path: Path) -> tuple[Record, str]:
    """The record of a file, and what is wrong with it, if anything is."""
    size = path.stat().st_size
    found = _digests(job, file, path, ("sha256", "md5") if file.md5 else ("sha256",))
    checked = "none"
    fault = ""
    if file.bytes is not None and size != file.bytes:
        fault = f"{size:,} bytes, expected {file.bytes:,}"
    for kind, expected in (("sha256", file.sha256), ("md5", file.md5)):
        if expected is None:
            continue
        checked = kind
        if not fault and found[kind] != expected:
            fault = f"{kind} is {found[kind]}, expected {expected}"
    before = job.records.get(file.file_name)
    known = before is not None and before.url == file.url and checked == "none" and not fault
    # The source publishes no checksum: what came the first time is what is expected.
    if known and before is not None and before.sha256 != found["sha256"]:
        fault = (
            f"sha256 is {found['sha256']}, expected {before.sha256} as downloaded on "
            f"{before.when} ({job.records.path} says so; delete its line to take the new file)"
        )
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(file.file_name, file.url, size, found["sha256"], checked, when), fault


def _digests(job: _Job, file: SourceFile, path: Path, kinds: Iterable[str]) -> dict[str, str]:
    """Checksums of a file, in one pass."""
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    total, done = path.stat().st_size, 0
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            job.stop.check()
            for digest in digests.values():
                digest.update(chunk)
            done += len(chunk)
            job.watch(file.file_name, "checking", done, total)
    return {kind: digest.hexdigest() for kind, digest in digests.items()}


def _unpack(job: _Job, file: SourceFile, archive: Path, record: Record) -> Record:
    """Unpack an archive, write that down, and delete it unless it is to be kept."""
    total = archive.stat().st_size

    def tell(done: int) -> None:
        job.stop.check()
        job.watch(file.file_name, "unpacking", done, total)

    tell(0)
    unpack(archive, file.unpack, job.folder / file.product, tell)
    record = replace(record, product=file.product)
    job.records.add(record)
    if not job.keep_archives:
        archive.unlink()
    return record


def _mirrored(url: str, mirror: str) -> str:
    """The same file on another host."""
    if not mirror:
        return url
    pieces = urllib.parse.urlsplit(url)
    return mirror.rstrip("/") + pieces.path + (f"?{pieces.query}" if pieces.query else "")


def _check_space(
    files: Sequence[SourceFile], folder: Path, *, unpack: bool, keep_archives: bool, jobs: int
) -> None:
    """Refuse a download that the disk can't hold, as far as sizes are known.

    Raises:
        DataError: there is too little space.
    """
    missing, archives, products = 0, [], 0
    for file in files:
        size = file.about_bytes or 0
        have = _size(folder / file.file_name) or _size(part_path(folder / file.file_name)) or 0
        if unpack and file.unpack != "none":
            archives.append(max(0, size - have))
            products += file.unpacked_size or size
        else:
            missing += max(0, size - have)
    archives.sort(reverse=True)
    # Archives that are deleted after their turn need space only a few at a time.
    needed = missing + products + sum(archives if keep_archives else archives[:jobs])
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {describe_bytes(free)} are free, expected about {describe_bytes(needed)} "
            "for the download and what is unpacked.\n"
            "  Choose another folder with --to, or fewer parts with --parts."
        )


def describe_bytes(count: int) -> str:
    """A size for a person, in powers of 1024."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def _sources(folder: Path, arrived: Sequence[Arrived], unpacked: bool) -> Iterator[Path]:
    """Files and folders that the ingestion is to be given; one folder where they are many."""
    found: list[Path] = []
    for file in (one.file for one in arrived if one.state != "missing"):
        if file.aside:
            continue
        product = folder / (file.product if unpacked else file.file_name)
        if unpacked and file.ingest and file.unpack in FOLDERS:
            matching = sorted({path for pattern in file.ingest for path in product.glob(pattern)})
            if not matching:
                logger.warning("%s: nothing in it matches %s", product, ", ".join(file.ingest))
            found += matching or [product]
        else:
            found.append(product)
    yield from found if len(found) <= _MANY else [folder]


def ingest_command(entry: Entry, sources: Sequence[Path]) -> str:
    """The command that makes a store of what was downloaded."""
    words = ["lamm", "data", "ingest", entry.name, *map(str, sources)]
    return shlex.join([*words, "--to", f"stores/{entry.name}"])
