"""What the doctor says: findings by severity, each with the records that it is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamm.data.store import Store

MAX_IDS = 1000
"""Record ids that a finding lists at most; all are counted."""


class Severity(StrEnum):
    """How bad a finding is: an error spoils training, a warning may, a note is worth knowing."""

    error = "error"
    warning = "warning"
    note = "note"


@dataclass(frozen=True)
class Finding:
    """One thing that was found in one store, or between two."""

    check: str
    """Name of the check, such as ``units.energy``."""
    severity: Severity
    store: str
    title: str
    """What was found, with its numbers."""
    meaning: str
    """Why it matters."""
    advice: str
    """What to do."""
    count: int = 0
    """Records concerned; 0 where it is about the store as a whole."""
    ids: tuple[str, ...] = ()
    """The first `MAX_IDS` of them."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Evidence, by name."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "check": self.check,
            "severity": self.severity.value,
            "store": self.store,
            "title": self.title,
            "meaning": self.meaning,
            "advice": self.advice,
            "count": self.count,
            "ids": list(self.ids),
            "numbers": self.numbers,
        }


class Rows:
    """Rows of a store that share a fault: all are counted, the first are remembered."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[int] = []
        self.worst: float | None = None

    def add(self, rows: Iterable[int] | NDArray[np.int64], worst: float | None = None) -> None:
        """Take rows in.

        Args:
            rows: their numbers in the store.
            worst: the largest value among them of what is wrong.
        """
        numbers = [int(row) for row in rows]
        self.count += len(numbers)
        self.first += numbers[: MAX_IDS - len(self.first)]
        if worst is not None and numbers:
            self.worst = worst if self.worst is None else max(self.worst, worst)

    def ids(self, store: Store) -> tuple[str, ...]:
        """Ids of the rows that are remembered."""
        return row_ids(store, self.first)


def row_ids(store: Store, rows: Iterable[int] | NDArray[np.int64]) -> tuple[str, ...]:
    """Ids of rows of a store, at most `MAX_IDS` of them."""
    return tuple(store[int(row)].id for _, row in zip(range(MAX_IDS), rows, strict=False))
