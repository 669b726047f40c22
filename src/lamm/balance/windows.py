"""An epoch as windows of consecutive steps, any of which can be planned without the others."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context

import numpy as np
from jaxtyping import Int64

from lamm.balance.uses import Window
from lamm.errors import ConfigError

_CHUNK = 4
"""Windows that a process is handed at once."""


@dataclass(frozen=True, eq=False)
class EpochWindows:
    """The windows of an epoch, planned when they are asked for."""

    first_steps: Int64[np.ndarray, " edges"]
    """First step of each window, and the number of steps at the end."""
    make: Callable[[int], Window]
    """Plans the window of a number; the same window whatever was planned before."""

    def __len__(self) -> int:
        return len(self.first_steps) - 1

    def __getitem__(self, number: int) -> Window:
        """Plan one window."""
        if not 0 <= number < len(self):
            raise IndexError(f"window {number} of an epoch that has {len(self)}.")
        return self.make(number)

    def __iter__(self) -> Iterator[Window]:
        return (self.make(number) for number in range(len(self)))

    @property
    def num_steps(self) -> int:
        """Mini-batches in the epoch; nothing is planned for it."""
        return int(self.first_steps[-1])

    def at_step(self, step: int) -> int:
        """The number of the window that a step of the epoch is in."""
        return int(np.searchsorted(self.first_steps, step, side="right")) - 1

    def in_parallel(self, processes: int) -> Iterator[Window]:
        """All windows in order, planned by several processes: the same bits as by one.

        The processes are forked, so that they share the index; where the system can't fork, one
        process plans alone.

        Args:
            processes: how many plan at once.
        """
        if processes < 1:
            raise ConfigError(f"a plan by {processes} processes; expected at least 1.")
        if processes == 1 or len(self) == 1 or not _can_fork():
            yield from self
            return
        with ProcessPoolExecutor(
            processes, get_context("fork"), initializer=_remember, initargs=(self,)
        ) as pool:
            ahead = [
                pool.submit(_make_some, *span) for span in self._spans(0, 2 * processes * _CHUNK)
            ]
            following = self._spans(2 * processes * _CHUNK, len(self))
            while ahead:
                some = ahead.pop(0).result()
                ahead += [pool.submit(_make_some, *span) for span in _up_to_one(following)]
                yield from some

    def _spans(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        last = min(last, len(self))
        return ((start, min(start + _CHUNK, last)) for start in range(first, last, _CHUNK))


def _up_to_one(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    span = next(spans, None)
    return [] if span is None else [span]


def _can_fork() -> bool:
    return "fork" in get_all_start_methods()


_shared: list[EpochWindows] = []


def _remember(windows: EpochWindows) -> None:
    _shared[:] = [windows]


def _make_some(first: int, last: int) -> list[Window]:
    return [_shared[0][number] for number in range(first, last)]
