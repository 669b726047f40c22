"""What the verbs share: where text goes, the options that several have, and the exit status."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

DONE, BAD_ANSWER, BAD_REQUEST, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Write one JSON object to stdout and nothing else.")
]
ForceFlag = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]


def start_logging(quiet: bool = False) -> None:
    """Send the library's log to stderr: one line per message, readable in a terminal and a file."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("lamm")
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if quiet else logging.INFO)


def finite(value: Any) -> Any:
    """The same value with numbers that JSON can't hold (NaN, infinity) turned into ``None``."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def emit_json(value: dict[str, Any]) -> None:
    """Write one JSON object to stdout."""
    sys.stdout.write(json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def say(text: str = "") -> None:
    """Write one line for a person to stdout."""
    typer.echo(text)
