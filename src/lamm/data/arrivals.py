"""What is known of downloaded files: a line of ``downloaded.jsonl`` beside them for each."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

RECORDS: Final = "downloaded.jsonl"


@dataclass(frozen=True)
class Record:
    """What is known of a file that arrived."""

    file: str
    url: str
    bytes: int
    sha256: str
    checked: str
    """The published checksum that it was compared with: ``md5``, ``sha256`` or ``none``."""
    when: str
    product: str = ""
    """What it was unpacked to."""


class Records:
    """The lines of ``downloaded.jsonl``; the last one of a file counts."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORDS
        self._known: dict[str, Record] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                # A killed run may have left half a line; its file is checked again then.
                with suppress(ValueError, TypeError):
                    record = Record(**json.loads(line))
                    self._known[record.file] = record

    def get(self, name: str) -> Record | None:
        """What is known of the file of that name."""
        return self._known.get(name)

    def add(self, record: Record) -> None:
        """Write down what is known of a file now."""
        self._known[record.file] = record
        # One write to a file opened for appending: lines of several threads don't mix.
        with self.path.open("ab", buffering=0) as file:
            file.write(f"{json.dumps(asdict(record))}\n".encode())
