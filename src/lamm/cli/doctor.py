"""``lamm data doctor``: look for silent faults in stores."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamm.cli import common
from lamm.cli.common import JsonFlag
from lamm.cli.info import aligned
from lamm.cli.structures import check_output
from lamm.errors import ConfigError

if TYPE_CHECKING:
    from lamm.data.doctor import Diagnosis, Finding
    from lamm.data.store import Store

IDS_SHOWN = 5
"""Record ids of a finding that are printed."""
_WIDTH = 100


def doctor(
    stores: Annotated[list[Path], typer.Argument(help="Stores: folders or mini:NAME.")],
    card_split: Annotated[
        tuple[float, float],
        typer.Option(
            help="Shares for validation and testing of structures that the source doesn't split.",
            metavar="VAL TEST",
        ),
    ] = (0.01, 0.0),
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, help="Å; structures whose distances differ by less are copies."),
    ] = 2e-5,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare checksums of all files.")
    ] = True,
    all_ids: Annotated[
        Path | None,
        typer.Option(help="Also write a file with every id that is known: check, store, id."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Look for faults that nothing else reports: units, signs, copies, unused labels, leaks.

    Exit status 1 where there is an error or a warning; notes are worth reading and no fault.
    """
    from lamm.data.doctor import examine

    if tolerance <= 0:
        raise ConfigError(f"--tolerance {tolerance}: expected a length above 0, in Å.")
    check_output(all_ids, force=True, option="--all-ids")
    common.start_logging(quiet=as_json)
    opened = _open(stores)
    # The verbs of `data` import this module, and their progress bar is theirs.
    from lamm.cli.data import _progress

    total = sum(len(store) for store in opened.values())
    before: dict[str, int] = {}
    with _progress("examining", quiet=as_json) as show:

        def tell(name: str, done: int, of_store: int) -> None:
            before[name] = done
            read = sum(before.values())
            show(read / total, read, name)

        diagnosis = examine(
            opened,
            verify=verify,
            tolerance=tolerance,
            val_fraction=card_split[0],
            test_fraction=card_split[1],
            progress=tell,
        )
    if all_ids is not None:
        _write_ids(all_ids, diagnosis)
    if as_json:
        common.emit_json({"stores": _table_json(opened), **diagnosis.as_dict()})
    else:
        _say(opened, diagnosis)
    if diagnosis.has_faults:
        raise typer.Exit(common.BAD_ANSWER)


def _open(paths: list[Path]) -> dict[str, Store]:
    """Stores by name; those of one name by their paths."""
    from lamm.data.joint import store_path
    from lamm.data.store import Store

    folders = [store_path(str(path)) for path in paths]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a store is given twice. Name each once.")
    opened = [Store.open(folder) for folder in folders]
    names = [store.card.name or store.path.name for store in opened]
    return {
        name if names.count(name) == 1 else str(store.path): store
        for name, store in zip(names, opened, strict=True)
    }


def _table_json(opened: dict[str, Store]) -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "store": str(store.path),
            "num_structures": len(store),
            "labels": dict(store.card.label_counts),
        }
        for name, store in opened.items()
    ]


def _write_ids(path: Path, diagnosis: Diagnosis) -> None:
    from lamm.cli.data import _write_csv

    rows = ((one.check, one.store, id) for one in diagnosis.findings for id in one.ids)
    _write_csv(path, ("check", "store", "id"), rows)


def _say(opened: dict[str, Store], diagnosis: Diagnosis) -> None:
    """Print a line per store, then the findings, the worst first."""
    from lamm.data.doctor import Severity

    rows: list[tuple[str, ...]] = [
        ("store", "structures", *(f"{severity.value}s" for severity in Severity))
    ]
    for name, store in opened.items():
        counts = (str(diagnosis.count(severity, name)) for severity in Severity)
        rows.append((name, f"{len(store):,}", *counts))
    for line in aligned(rows, right=(1, 2, 3, 4)):
        common.say(line)
    for finding in diagnosis.findings:
        common.say()
        _say_finding(finding)
    if not diagnosis.findings:
        common.say("\nnothing was found")


def _say_finding(finding: Finding) -> None:
    common.say(f"{finding.severity.value.upper()} {finding.check} in {finding.store}")
    for text in (finding.title, finding.meaning, f"To do: {finding.advice}"):
        for line in textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False):
            common.say(f"  {line}")
    if finding.ids:
        shown = ", ".join(finding.ids[:IDS_SHOWN])
        more = len(finding.ids) - IDS_SHOWN
        common.say(f"  Records: {shown}{f' and {more:,} more' if more > 0 else ''}")
