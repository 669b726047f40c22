"""``lamm report``: one HTML page of one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lamm.cli import common
from lamm.cli.common import ForceFlag, JsonFlag
from lamm.cli.structures import check_output


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Page to write; report.html of the first run where left out."),
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write one self-contained HTML page: curves, errors, speed and provenance of runs."""
    from lamm.evaluate.report import read_runs, report_page, summary

    common.start_logging(quiet=as_json)
    target = to or runs[0] / "report.html"
    found = read_runs(runs)
    check_output(target, force)
    report_page(found).write(target)
    if as_json:
        common.emit_json({"to": target, "runs": [summary(run) for run in found]})
    else:
        common.say(f"{len(found)} run{'s' if len(found) > 1 else ''} -> {target}")
