"""Who reads the parts of an ingestion: this process, several, or the workers of a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol

from lamm.data.cards import CardHeader
from lamm.data.readers import OnError
from lamm.data.spool import Part, Piece, Spool
from lamm.errors import ConfigError, DataError

_LOOK_S = 1.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_CONNECT_S = 20


class Pool(Protocol):
    """Reads parts."""

    def read(
        self, part: Part, start: int | None, header: CardHeader, on_error: OnError
    ) -> Iterator[Piece]:
        """Begin to read a part at a record; the pieces come as they are there. None: no reading."""
        ...

    def call(self, function: Callable[[Path], str], path: Path) -> Callable[[], str]:
        """Begin to call a function; the result is waited for when it is asked for."""
        ...


@contextmanager
def reading_pool(spool: Spool, workers: int, cluster: str | None) -> Iterator[Pool]:
    """Give what reads the parts into a spool.

    Args:
        spool: where pieces are left.
        workers: processes of this machine; with one, this process itself reads.
        cluster: address of a Dask scheduler, instead.

    Raises:
        ConfigError: there is no such cluster, or `dask.distributed` isn't installed.
    """
    if cluster is not None:
        with _dask_client(cluster) as client, _stopping(spool):
            yield Elsewhere(spool, partial(client.submit, pure=False))
    elif workers > 1:
        pool = ProcessPoolExecutor(workers, mp_context=_context(), initializer=_begin)
        with _one_thread_each():
            pool.submit(os.getpid).result()  # starts them all
        try:
            with _stopping(spool):
                yield Elsewhere(spool, pool.submit)
        finally:
            pool.shutdown(cancel_futures=True)
    else:
        yield Here(spool)


@contextmanager
def _stopping(spool: Spool) -> Iterator[None]:
    """At the end, whoever is still reading stops at its next piece."""
    try:
        yield
    finally:
        spool.release()


class Here:
    """Reads in this process, when the pieces are asked for."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    def read(
        self, part: Part, start: int | None, header: CardHeader, on_error: OnError
    ) -> Iterator[Piece]:
        """The pieces of a part; reading begins with the first `next`."""
        return iter(()) if start is None else self.spool.read(part, start, header, on_error)

    def call(self, function: Callable[[Path], str], path: Path) -> Callable[[], str]:
        """Calls when the result is asked for."""
        return partial(function, path)


class Elsewhere:
    """Reads in other processes.

    Args:
        spool: where they leave the pieces.
        submit: hands a call to one of them and gives its future.
    """

    def __init__(self, spool: Spool, submit: Callable[..., Any]) -> None:
        self.spool = spool
        self.submit = submit

    def read(
        self, part: Part, start: int | None, header: CardHeader, on_error: OnError
    ) -> Iterator[Piece]:
        """The pieces of a part as they come; reading begins at once."""
        if start is None:
            return iter(())
        future = self.submit(read_part, self.spool, part, start, header, on_error)
        return self.spool.follow(part.number, partial(_is_done, future, part.path))

    def call(self, function: Callable[[Path], str], path: Path) -> Callable[[], str]:
        """Calls at once, in another process."""
        future = self.submit(function, path)

        def result() -> str:
            return str(future.result())

        return result


def read_part(spool: Spool, part: Part, start: int, header: CardHeader, on_error: OnError) -> None:
    """Read a part into the spool; what another process does."""
    for _ in spool.read(part, start, header, on_error):
        pass


def _is_done(future: Any, path: Path) -> bool:
    """Whether a call has ended; raises what it has failed with."""
    if not future.done():
        return False
    try:
        future.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"{path}: a process that read was killed, perhaps for want of memory.\n"
            "  What was read is kept: give the command again, with fewer --workers."
        ) from error
    return True


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that begin in here leave linear algebra to one thread: there are enough of them."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _context() -> BaseContext:
    """How processes are started: from one that has no threads yet, and has imported all once."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        return context
    return multiprocessing.get_context("spawn")


def _begin() -> None:
    """Set up a reading process: Ctrl-C is its parent's matter, and it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


@contextmanager
def _dask_client(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            "--cluster needs dask.distributed, which isn't installed. Run: pip install "
            "'lamm[cluster]'"
        ) from error
    try:
        client = Client(address, timeout=_CONNECT_S)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--cluster {address}: no Dask scheduler answers there ({error}).\n  Give the address "
            "that `dask scheduler` prints, such as tcp://10.0.0.1:8786."
        ) from error
    with client:
        yield client
