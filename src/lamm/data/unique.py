"""Which ids were seen before, among more of them than fit into memory as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LARGEST_RUN = 1 << 24
"""Hashes in one sorted run (128 MB); runs of this size are merged no further."""
IN_MEMORY = 1 << 20
"""Longer runs are kept in files, which are mapped."""


class SeenHashes:
    """64-bit hashes of ids, as a few sorted runs of which each is half as long as the one before.

    Args:
        folder: where long runs are put; made when there is one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: list[NDArray[np.uint64]] = []
        self._files = 0

    def add(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Take hashes in.

        Returns:
            Places of those that are in an earlier call's hashes, or before in these.
        """
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        again = np.zeros(len(hashes), dtype=bool)
        again[order[1:][ordered[1:] == ordered[:-1]]] = True
        for run in self._runs:
            place = np.searchsorted(run, ordered).clip(max=len(run) - 1)
            again[order[run[place] == ordered]] = True
        self._keep(ordered)
        return np.flatnonzero(again)

    def _keep(self, run: NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            if len(self._runs[-1]) + len(run) > LARGEST_RUN:
                break
            run = np.sort(np.concatenate((self._runs.pop(), run)), kind="stable")
        self._runs.append(run if len(run) <= IN_MEMORY else self._mapped(run))

    def _mapped(self, run: NDArray[np.uint64]) -> NDArray[np.uint64]:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"run-{self._files}.npy"
        self._files += 1
        np.save(path, run)
        mapped: NDArray[np.uint64] = np.load(path, mmap_mode="r")
        path.unlink()  # the mapping keeps the bytes; nothing is left behind when it goes
        return mapped
