"""What ``lamm data info`` prints: Table 2, and for a single store all that its card knows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lamm.cli import common

if TYPE_CHECKING:
    from rich.table import Table

    from lamm.data.cards import DatasetCard
    from lamm.data.overview import Overview

_UNUSED_SHOWN, _REASONS_SHOWN, _REFERENCES_SHOWN = 12, 6, 8


def say_overview(overview: Overview) -> None:
    """Print Table 2: with rules on a terminal, as aligned text elsewhere; its notes below.

    A single subset has no column of temperature sampling, which is about several.
    """
    from rich.console import Console

    from lamm.data.overview import COLUMNS, NUMERIC, table_cells, table_notes

    several = len(overview.subsets) > 1
    last = len(COLUMNS) - (not several)
    cells = [row[:last] for row in table_cells(overview)]
    console = Console()
    table = _ruled(COLUMNS[:last], cells, NUMERIC, total=several)
    unbounded = console.options.update(max_width=1000)
    if console.is_terminal and console.measure(table, options=unbounded).minimum <= console.width:
        console.print(table)
    else:
        for line in aligned([COLUMNS[:last], *cells], right=NUMERIC):
            common.say(line)
    for note in table_notes(overview) if several else table_notes(overview)[2:]:
        common.say(note)


def _ruled(
    columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[int], *, total: bool
) -> Table:
    """Table 2 for a terminal, which may break names and functionals and nothing else."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for number, name in enumerate(columns):
        heading = re.sub(r" (?=atoms|functional|w/)", "\n", name)
        words = [len(row[number]) for row in cells] + [len(word) for word in heading.split("\n")]
        table.add_column(
            heading,
            justify="right" if number in right else "left",
            overflow="fold",
            min_width=min(max(words), 10) if number in (0, 3) else max(words),
        )
    for number, row in enumerate(cells):
        if total and number == len(cells) - 1:
            table.add_section()
        table.add_row(*map(Text, row))
    return table


def aligned(table: Sequence[Sequence[str]], right: Sequence[int]) -> Iterator[str]:
    """Rows of a table as lines; the columns in `right` stand to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [
            text.rjust(width) if number in right else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def say_details(card: DatasetCard) -> None:
    """Print what a card knows beside the columns of Table 2, a line per entry."""
    entries = [(title, text) for title, text in _details(card) if text]
    width = max(len(title) for title, _ in entries)
    common.say()
    previous = ""
    for title, text in entries:
        common.say(f"{'' if title == previous else title:{width}}  {text}")
        previous = title


def _details(card: DatasetCard) -> Iterator[tuple[str, str]]:
    """Title and text of each entry; one title may have several lines."""
    yield (
        "structures",
        f"{card.num_structures:,}: train {card.num_train:,}, val {card.num_val:,}, "
        f"test {card.num_test:,}",
    )
    atoms = card.num_atoms
    yield (
        "atoms",
        f"{atoms.total:,}; {atoms.min:,} to {atoms.max:,} per structure, {atoms.mean:.1f} on "
        "average",
    )
    if card.max_atoms is not None:
        yield "", f"structures of more than {card.max_atoms:,} are skipped"
    yield "periodic", f"{card.num_periodic:,} of {card.num_structures:,}"
    yield "elements", " ".join(card.elements)
    yield "labels", ", ".join(f"{name} {n:,}" for name, n in card.label_counts.items() if n)
    yield from _energies(card)
    yield from _source(card)
    size = sum(record.bytes for record in (*card.shards, card.index))
    plural = "" if len(card.shards) == 1 else "s"
    yield (
        "files",
        f"{len(card.shards)} shard{plural} and an index, {_bytes(size)}; "
        f"positions in {card.position_dtype}",
    )
    yield (
        "edges",
        f"counted within {card.edge_cutoff:g} Å, at most {card.edge_max_neighbors} per atom",
    )
    yield "written by", f"LaMM {card.lamm_version}, format {card.format_version}"
    yield "remarks", card.remarks
    yield "licence", card.licence
    for citation in card.citation:
        yield "citation", citation
    for source in card.source:
        yield "source", source


def _energies(card: DatasetCard) -> Iterator[tuple[str, str]]:
    units = card.units
    spelled = {
        "energy": (units.energy, "eV"),
        "length": (units.length, "Å"),
        "forces": (units.forces or f"{units.energy}/{units.length}", "eV/Å"),
        "stress": (units.stress, "eV/Å³"),
    }
    for quantity, (found, stored) in spelled.items():
        factor = card.factors.get(quantity)
        if factor is None or (quantity != "length" and quantity not in card.labels):
            continue
        how = "" if factor == 1 else f", times {factor:.10g}"
        yield "units", f"{quantity} in {found}{how}" + (f" = {stored}" if found != stored else "")
    yield "energy", card.energy_convention
    references = list(card.reference_energies.items())
    if references:
        few = ", ".join(f"{name} {energy:.4g}" for name, energy in references[:_REFERENCES_SHOWN])
        more = len(references) - _REFERENCES_SHOWN
        yield "references", f"{few}{f' and {more} more' if more > 0 else ''} (eV per atom)"
    scales = [
        f"{title} {scale:.4g} {unit}"
        for title, scale, unit in (
            ("energy", card.energy_scale, "eV"),
            ("forces", card.force_scale, "eV/Å"),
        )
        if scale is not None
    ]
    yield "scales", ", ".join(scales)


def _source(card: DatasetCard) -> Iterator[tuple[str, str]]:
    files = list(card.source_sha256)
    if files:
        shown = files[0] if len(files) == 1 else f"{files[0]} to {files[-1]}"
        yield "read from", f"{len(files):,} file{'' if len(files) == 1 else 's'}: {shown}"
    yield "names", ", ".join(f"{label} is '{key}'" for label, key in card.keys_found.items())
    unused = [key for key in card.keys_seen if key not in card.keys_found.values()]
    if unused:
        more = len(unused) - _UNUSED_SHOWN
        yield (
            "names" if card.keys_found else "names in the source",
            f"also there: {', '.join(unused[:_UNUSED_SHOWN])}"
            + (f" and {more:,} more" if more > 0 else ""),
        )
    if not card.num_skipped:
        return
    listed = len(card.skipped)
    note = f"; reasons of the first {listed:,}" if listed < card.num_skipped else ""
    yield "skipped", f"{card.num_skipped:,} records{note}"
    reasons = group_reasons([one.reason for one in card.skipped])
    for reason, count in reasons[:_REASONS_SHOWN]:
        yield "skipped", f"{count:,} × {reason}"
    if len(reasons) > _REASONS_SHOWN:
        yield "skipped", f"and {len(reasons) - _REASONS_SHOWN} other reasons; the card has them"


def group_reasons(reasons: Sequence[str]) -> list[tuple[str, int]]:
    """Reasons that differ in nothing but numbers as one, the most frequent first.

    Returns:
        The first line of a reason, with its numbers where all agree, and how often it was given.
    """
    counts: Counter[str] = Counter()
    spelled: dict[str, set[str]] = {}
    for reason in reasons:
        line = reason.strip().partition("\n")[0]
        kind = re.sub(r"\d+(?:[.,]\d+)*(?:[eE][+-]?\d+)?", "…", line)
        counts[kind] += 1
        spelled.setdefault(kind, set()).add(line)
    return [
        (next(iter(spelled[kind])) if len(spelled[kind]) == 1 else kind, count)
        for kind, count in counts.most_common()
    ]


def _bytes(size: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.1f} TB"
