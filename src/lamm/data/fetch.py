"""Bring one file over HTTP: go on where it broke off, and never glue two versions together.

What has arrived lies in ``NAME.part``, and what the server said of the file (size, ETag, date)
in ``NAME.part.json``; a later run, or the next attempt of this one, asks for the rest of just that
version.
"""

from __future__ import annotations

import errno
import fcntl
import http.client
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from email.message import Message
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from lamm.data.http_request import (
    BeyondEndError,
    FinalError,
    PassingError,
    Version,
    first_byte,
    opened,
    version_of,
)
from lamm.errors import DataError
from lamm.files import sync, write_text

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18

Tell: TypeAlias = Callable[[int, int | None], None]
"""Is told how many bytes are there, and of how many; raises to stop the work."""


class DownloadError(DataError):
    """A file that can't be had, now or at all."""


class NotThereError(DownloadError):
    """The server has no such file."""


@dataclass(frozen=True)
class Patience:
    """How long a download goes on."""

    attempts: int = 8
    """In a row that bring nothing; one that brings bytes begins the count anew."""
    first_wait: float = 1.0
    """Seconds, doubled at every further attempt."""
    longest_wait: float = 60.0
    longest_asked_wait: float = 900.0
    """What a server may ask for at most; asked for more, the download ends."""
    timeout: float = 30.0
    """Seconds without a byte."""
    sleep: Callable[[float], None] = time.sleep


PATIENT: Final = Patience()


def part_path(target: Path) -> Path:
    """Where a file is while it isn't whole."""
    return target.with_name(f"{target.name}.part")


def _version_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def forget(part: Path) -> None:
    """Remove what has arrived."""
    part.unlink(missing_ok=True)
    _version_path(part).unlink(missing_ok=True)


def finish(part: Path, target: Path) -> None:
    """Give a whole file its name."""
    sync(part)
    part.replace(target)
    _version_path(part).unlink(missing_ok=True)
    sync(target.parent)


