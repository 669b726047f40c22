"""Further ranks of the same command on this machine, for CPUs, where no launcher started any.

A small model's step is many small operations, which threads hardly share out: on two cores two
threads are no faster than one, and two ranks with half of the mini-batch each are. This process
is rank 0 and stays what the user talks to; the others are started here and say nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

import torch

from lamm.errors import ConfigError
from lamm.train.launch import find_place

logger = logging.getLogger(__name__)

MOST = 4
"""Ranks that are started without being asked for: each has the memory of a process."""
GRACE = 20.0
"""Seconds that rank 0 has to end by itself, once another rank has died."""
_LOOK = 0.5
_STARTED = "LAMM_LOCAL_RANKS"
"""Set for the ranks that are started here, whose words ask for ranks as rank 0's do."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def processors(quota: Path = _QUOTA) -> int:
    """Processors that this process may keep busy: PyTorch's threads, or less by a cgroup's quota.

    Args:
        quota: file with the microseconds of processor time that a container has in each period.
    """
    threads = torch.get_num_threads()
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
        return max(min(threads, int(allowed) // int(period)), 1)
    except (OSError, ValueError):  # no such quota
        return threads


def ranks_here(device: str) -> int:
    """How many ranks are worth starting: as many as processors, up to `MOST`.

    One where a launcher has started this process or a GPU does the work.

    Args:
        device: 'auto', 'cpu' or 'cuda'.
    """
    if find_place(os.environ).launcher != "alone":
        return 1
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return 1
    return min(processors(), MOST)


@contextmanager
def local_ranks(count: int, words: Sequence[str]) -> Iterator[None]:
    """Be rank 0 of so many ranks inside the context; the others run the same command.

    Args:
        count: ranks in all; with 1 nothing happens.
        words: the command's words, without the program's name.

    Raises:
        ConfigError: a launcher has started this process already.
    """
    if count == 1 or os.environ.get(_STARTED):
        yield
        return
    if find_place(os.environ).launcher != "alone":
        raise ConfigError(
            "a launcher started this process as one of its ranks, and --ranks would start more. "
            "Leave --ranks out."
        )
    threads = max(processors() // count, 1)
    place = _environment(count, threads)
    before, threads_before = dict(os.environ), torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="lamm-ranks-") as folder:
        said = [Path(folder) / f"rank-{rank}" for rank in range(1, count)]
        started: list[subprocess.Popen[bytes]] = []
        try:
            for rank, path in enumerate(said, start=1):
                with path.open("wb") as stream:
                    started.append(_start(place, rank, words, stream))
            os.environ.update(place | {"RANK": "0", "LOCAL_RANK": "0"})
            torch.set_num_threads(threads)
            logger.info("%d ranks on this machine; threads of each: %d", count, threads)
            over = _watch(started, said)
            try:
                yield
            finally:
                over.set()
        finally:
            _end_all(started, failing=sys.exc_info()[0] is not None)
            os.environ.clear()
            os.environ.update(before)
            torch.set_num_threads(threads_before)


def _environment(count: int, threads: int) -> dict[str, str]:
    """What all ranks' environments say, as `torchrun` would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {
        _STARTED: str(count),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", loopback),
    }


def _start(
    place: dict[str, str], rank: int, words: Sequence[str], stream: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "lamm", *words],
        env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
    )


def _watch(started: Sequence[subprocess.Popen[bytes]], said: Sequence[Path]) -> threading.Event:
    """End this process with a message where another rank has died and it waits for it.

    Returns:
        What tells the watch that the run is over.
    """
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK):
            for rank, process in enumerate(started, start=1):
                if process.poll() and not over.wait(GRACE):
                    _give_up(rank, process.returncode, said[rank - 1], started)

    threading.Thread(target=look, name="ranks", daemon=True).start()
    return over


def _give_up(
    rank: int, status: int, path: Path, started: Sequence[subprocess.Popen[bytes]]
) -> NoReturn:
    last = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    sys.stderr.write(
        f"rank {rank} ended with status {status}; the others can't go on without it.\n"
        + "".join(f"  {line}\n" for line in last)
        + "  Go on by --resume; --ranks 1 takes less memory.\n"
    )
    sys.stderr.flush()
    for process in started:
        process.kill()
    os._exit(1)


def _end_all(started: Sequence[subprocess.Popen[bytes]], *, failing: bool) -> None:
    """Wait for the other ranks, which end with this one; those that don't are ended."""
    until = time.monotonic() + (3.0 if failing else 60.0)
    for process in started:
        try:
            process.wait(max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
