"""The errors that a user can cause: each says where, what was found and expected, what to do.

The command line turns every `LaMMError` into one message on stderr and exit status 2; anything else
is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LaMMError(ValueError):
    """Base class of every error that a user can mend."""


class ConfigError(LaMMError):
    """A configuration that can't be used: unknown key, wrong type, impossible combination."""


class DataError(LaMMError):
    """A source file or a record in it that can't become a structure."""


class DamagedFileError(DataError):
    """A source file that can't be read on: cut short, or with bytes that were changed."""


class StoreError(DataError):
    """A store on disk that is missing, half-written, damaged or of another version."""


class CheckpointError(LaMMError):
    """A checkpoint that is missing, damaged, of another architecture or of another version."""


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which known names are close to a wrong one, or list them all where none is.

    Args:
        name: what was written.
        known: what would have been accepted.
        count: how many close names to offer at most.

    Returns:
        A sentence such as ``Did you mean 'batch_size'?`` or ``Known: a, b, c.``
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(f"'{other}'" for other in close) + "?"
    return "Known: " + (", ".join(names) if names else "none") + "."


class BadAnswerError(RuntimeError):
    """The work was done and its answer is bad, such as a loss that isn't finite: exit status 1."""


class InterruptedRunError(RuntimeError):
    """A run that stopped at a signal after it had saved a checkpoint."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
