"""What a run says: lines of ``metrics.jsonl``, and a progress bar or a log line for a person."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lamm.evaluate.curves import METRICS, read_metrics
from lamm.files import write_text

logger = logging.getLogger(__name__)


def memory_mib(device: torch.device) -> float:
    """Peak memory of the run so far in MiB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class MetricsFile:
    """``metrics.jsonl`` of a run: one JSON object per line, appended as they come."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        path = run_dir / METRICS
        if path.exists():
            kept = [line for line in read_metrics(run_dir) if line["step"] <= resume_step]
            text = "".join(json.dumps(line) + "\n" for line in kept) if resume_step else ""
            write_text(path, text)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line and hand it to the operating system."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Put the file on the disk."""
        os.fsync(self._file.fileno())
        self._file.close()


class ProgressLine:
    """A progress bar on a terminal; elsewhere a log line every so many seconds."""

    def __init__(
        self, title: str, total: int, done: int = 0, *, visible: bool = True, every: float = 20.0
    ) -> None:
        self.title, self.total = title, total
        self._visible = visible
        self._every = every
        self._start, self._spoke, self._first = time.monotonic(), time.monotonic(), done
        console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if visible and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, total: int) -> None:
        """Say anew how long the whole will be."""
        self.total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def update(self, done: int, note: str = "") -> None:
        """Say how far it is, with the latest numbers in `note` (kept until the next one)."""
        if not self._visible:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            if note:
                self._bar.update(self._task, note=note)
            return
        now = time.monotonic()
        if note and (now - self._spoke >= self._every or done == self.total):
            self._spoke = now
            rate = (done - self._first) / max(now - self._start, 1e-9)
            left = (self.total - done) / rate if rate > 0 else float("nan")
            logger.info("%s %d/%d, %.0f s left, %s", self.title, done, self.total, left, note)
