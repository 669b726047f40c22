import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lamm.evaluate.curves import Series
from lamm.evaluate.figures import Parity, parity_plot, pretraining_curves
from lamm.evaluate.page import Page, format_cell, format_column

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Checker(HTMLParser):
    """Collects faults: tags that don't match, ids used twice, resources from elsewhere."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._look_at(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._look_at(tag, attrs)

    def _look_at(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and value:
                self.targets.append(value)
                if not value.startswith(("#", "data:")):
                    self.faults.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")


@pytest.fixture(scope="module")
def html() -> str:
    curve = Series.of([0, 1, 2], [3.0, 2.0, 1.0])
    many = np.linspace(0, 1, 6000)
    page = Page("Two & more", "a <subtitle>")
    page.facts([("energy", 21.345, "meV/atom"), ("structures", 12345, "")])
    for title in ("First", "Second", "Third", "Fourth"):
        page.section(title, "One paragraph with `code <b>`.\n\nAnother.")
    page.table(["Subset", "MAE"], [["a", 1.5], ["b", None]], "Errors & such.", strong={(0, 1)})
    page.figure(pretraining_curves({"a": {"energy_mae_mev_per_atom": curve}}), "A 'curve'.")
    page.figure(parity_plot([Parity("Energy", "eV", many, many)]), "Many points.", alt='A "plot".')
    page.details("Configuration", "a: <1>\nb: 2")
    return page.html()


@pytest.fixture(scope="module")
def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    return checker


def test_the_page_is_well_formed_and_loads_nothing(checked: Checker, html: str) -> None:
    assert checked.faults == []
    assert checked.open == []
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_are_used_once_and_links_lead_somewhere(checked: Checker) -> None:
    assert len(checked.ids) == len(set(checked.ids))
    links = {target[1:] for target in checked.targets if target.startswith("#")}
    assert links <= set(checked.ids)
    assert len([target for target in links if target.startswith("s")]) == 4


def test_texts_are_escaped_and_numbered(html: str) -> None:
    assert "<code>code &lt;b&gt;</code>" in html
    assert "a &lt;subtitle&gt;" in html
    assert "<b>Table 1.</b> Errors &amp; such." in html
    assert "<b>Figure 2.</b> Many points." in html
    assert 'aria-label="A &quot;plot&quot;."' in html
    assert "<strong>1.50</strong>" in html


def test_figures_and_tables_have_what_a_screen_reader_needs(checked: Checker, html: str) -> None:
    assert html.count('role="img"') == checked.tags.count("svg") == 2
    assert checked.tags.count("figcaption") == 2
    assert 'scope="col"' in html
    assert 'scope="row"' in html
    assert "<metadata" not in html


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        Page("a").table(["one"], [[1, 2]])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (-3, "−3"),
        (0.0281, "0.0281"),
        (21.345, "21.3"),
        (1234.5, "1,234"),
        (np.float32(2.5), "2.50"),
        (float("nan"), "–"),
        (float("-inf"), "−∞"),
        (1.5e-7, "1.50e-07"),
        ("text", "text"),
    ],
)
def test_cells_are_readable(value: object, text: str) -> None:
    assert format_cell(value) == text


def test_a_column_has_one_number_of_decimals() -> None:
    assert format_column([21.34, 176.02, None, 4.051]) == ["21.34", "176.02", "–", "4.05"]
    assert format_column([1, 20]) == ["1", "20"]
    assert format_column([0.00012, 300.5]) == ["1.20e-04", "300"]


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    path = Page("a").write(tmp_path / "new" / "page.html")
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
