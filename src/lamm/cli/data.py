"""``lamm data``: make stores, look at them, take them out again."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lamm.cli import common
from lamm.cli.common import JsonFlag
from lamm.errors import ConfigError

if TYPE_CHECKING:
    from lamm.data.cards import DatasetCard

logger = logging.getLogger(__name__)
app = typer.Typer(help="Make stores, look at them, take them out again.", no_args_is_help=True)

_LOG_EVERY = 20.0
"""Seconds between two lines of progress where there is no terminal."""
_LETTERS = {"energy": "E", "forces": "F", "stress": "S"}


class OnError(StrEnum):
    """What to do with a record that can't be used."""

    stop = "stop"
    skip = "skip"


@app.command("ingest")
def ingest_command(
    format: Annotated[str, typer.Argument(help="Format of the sources: extxyz.")],
    sources: Annotated[list[Path], typer.Argument(help="Files, or folders of files.")],
    to: Annotated[Path, typer.Option(help="Folder of the new store.")],
    card: Annotated[
        Path | None, typer.Option(help="What is known of the data (YAML): units, functional, ...")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read.")] = 1,
    on_error: Annotated[
        OnError, typer.Option(help="Stop at a record that can't be used, or skip it.")
    ] = OnError.stop,
    shard_bytes: Annotated[
        int | None, typer.Option(min=1, help="Largest shard; 60 MB where left out.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a store of source files: read, check, convert to eV and Å, count.

    Nothing is left at --to unless all went well.
    """
    from lamm.data.cards import CardHeader, read_header
    from lamm.data.ingest import ingest
    from lamm.data.writer import SHARD_BYTES

    common.start_logging(quiet=as_json)
    header = read_header(card) if card is not None else CardHeader()
    with _progress("ingesting", "files", quiet=as_json) as show:
        written = ingest(
            format,
            sources,
            to,
            header,
            workers=workers,
            on_error=on_error.value,
            progress=lambda done: show(
                done.files_done, done.files, f"{done.structures:,} structures"
            ),
            shard_bytes=shard_bytes or SHARD_BYTES,
        )
    if as_json:
        common.emit_json({"store": to, "card": written.model_dump(mode="json")})
        return
    atoms = written.num_atoms.total
    common.say(f"{written.num_structures:,} structures, {atoms:,} atoms -> {to}")
    counts = ", ".join(f"{name} {count:,}" for name, count in written.label_counts.items() if count)
    common.say(f"labels: {counts or 'none'}")
    for remark in _remarks(written):
        common.say(remark)


def _remarks(card: DatasetCard) -> Iterator[str]:
    """What the maker of a store should know of it."""
    if card.num_skipped:
        yield f"skipped: {card.num_skipped:,} records; the card says why, the first is"
        yield f"  {card.skipped[0].record}: {card.skipped[0].reason}"
    if not card.num_train:
        yield (
            "note: the source puts no structure into training. `keys: {split: none}` in the card "
            "ignores its splits."
        )
    if not card.labels and card.task != "denoising":
        yield "note: no label was found. Name its key under `keys` in the card, if there is one."


@app.command("info")
def info_command(
    stores: Annotated[list[Path], typer.Argument(help="One store or several.")],
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Of the sampling in a joint data set (Sec. 3.1).")
    ] = 2.0,
    as_json: JsonFlag = False,
) -> None:
    """Say what is in stores, as Table 2 does; several also as one joint data set."""
    from lamm.data.sampling import temperature_sizes
    from lamm.data.store import Store

    cards = [Store.open(path).card for path in stores]
    sampled = temperature_sizes([card.num_train for card in cards], temperature).tolist()
    elements = len({symbol for card in cards for symbol in card.elements})
    joint = {
        "num_structures": sum(card.num_structures for card in cards),
        "num_train": sum(card.num_train for card in cards),
        "num_sampled": sum(sampled),
        "temperature": temperature,
        "num_elements": elements,
    }
    if as_json:
        rows = [
            {"store": path, "num_sampled": count, **card.model_dump(mode="json")}
            for path, card, count in zip(stores, cards, sampled, strict=True)
        ]
        common.emit_json({"stores": rows, "joint": joint})
        return
    title = ("Subset", "Domain", "Task", "Functional", "Periodic", "Labels", "Avg. # atoms")
    table: list[tuple[str, ...]] = [
        (*title, "# elements", "# samples", "# train", f"# sampled (T={temperature:g})")
    ]
    table += [
        (
            *_describe(card),
            str(len(card.elements)),
            f"{card.num_structures:,}",
            f"{card.num_train:,}",
            f"{count:,}",
        )
        for card, count in zip(cards, sampled, strict=True)
    ]
    if len(cards) > 1:
        totals = (joint["num_structures"], joint["num_train"], joint["num_sampled"])
        table.append(("Total", *[""] * 6, str(elements), *(f"{total:,}" for total in totals)))
    else:
        table = [row[:-1] for row in table]
    for line in _lines(table, right=(6, 7, 8, 9, 10)):
        common.say(line)


def _describe(card: DatasetCard) -> tuple[str, ...]:
    """The first columns of Table 2 for one store."""
    letters = [_LETTERS[label] for label in card.labels]
    labels = "N" if card.task == "denoising" else ", ".join(letters)
    periodic = {True: "yes", False: "no", None: "mixed"}[card.periodic]
    size = f"{card.num_atoms.mean:.1f}"
    texts = (card.name, card.domain, card.task, card.functional, periodic, labels, size)
    return tuple(text or "-" for text in texts)


def _lines(table: Sequence[Sequence[str]], right: Iterable[int]) -> Iterator[str]:
    """Rows of a table as lines; the columns in `right` stand to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [
            text.rjust(width) if number in right else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


@app.command("split")
def split_command(
    store: Annotated[Path, typer.Argument(help="A store.")],
    val_fraction: Annotated[
        float, typer.Option(help="Share for validation where the source has no split.")
    ] = 0.01,
    test_fraction: Annotated[
        float, typer.Option(help="Share for testing where the source has no split.")
    ] = 0.0,
    to: Annotated[
        Path | None, typer.Option(help="Also write a CSV file: id, split, who said so.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say which structures are for training, validation and testing.

    The source's word counts; where it has none, the hash of a structure's id decides, so that new
    data never moves old structures.
    """
    import numpy as np

    from lamm.data.splits import SPLIT_CODES, assign_splits
    from lamm.data.store import Store

    opened = Store.open(store)
    index = opened.index
    split = assign_splits(index.id_hash, index.split, val_fraction, test_fraction)
    given = index.split > 0
    counts = {
        name: {
            "structures": int(np.count_nonzero(split == code)),
            "by_source": int(np.count_nonzero((split == code) & given)),
            "by_hash": int(np.count_nonzero((split == code) & ~given)),
        }
        for name, code in SPLIT_CODES.items()
    }
    if to is not None:
        names = {code: name for name, code in SPLIT_CODES.items()}
        said = ("hash", "source")
        rows = (
            (one.id, names[int(code)], said[int(from_source)])
            for one, code, from_source in zip(opened, split, given, strict=True)
        )
        _write_csv(to, ("id", "split", "by"), rows)
    if as_json:
        common.emit_json({"store": store, "splits": counts})
        return
    table: list[tuple[str, ...]] = [("split", "structures", "by the source", "by hash")]
    table += [
        (name, *(f"{row[key]:,}" for key in ("structures", "by_source", "by_hash")))
        for name, row in counts.items()
    ]
    for line in _lines(table, right=(1, 2, 3)):
        common.say(line)


def _write_csv(path: Path, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from lamm.files import replaced_file

    with (
        replaced_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows(rows)


@app.command("export")
def export_command(
    store: Annotated[Path, typer.Argument(help="A store.")],
    to: Annotated[Path, typer.Option(help="File to write, .extxyz or .xyz.")],
    force: common.ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a store as extended XYZ: eV and Å, with ids, splits and fixed atoms."""
    from ase.io.extxyz import write_extxyz

    from lamm.data.store import Store
    from lamm.files import replaced_file

    if to.suffix not in (".extxyz", ".xyz"):
        raise ConfigError(f"--to {to}: found '{to.suffix}', expected a name ending in .extxyz.")
    if to.exists() and not force:
        raise ConfigError(f"--to {to}: the file exists. Add --force to replace it.")
    common.start_logging(quiet=as_json)
    opened = Store.open(store)
    with (
        _progress("exporting", "structures", quiet=as_json) as show,
        replaced_file(to) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for number, structure in enumerate(opened, start=1):
            write_extxyz(file, structure.to_atoms())
            show(number, len(opened), "")
    if as_json:
        common.emit_json({"store": store, "to": to, "num_structures": len(opened)})
    else:
        common.say(f"{len(opened):,} structures -> {to}")


@contextmanager
def _progress(title: str, unit: str, *, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal, else a log line now and then: called with done, total and a remark."""
    console = Console(stderr=True)
    visible = console.is_terminal and not quiet
    last = time.monotonic()
    columns = (
        TextColumn(f"{title} {unit}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[remark]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not visible, transient=True) as bar:
        task = bar.add_task(title, total=None, remark="")

        def show(done: int, total: int, remark: str) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total, remark=remark)
            if not visible and time.monotonic() - last > _LOG_EVERY:
                last = time.monotonic()
                logger.info("%s: %d of %d %s %s", title, done, total, unit, remark)

        yield show
