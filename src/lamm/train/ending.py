"""How a process ends that is one of several ranks."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn


def run_to_the_end(verb: Callable[[], None]) -> None:
    """Call a verb; where it has joined other ranks, end the process without unwinding Python.

    Threads of the ranks' connections may still let go of a tensor after the last message. For that
    they need the interpreter, and one that asks for it while it is being taken down aborts the
    process: a run that was done would look as if it had died, and `torchrun` would start it again.
    So everything that a process does at its end is done here, and then the process is over.

    Args:
        verb: what to call; it may end by SystemExit.
    """
    try:
        verb()
    except SystemExit as end:
        if not _is_a_rank():
            raise
        _end(end.code)
    except BaseException:
        if not _is_a_rank():
            raise
        traceback.print_exc()
        _end(1)
    if _is_a_rank():
        _end(0)


def _is_a_rank() -> bool:
    """Whether this process has a process group; without importing what makes one."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _end(code: str | int | None) -> NoReturn:
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as Python itself ends its threads
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else int(code is not None))
