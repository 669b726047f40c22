"""Where an ingestion works until its store is whole, and whether it may take up what lies there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lamm.data.shards import WORK
from lamm.errors import StoreError
from lamm.files import write_json

logger = logging.getLogger(__name__)
_JOB = "job.json"


class Staging(NamedTuple):
    """The folder of an unfinished store."""

    folder: Path
    run: int
    """0 for the first run of this ingestion, then counting those that were broken off."""

    @property
    def spool(self) -> Path:
        """Where what has been read lies."""
        return self.folder / WORK / "spool"


def unfinished(to: Path) -> Path:
    """Where the store at `to` is until it is whole."""
    return to.with_name(f".{to.name}.ingesting")


@contextmanager
def staging(to: Path, job: Mapping[str, Any], *, restart: bool = False) -> Iterator[Staging]:
    """Take the folder of an unfinished store, which an earlier run of the same job may have left.

    Args:
        to: where the finished store will be.
        job: all that the store depends on, as JSON has it.
        restart: throw away what an earlier run left.

    Raises:
        StoreError: another process is at work there, or what lies there is of another job.
    """
    folder = unfinished(to)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"{to}: can't write a store there ({error}).") from error
    try:
        _lock(handle, to)
        yield Staging(folder, _take(folder, to, job, restart))
    finally:
        os.close(handle)  # which also gives up the lock
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _lock(handle: int, to: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(
            f"{to}: another process is ingesting to this path. Wait for it, or choose another path."
        ) from None
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s: can't be locked (%s); see that no one else writes there", to, error)


def _take(folder: Path, to: Path, job: Mapping[str, Any], restart: bool) -> int:
    """Number of this run; clears the folder where nothing in it can be used."""
    path = folder / WORK / _JOB
    earlier = None if restart else _read(path)
    if earlier is None:
        for inner in folder.iterdir():
            shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
        run = 0
    else:
        wanted = json.loads(json.dumps(job))
        changed = [name for name in wanted if wanted[name] != earlier["job"].get(name)]
        if changed:
            raise StoreError(
                f"{to}: an ingestion that was broken off lies in {folder.name}, and it had other "
                f"{' and '.join(changed)}.\n  Give the command as before to finish it, or add "
                "--restart to throw it away."
            )
        run = int(earlier["run"]) + 1
        logger.info("%s: going on where an earlier run was broken off", to)
    write_json(path, {"run": run, "job": dict(job)})
    return run


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values
