"""What an experiment gives: numbers, tables, figures; and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lamm.bench.timing import provenance
from lamm.config import to_yaml
from lamm.evaluate.page import Page, format_column
from lamm.evaluate.style import save_figure
from lamm.files import write_json, write_text
from lamm.reproduce.settings import Asked, Experiment

RESULTS, PAGE, HTML = "results.json", "page.md", "page.html"


@dataclass(frozen=True)
class Table:
    """A table; a cell that is None has no number."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str


@dataclass(frozen=True)
class Picture:
    """A figure with its data."""

    name: str
    figure: Figure
    rows: Sequence[Mapping[str, Any]]
    caption: str


@dataclass
class Outcome:
    """What an experiment found."""

    numbers: dict[str, Any]
    """Entries of ``results.json`` that were measured here."""
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def markdown(table: Table) -> str:
    """A table in Markdown with its caption below."""
    columns = [format_column([row[k] for row in table.rows]) for k in range(len(table.columns))]
    lines = [table.columns, ["---"] * len(table.columns), *zip(*columns, strict=True)]
    body = "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)
    return f"{body}\n\n{table.caption}\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def write_outcome(
    to: Path,
    name: str,
    title: str,
    asked: Asked[Any],
    paper: Mapping[str, Any],
    outcome: Outcome,
    seconds: float,
) -> dict[str, Any]:
    """Write ``results.json``, ``page.md``, ``page.html`` and the figures, each whole or not at all.

    Args:
        to: the folder.
        name: of the experiment.
        title: of the page.
        asked: its configuration.
        paper: what the paper reports.
        outcome: what came out.
        seconds: that this call took; runs that were finished before took theirs then.

    Returns:
        What ``results.json`` holds.
    """
    settings: Experiment = asked.settings
    results = {
        "experiment": name,
        "title": title,
        **outcome.numbers,
        "paper": dict(paper),
        "scale": settings.scale,
        "changes": asked.changes,
        "seed": settings.seed,
        "seconds": seconds,
        "configuration": settings.model_dump(mode="json"),
        "provenance": provenance(settings.seed),
    }
    page = Page(title, f"Beside {paper['where']} of the paper")
    parts = [f"# {title}", f"Beside {paper['where']} of the paper."]
    scale = list(settings.scale)
    if asked.changes:
        scale.append(f"Changed, whatever is said above: {'; '.join(asked.changes)}.")
    page.section("Scale", "\n\n".join(scale))
    parts += ["## Scale", "\n".join(f"- {line}" for line in scale), "## Results"]
    page.section("Results")
    for table in outcome.tables:
        page.table(table.columns, table.rows, table.caption)
        parts.append(markdown(table))
    for picture in outcome.pictures:
        save_figure(picture.figure, to / picture.name, picture.rows)
        page.figure(picture.figure, picture.caption)
        parts.append(f"![{picture.name}]({picture.name}.png)\n\n{picture.caption}\n")
    page.section("Provenance")
    page.details("Configuration", to_yaml(settings))
    write_json(to / RESULTS, results)
    write_text(to / PAGE, "\n\n".join(parts).rstrip() + "\n")
    page.write(to / HTML)
    return results
