"""``lamm data``: make stores, look at them, take them out again."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from lamm.cli import catalogue, common, doctor
from lamm.cli.common import JsonFlag
from lamm.cli.info import aligned, say_details, say_overview
from lamm.cli.structures import check_output
from lamm.errors import ConfigError, InterruptedRunError

if TYPE_CHECKING:
    from lamm.data.cards import DatasetCard
    from lamm.data.ingest import IngestProgress

logger = logging.getLogger(__name__)
app = typer.Typer(help="Make stores, look at them, take them out again.", no_args_is_help=True)
app.command("list")(catalogue.list_command)
app.command("download")(catalogue.download_command)

_LOG_EVERY = 20.0
"""Seconds between two lines of progress where there is no terminal."""


class OnError(StrEnum):
    """What to do with a record that can't be used."""

    stop = "stop"
    skip = "skip"


@app.callback()
def data() -> None:
    """Make stores, look at them, take them out again."""
    # Read when NumPy is imported, which only a command does: on the small matrices here, several
    # threads wait for each other longer than they work.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@app.command("ingest")
def ingest_command(
    format: Annotated[
        str,
        typer.Argument(
            help="A data set of `lamm data list`, or a format of `lamm data formats`.",
            metavar="NAME-OR-FORMAT",
        ),
    ],
    sources: Annotated[list[Path], typer.Argument(help="Files, or folders of files.")],
    to: Annotated[Path, typer.Option(help="Folder of the new store.")],
    card: Annotated[
        Path | None, typer.Option(help="What is known of the data (YAML): units, functional, ...")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read.")] = 1,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler whose workers read instead.")
    ] = None,
    on_error: Annotated[
        OnError,
        typer.Option(
            help="Stop at a record that can't be used, or skip it, and the rest of a damaged file."
        ),
    ] = OnError.stop,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what a broken-off ingestion has left.")
    ] = False,
    shard_bytes: Annotated[
        int | None, typer.Option(min=1, help="Largest shard; 60 MB where left out.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a store of source files: read, check, convert to eV and Å, count.

    Nothing is at --to before all went well. Broken off, even by force, it goes on where it was when
    the command is given again.
    """
    from lamm.data.cards import CardHeader, read_header
    from lamm.data.ingest import ingest, known_source, merged_header
    from lamm.data.writer import SHARD_BYTES

    common.start_logging(quiet=as_json)
    format_name, of_data_set = known_source(format)
    header = merged_header(of_data_set, read_header(card) if card is not None else CardHeader())
    with _progress("ingesting", quiet=as_json) as show, _interruptible(to):
        written = ingest(
            format_name,
            sources,
            to,
            header,
            workers=workers,
            cluster=cluster,
            on_error=on_error.value,
            restart=restart,
            progress=lambda done: show(done.fraction, done.structures, _so_far(done)),
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


def _so_far(done: IngestProgress) -> str:
    """Files and skipped records, for a line of progress."""
    skipped = f", {done.skipped:,} skipped" if done.skipped else ""
    return f"file {min(done.files_done + 1, done.files):,} of {done.files:,}{skipped}"


@contextmanager
def _interruptible(to: Path) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into an end that says how to go on."""

    def end(signal_number: int, frame: object) -> None:
        raise InterruptedRunError(
            signal_number,
            f"interrupted. What was read is kept: give the same command again to finish {to}.",
        )

    earlier = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@app.command("formats")
def formats_command(
    name: Annotated[str | None, typer.Argument(help="One format, with its options.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the formats that can be ingested, or say what one settles and which options it has."""
    from lamm.data.ingest import known_format
    from lamm.data.readers import FORMATS

    if name is None:
        if as_json:
            common.emit_json({"formats": {key: kind.as_dict() for key, kind in FORMATS.items()}})
            return
        rows = [("format", "what it reads", "files")]
        rows += [(key, kind.describe, kind.endings) for key, kind in FORMATS.items()]
        for line in aligned(rows, right=()):
            common.say(line)
        return
    kind = known_format(name)
    if as_json:
        common.emit_json({"name": name, **kind.as_dict()})
        return
    common.say(f"{name}: {kind.describe}")
    common.say(f"files: {kind.endings or 'folders'}")
    if kind.header:
        common.say(f"settles by itself: {json.dumps(dict(kind.header), ensure_ascii=False)}")
    for option in kind.as_dict()["options"]:
        text = option["description"].replace("\n", " ")
        default = json.dumps(option["default"], ensure_ascii=False)
        common.say(f"reader.{option['name']} (default {default}): {text}")


def _remarks(card: DatasetCard) -> Iterator[str]:
    """What the maker of a store should know of it."""
    if card.num_skipped:
        yield f"skipped: {card.num_skipped:,} records; the card says why, the first is"
        yield f"  {card.skipped[0].record}: {card.skipped[0].reason}"
    if not card.num_train:
        yield (
            "note: no structure is for training. Unless that is meant: `keys: {split: none}` in "
            "the card ignores splits of the records, `split: null` those of files and folders."
        )
    if not card.labels and card.task != "denoising":
        yield "note: no label was found. Name its key under `keys` in the card, if there is one."


@app.command("info")
def info_command(
    stores: Annotated[
        list[Path] | None, typer.Argument(help="One store or several, folders or mini:NAME.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Instead of stores: a configuration with a `data` section (YAML)."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Of the sampling in a joint data set (Sec. 3.1); 2 or the configuration's.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what is in stores, as Table 2 does; several also as one joint data set.

    Of a single store also what else its card knows; --config has splits, limits, labels and noise
    as training would see them.
    """
    from lamm.cli.figures import read_data_config
    from lamm.data.joint import JointDataset, store_path
    from lamm.data.overview import joint_overview, stores_overview, table_json
    from lamm.data.store import Store

    if bool(stores) == (config is not None):
        raise ConfigError(
            "expected either stores or --config: `lamm data info STORE...` or "
            "`lamm data info --config CONFIG`."
        )
    if config is not None:
        joint = JointDataset(read_data_config(config))
        opened = [subset.store for subset in joint.subsets]
        overview = joint_overview(joint, temperature)
    else:
        opened = [Store.open(store_path(str(path))) for path in stores or ()]
        overview = stores_overview(opened, temperature or 2.0)
    if as_json:
        table = table_json(overview)
        rows = [
            {**store.card.model_dump(mode="json"), **row, "store": store.path}
            for store, row in zip(opened, table["subsets"], strict=True)
        ]
        joint_row = {"temperature": overview.temperature, **table["total"]}
        common.emit_json({"stores": rows, "joint": joint_row, "notes": table["notes"]})
        return
    say_overview(overview)
    if config is None and len(opened) == 1:
        say_details(opened[0].card)


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

    check_output(to, force=True)
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
    for line in aligned(table, right=(1, 2, 3)):
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
    check_output(to, force)
    common.start_logging(quiet=as_json)
    opened = Store.open(store)
    with (
        _progress("exporting", quiet=as_json) as show,
        replaced_file(to) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for number, structure in enumerate(opened, start=1):
            write_extxyz(file, structure.to_atoms())
            show(number / len(opened), number, "")
    if as_json:
        common.emit_json({"store": store, "to": to, "num_structures": len(opened)})
    else:
        common.say(f"{len(opened):,} structures -> {to}")


@contextmanager
def _progress(title: str, *, quiet: bool) -> Iterator[Callable[[float, int, str], None]]:
    """A bar with rate and time left on a terminal, else a log line now and then.

    What it gives is called with the share that is done, the structures so far, and a remark.
    """
    console = Console(stderr=True)
    visible = console.is_terminal and not quiet
    began = last = time.monotonic()
    first: tuple[float, int] | None = None
    columns = (
        TextColumn(title),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console, disable=not visible, transient=True) as bar:
        task = bar.add_task(title, total=1.0, remark="")

        def show(fraction: float, structures: int, remark: str) -> None:
            nonlocal last, first
            now = time.monotonic()
            first = first or (fraction, structures)
            rate = (structures - first[1]) / max(now - began, 1e-9)
            ahead = fraction - first[0]
            left = (now - began) * (1 - fraction) / ahead if ahead > 0 else None
            text = f"{structures:,} structures, {rate:,.0f}/s"
            text += f", {_duration(left)} left" if left is not None else ""
            text += f", {remark}" if remark else ""
            bar.update(task, completed=fraction, remark=text)
            if not visible and now - last > _LOG_EVERY:
                last = now
                logger.info("%s: %.0f %%, %s", title, 100 * fraction, text)

        yield show


def _duration(seconds: float) -> str:
    """Time as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


app.command("doctor")(doctor.doctor)
