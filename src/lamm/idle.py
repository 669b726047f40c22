"""Waiting for the other threads of this process, before it is copied by a fork."""

from __future__ import annotations

import threading
import time
from pathlib import Path

_THREADS = Path("/proc/self/task")
_PAUSE = 0.01
_LOOKS = 3
"""So many looks in a row have to find every thread asleep."""


def wait_for_idle_threads(limit: float = 5.0) -> bool:
    """Wait until no other thread of this process is at work.

    A fork copies locks as they are. One that another thread holds at that instant, such as a thread
    of gloo that is letting go of a tensor, stays locked in the copy for ever, and a process that
    was to prepare batches never begins. This thread sleeps meanwhile, so that whoever waits for
    Python's own lock gets it.

    Args:
        limit: seconds; of threads that never rest nothing more can be awaited.

    Returns:
        Whether all were asleep. Where the system doesn't tell, false after a moment's sleep.
    """
    if not _THREADS.is_dir():
        time.sleep(_LOOKS * _PAUSE)
        return False
    end, quiet = time.monotonic() + limit, 0
    while quiet < _LOOKS and time.monotonic() < end:
        if len(list(_THREADS.iterdir())) == 1:
            return True
        time.sleep(_PAUSE)
        quiet = quiet + 1 if all(map(_is_asleep, _THREADS.iterdir())) else 0
    return quiet == _LOOKS


def _is_asleep(thread: Path) -> bool:
    """Whether a thread waits for something; this one, which looks, doesn't count."""
    if thread.name == str(threading.get_native_id()):
        return True
    try:
        state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return True
    return state in "SI"
