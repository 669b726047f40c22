"""One self-contained HTML page: text, tables, figures as inline SVG, key numbers, details.

Nothing is loaded from anywhere: styles are in the page, figures are part of it. It follows the
reader's light or dark setting, prints in black on white, and on a phone tables and figures scroll
inside their own box. Example::

    page = Page("Pre-training", "molecules and crystals, 2,000 steps")
    page.facts([("structures", 12_400, "five subsets"), ("energy", "21 meV/atom", "validation")])
    page.section("Errors", "Mean absolute errors on the validation split.")
    page.table(["subset", "energy (meV/atom)"], [["crystals", 21.3]], "Errors at the last step.")
    page.figure(pretraining_curves(curves), "Validation errors over the steps.")
    page.write("report.html")
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamm import __version__
from lamm.evaluate.page_style import STYLE
from lamm.files import write_text
from lamm.typing import PathLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Fact = tuple[str, Any, str]
"""Label, value and a note of a few words, which may be empty."""

_NUMBER = re.compile(r"^\s*[<>≈~±+\-−]?\s*\d[\d.,]*")
_NOTHING = ("", "–", "-")


class Page:
    """Collects the parts of a page in order and writes them as one file."""

    def __init__(self, title: str, subtitle: str = "", *, language: str = "en") -> None:
        """Start an empty page.

        Args:
            title: heading and title of the page.
            subtitle: a line below it.
            language: of the text, as HTML wants it.
        """
        self.title, self.subtitle, self.language = title, subtitle, language
        self._parts: list[str] = []
        self._sections: list[tuple[str, str]] = []  # anchor and title
        self._figures = self._tables = 0

    def section(self, title: str, text: str = "", *, level: int = 2) -> None:
        """Start a section.

        Args:
            title: its heading.
            text: paragraphs, separated by empty lines; words between backticks are set as code.
            level: 2 for a section, 3 for one inside it; the first kind is in the contents.
        """
        anchor = f"s{len(self._parts)}-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        if level == 2:
            self._sections.append((anchor, title))
        self._parts.append(f'<h{level} id="{anchor}">{_inline(title)}</h{level}>')
        self.text(text)

    def text(self, text: str) -> None:
        """Add paragraphs, separated by empty lines; words between backticks are set as code."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            if paragraph.strip():
                self._parts.append(f"<p>{_inline(paragraph.strip())}</p>")

    def facts(self, facts: Sequence[Fact]) -> None:
        """Add a row of key numbers.

        Args:
            facts: label, value and note of each; numbers are formatted as in tables.
        """
        items = "".join(
            f"<div><dt>{_inline(label)}</dt><dd>{_inline(format_cell(value))}"
            + (f"<small>{_inline(note)}</small>" if note else "")
            + "</dd></div>"
            for label, value, note in facts
        )
        count = len(facts)
        columns = 3 if count % 3 == 0 and count % 4 else min(count, 4)
        self._parts.append(f'<dl class="facts" style="--columns:{columns}">{items}</dl>')

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        caption: str = "",
        *,
        strong: Collection[tuple[int, int]] = (),
    ) -> None:
        """Add a table; columns of numbers are aligned right, the first column heads the rows.

        Args:
            columns: headings.
            rows: a cell per column; numbers get a sensible number of digits, None becomes a dash.
            caption: what the table shows; it is numbered.
            strong: row and column of cells to emphasise, such as the best of a group.

        Raises:
            ValueError: a row has more or fewer cells than there are columns.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"row {list(row)} has {len(row)} cells for {len(columns)} columns")
        self._tables += 1
        cells = [[row[k] for row in rows] for k in range(len(columns))]
        right = [_is_numeric(column) for column in cells]
        texts = [format_column(column) for column in cells]
        head = "".join(
            f'<th scope="col"{_aligned(right[k])}>{_whole_units(_inline(name))}</th>'
            for k, name in enumerate(columns)
        )
        body = "".join(
            "<tr>"
            + "".join(
                _cell(texts[k][r], k == 0, right[k], (r, k) in strong) for k in range(len(columns))
            )
            + "</tr>"
            for r in range(len(rows))
        )
        name = f"Table {self._tables}"
        self._parts.append(
            f'<p class="caption" id="t{self._tables}"><b>{name}.</b> {_inline(caption)}</p>'
            f'<div class="scroll" role="region" tabindex="0" aria-labelledby="t{self._tables}">'
            f'<table aria-labelledby="t{self._tables}">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def figure(self, figure: Figure, caption: str, *, alt: str | None = None) -> None:
        """Add a figure as inline SVG.

        Args:
            figure: from `lamm.evaluate.figures`, or any other.
            caption: what it shows; it is numbered.
            alt: what a reader hears who can't see it; the caption where left out.
        """
        from lamm.evaluate.style import svg_text

        self._figures += 1
        svg = _own_ids(svg_text(figure), f"f{self._figures}-")
        label = escape(alt or _plain(caption), quote=True)
        width = float(figure.get_figwidth())
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
        self._parts.append(
            f'<figure><div class="scroll plot" tabindex="0" style="--inches:{width:g}">{svg}</div>'
            f"<figcaption><b>Figure {self._figures}.</b> {_inline(caption)}</figcaption></figure>"
        )

    def details(self, title: str, text: str) -> None:
        """Add text that opens on a click, set as it is in the file (configuration, versions)."""
        self._parts.append(
            f"<details><summary>{_inline(title)}</summary>"
            f'<pre tabindex="0">{escape(text.rstrip())}</pre></details>'
        )

    def html(self) -> str:
        """The whole page."""
        contents = ""
        if len(self._sections) > 3:
            links = "".join(
                f'<li><a href="#{anchor}">{_inline(title)}</a></li>'
                for anchor, title in self._sections
            )
            contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>'
        subtitle = f'<p class="subtitle">{_inline(self.subtitle)}</p>' if self.subtitle else ""
        written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return (
            f'<!DOCTYPE html>\n<html lang="{escape(self.language, quote=True)}">\n<head>\n'
            '<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<header><h1>{_inline(self.title)}</h1>{subtitle}</header>\n<main>\n{contents}\n"
            + "\n".join(self._parts)
            + f"\n</main>\n<footer><p>Written by LaMM {__version__}, {written}.</p></footer>\n"
            "</body>\n</html>\n"
        )

    def write(self, path: PathLike) -> Path:
        """Write the page, whole or not at all.

        Returns:
            Its path.
        """
        target = Path(path)
        write_text(target, self.html())
        return target


def format_cell(value: Any) -> str:
    """One value as text: whole numbers with separators of thousands, others with three digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not _is_number(value):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "–" if math.isnan(number) else ("∞" if number > 0 else "−∞")
    if number == 0 or (number.is_integer() and abs(number) < 1e15):
        return _minus(f"{int(number):,}")
    digits = 2 - math.floor(math.log10(abs(number)))
    return _minus(f"{number:.2e}" if digits > 4 else f"{number:,.{max(digits, 0)}f}")


