"""The values of an LMDB that holds one record per key, in order; nothing is ever written to it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, cast

import lmdb

from lamm.data.readers.common import reading
from lamm.data.readers.torch_pickle import loads
from lamm.errors import DamagedFileError, DataError

_LENGTH: Final = b"length"
"""The key under which many files tell how many records they have, or were meant to have."""
_log = logging.getLogger(__name__)


class _Open(NamedTuple):
    """An environment that is open, and how many read it: a process may open each only once."""

    env: lmdb.Environment
    readers: list[None]


_environments: dict[Path, _Open] = {}
_lock = threading.Lock()


def lmdb_values(
    path: Path, start: int = 0, stop: int | None = None
) -> Iterator[tuple[str, int, bytes | None]]:
    """The values of an LMDB, each with where it is and its number from 0.

    Records are the keys ``0``, ``1``, ... in the order of these numbers, or else all keys in the
    order of their bytes. One that is missing among numbered ones is None.

    Args:
        path: the file, or its folder.
        start: number of the first record.
        stop: number of the first that is not given; None for all.

    Raises:
        DataError: no such file, damaged, cut short, or not an LMDB.
    """
    with lmdb_transaction(path) as transaction:
        keys = _keys(transaction, path)
        for number in range(len(keys))[start:stop]:
            key = keys[number]
            value = _value(transaction, key if isinstance(key, bytes) else b"%d" % key)
            name = key.decode(errors="backslashreplace") if isinstance(key, bytes) else key
            yield f"record {number} (key '{name}')", number, value


def count_values(path: Path) -> int:
    """How many records `lmdb_values` gives.

    Raises:
        DataError: as there.
    """
    with lmdb_transaction(path) as transaction:
        return len(_keys(transaction, path))


@contextmanager
def lmdb_transaction(path: Path) -> Iterator[lmdb.Transaction]:
    """A transaction for reading; what LMDB itself finds wrong becomes a `DataError`."""
    with reading(path):
        place = path.resolve(strict=True)
    try:
        env = _acquire(place, path)
        try:
            with env.begin(buffers=False) as transaction:
                yield transaction
        finally:
            _release(place)
    except lmdb.Error as error:
        raise DamagedFileError(
            f"{path}: not an LMDB that can be read ({error}).\n  If it should be one, it is "
            "damaged: fetch it again."
        ) from error


def _acquire(place: Path, path: Path) -> lmdb.Environment:
    with _lock:
        if place not in _environments:
            _environments[place] = _Open(_open(place, path), [])
        _environments[place].readers.append(None)
        return _environments[place].env


def _release(place: Path) -> None:
    with _lock:
        opened = _environments[place]
        opened.readers.pop()
        if not opened.readers:
            opened.env.close()
            del _environments[place]


def _open(place: Path, path: Path) -> lmdb.Environment:
    file = place / "data.mdb" if place.is_dir() else place
    if not file.is_file() or file.stat().st_size == 0:
        raise DataError(f"{path}: an empty file or folder, expected an LMDB. Fetch it again.")
    env = lmdb.open(str(file), subdir=False, readonly=True, lock=False, create=False, meminit=False)
    # Pages beyond the end of the file would end the process, not raise.
    expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if file.stat().st_size < expected:
        env.close()
        raise DataError(
            f"{path}: cut short: {file.stat().st_size} bytes, expected {expected}. Fetch it again."
        )
    return env


def _keys(transaction: lmdb.Transaction, path: Path) -> Sequence[int] | list[bytes]:
    """The keys of the records: their numbers where they are numbered, in order."""
    told = _value(transaction, _LENGTH)
    entries = transaction.stat()["entries"] - (told is not None)
    if _has(transaction, 0, entries - 1) and transaction.get(b"%d" % entries) is None:
        _compare(told, entries, path)
        return range(entries)
    names = cast("Iterator[bytes]", transaction.cursor().iternext(values=False))
    keys = [key for key in names if key != _LENGTH]
    if not keys:
        raise DataError(f"{path}: an LMDB without records.")
    if all(key.isdigit() for key in keys):
        last = max(int(key) for key in keys)
        if last < 2 * len(keys):  # a few are missing, where else these are other numbers
            return range(last + 1)
    return keys


def _value(transaction: lmdb.Transaction, key: bytes) -> bytes | None:
    return cast("bytes | None", transaction.get(key))  # a memoryview only if asked for


def _has(transaction: lmdb.Transaction, *numbers: int) -> bool:
    return all(transaction.get(b"%d" % number) is not None for number in numbers)


def _compare(told: bytes | None, entries: int, path: Path) -> None:
    """Say where a file promises more records than it has."""
    if told is None:
        return
    length = loads(told) if told[:1] == b"\x80" else None
    if isinstance(length, int) and length != entries:
        _log.warning(
            "%s: its 'length' is %d, and it has %d records: all of these are read.",
            path,
            length,
            entries,
        )