def fetch(
    url: str,
    part: Path,
    *,
    size: int | None = None,
    patience: Patience = PATIENT,
    tell: Tell = lambda done, total: None,
) -> None:
    """Bring a file to `part`, or what is missing of it.

    Args:
        url: its address, http or https.
        part: where it goes; what an earlier attempt left there is continued.
        size: its exact size in bytes, where that is known beforehand.
        patience: for how long a fault is met with another attempt.
        tell: is told about every chunk.

    Raises:
        DownloadError: the server refuses, sends something else, or gives up for good; the disk is
            full; another process is at it. What has arrived stays for a later run.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    with _alone(part) as file:
        fruitless = 0
        furthest = file.seek(0, os.SEEK_END)
        while True:
            try:
                _attempt(url, part, file, size, patience.timeout, tell)
                return
            except PassingError as fault:
                have = file.seek(0, os.SEEK_END)
                fruitless = 0 if have > furthest else fruitless + 1
                furthest = max(furthest, have)
                _wait_or_give_up(url, part, fault, fruitless, patience)
            except FinalError as fault:
                message = _failure(url, part, str(fault))
                raise NotThereError(message) if fault.missing else DownloadError(message) from fault


def _wait_or_give_up(
    url: str, part: Path, fault: PassingError, fruitless: int, patience: Patience
) -> None:
    """Wait for the next attempt.

    Raises:
        DownloadError: there were too many, or the server asks for too long a wait.
    """
    if fruitless >= patience.attempts:
        raise DownloadError(_failure(url, part, f"{fault}, {fruitless} times in a row"))
    if fault.wait > patience.longest_asked_wait:
        what = f"{fault} and asks to come back in {fault.wait:.0f} s"
        raise DownloadError(_failure(url, part, what))
    wait = max(
        fault.wait, min(patience.first_wait * 2 ** max(0, fruitless - 1), patience.longest_wait)
    )
    logger.info("%s: %s; next attempt in %.0f s", url, fault, wait)
    patience.sleep(wait)


def _failure(url: str, part: Path, what: str) -> str:
    """Why a download ends, and what becomes of its beginning."""
    have = part.stat().st_size if part.exists() else 0
    kept = f"{have:,} bytes are kept in {part}; the same command goes on from there."
    return f"{url}: {what}.\n  " + (kept if have else "Nothing has arrived yet.")


@contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """Open the partial file, for one process at a time."""
    try:
        file = part.open("ab")
    except OSError as error:
        raise DownloadError(f"{part}: can't be written: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"{part}: another process is downloading this file. Wait for it."
            ) from None
        except OSError as error:
            # Some network file systems have no locks: then nobody is kept out.
            logger.debug("%s: no lock (%s)", part, error)
        yield file


def _attempt(
    url: str, part: Path, file: BinaryIO, size: int | None, timeout: float, tell: Tell
) -> None:
    """Ask once for what is missing, and write it.

    Raises:
        PassingError: not all arrived.
        FinalError: there is no use in another attempt.
    """
    have = file.seek(0, os.SEEK_END)
    known = _read_version(part, url)
    if have and known is None:
        # Whose bytes these are, nobody can say.
        have = _restart(part, file)
    if have and known and known.size == have:
        tell(have, have)
        return
    try:
        with opened(url, have, known, timeout) as answer:
            version = version_of(url, answer)
            _refuse_other(version, size, answer.headers)
            if have and not _goes_on(answer, have, known, version):
                logger.info("%s: begins anew: the source can't go on, or its file changed", url)
                have = _restart(part, file)
                if answer.status == 206:
                    raise PassingError("the file changed at the source")
            if not have:
                _write_version(part, version)
            _copy(answer, part, file, have, version, tell)
    except BeyondEndError:
        _restart(part, file)
        raise


def _goes_on(
    answer: http.client.HTTPResponse, have: int, known: Version | None, version: Version
) -> bool:
    """Whether an answer is the rest of what has arrived."""
    begins = first_byte(answer.headers) if answer.status == 206 else 0
    return begins == have and known is not None and known.same_as(version)


def _restart(part: Path, file: BinaryIO) -> int:
    """Forget what has arrived; there are 0 bytes then."""
    _version_path(part).unlink(missing_ok=True)
    file.truncate(0)
    return 0


def _read_version(part: Path, url: str) -> Version | None:
    """What was said of the file when its first byte came; None where that is lost."""
    with suppress(OSError, ValueError, TypeError):
        version = Version(**json.loads(_version_path(part).read_text(encoding="utf-8")))
        return version if version.url == url else None
    return None


def _write_version(part: Path, version: Version) -> None:
    write_text(_version_path(part), json.dumps(asdict(version)) + "\n")


def _refuse_other(version: Version, size: int | None, headers: Message) -> None:
    """Refuse an answer that is no file of that size, such as a page to log in at.

    Raises:
        FinalError: it is another file, or none.
    """
    if headers.get_content_type() == "text/html":
        raise FinalError("the server sends a web page, expected the file")
    if size is not None and version.size is not None and version.size != size:
        raise FinalError(
            f"the file at the source has {version.size:,} bytes, expected {size:,}: another "
            "version than the catalogue knows"
        )


def _copy(
    answer: http.client.HTTPResponse,
    part: Path,
    file: BinaryIO,
    have: int,
    version: Version,
    tell: Tell,
) -> None:
    """Write what the server sends to the end of the file.

    Raises:
        PassingError: the connection broke, or ended before the whole was there.
    """
    total = version.size
    tell(have, total)
    while total is None or have < total:
        try:
            # What one read of the socket gives: a whole chunk would be lost where the line breaks.
            chunk = answer.read1(_CHUNK if total is None else min(_CHUNK, total - have))
        except (http.client.HTTPException, OSError) as error:
            raise PassingError(
                f"the connection broke after {have:,} bytes ({error or type(error).__name__})"
            ) from error
        if not chunk:
            break
        try:
            file.write(chunk)
            # Bytes that have come must outlive a kill; a buffer of the process does not.
            file.flush()
        except OSError as error:
            what = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror)
            raise FinalError(f"can't write: {what}") from error
        have += len(chunk)
        tell(have, total)
    if total is not None and have < total:
        raise PassingError(f"the connection ended after {have:,} of {total:,} bytes")
    if total is None:
        # The server didn't say how much it is; the end of what it sent is all there is to go by.
        _write_version(part, replace(version, size=have))


class Stop(threading.Event):
    """Says to every download of a process that it ends, also where one is waiting."""

    def sleep(self, seconds: float) -> None:
        """Wait, or end at once.

        Raises:
            StoppedError: it was said meanwhile.
        """
        if self.wait(seconds):
            raise StoppedError

    def check(self) -> None:
        """End if it was said.

        Raises:
            StoppedError: it was.
        """
        if self.is_set():
            raise StoppedError


class StoppedError(Exception):
    """A download that ends because another failed or the user wants it."""