def format_column(cells: Sequence[Any]) -> list[str]:
    """The cells of a column as text, with the same number of decimals wherever that reads well."""
    fractions = [
        abs(float(cell))
        for cell in cells
        if _is_number(cell) and math.isfinite(float(cell)) and not float(cell).is_integer()
    ]
    if not fractions:
        return [format_cell(cell) for cell in cells]
    smallest, largest = (math.floor(math.log10(f(fractions))) for f in (min, max))
    if largest - smallest > 3:  # no number of decimals suits both
        return [format_cell(cell) for cell in cells]
    decimals = min(max(2 - smallest, 0), max(4 - largest, 0))
    return [
        _minus(f"{float(cell):,.{decimals}f}")
        if _is_number(cell) and not isinstance(cell, int) and math.isfinite(float(cell))
        else format_cell(cell)
        for cell in cells
    ]


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, (str, bool))


def _minus(text: str) -> str:
    return text if "e" in text else text.replace("-", "−")


def _is_numeric(cells: Sequence[Any]) -> bool:
    """Whether all cells that hold anything are numbers, or texts that start with one."""
    held = [c for c in cells if c is not None and not (isinstance(c, str) and c in _NOTHING)]
    return bool(held) and all(
        bool(_NUMBER.match(cell)) if isinstance(cell, str) else _is_number(cell) for cell in held
    )


def _cell(text: str, heads_row: bool, right: bool, strong: bool) -> str:
    inner = f"<strong>{_inline(text)}</strong>" if strong else _inline(text)
    if heads_row:
        return f'<th scope="row"{_aligned(right)}>{inner}</th>'
    return f"<td{_aligned(right)}>{inner}</td>"


def _whole_units(heading: str) -> str:
    """Keep a unit in parentheses on one line."""
    return re.sub(r"\([^()]*\)", r'<span class="unit">\g<0></span>', heading)


def _aligned(right: bool) -> str:
    return ' class="number"' if right else ""


def _inline(text: str) -> str:
    """Escape a text; what stands between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(str(text), quote=False))


def _plain(text: str) -> str:
    return text.replace("`", "")


def _own_ids(svg: str, prefix: str) -> str:
    """Make the ids of a figure its own, so that several figures can share a page."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)
    return re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', svg)
