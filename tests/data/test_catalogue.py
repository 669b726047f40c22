"""The catalogue: every entry can be used, wrong ones are refused, and the command shows them."""

import json
from importlib.resources import files
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from lamm.cli.data import app
from lamm.data.cards import CardHeader
from lamm.data.catalogue import FOLDERS, Blocks, Entry, SourceFile, find, load_catalogue
from lamm.data.readers import FORMATS
from lamm.errors import ConfigError
from lamm.schema import parse

CATALOGUE = load_catalogue()
NAMES = {
    *("oc20-s2ef", "oc20-s2ef-lmdb", "oc20-is2re", "oc22-s2ef", "oc22-is2re"),
    *("odac23-s2ef", "odac23-is2re", "transition1x", "qm7x", "qmugs", "pubchem3d", "hme21"),
    *("omat24", "omol25", "odac25", "spice", "ani1x", "ani2x", "rmd17", "comp6"),
}
every_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)


def test_every_data_set_of_the_paper_is_known() -> None:
    assert set(CATALOGUE) >= NAMES


def test_every_file_of_the_catalogue_is_an_entry() -> None:
    listed = {item.name for item in files("lamm.data.catalogue").iterdir()}
    assert {f"{name}.yaml" for name in CATALOGUE} == {n for n in listed if n.endswith(".yaml")}


@every_entry
def test_the_reader_understands_the_entry(entry: Entry) -> None:
    assert entry.format in FORMATS
    parse(FORMATS[entry.format].options, entry.header.reader, entry.name)


@every_entry
def test_the_header_says_what_a_card_needs(entry: Entry) -> None:
    header = entry.header
    assert header.domain
    assert header.task
    assert header.labels is not None
    assert header.source
    assert header.is_dft is not None
    if header.task == "denoising":
        assert not header.labels
    else:
        assert header.functional
        assert header.energy_convention
        assert "energy" in header.labels
        assert ("forces" in header.labels) == (header.task.startswith("S2EF")) or (
            entry.name == "qmugs"
        )


@every_entry
def test_what_is_ingested_is_what_the_format_reads(entry: Entry) -> None:
    for file in entry.files:
        if not file.aside and file.unpack not in FOLDERS:
            assert file.product.lower().endswith(FORMATS[entry.format].suffixes)


@every_entry
def test_addresses_are_encrypted_and_end_in_the_kind_of_archive(entry: Entry) -> None:
    for file in entry.files:
        assert file.url.startswith("https://")
        assert " " not in file.url
        if file.unpack != "none":
            assert PurePosixPath(file.file_name).name.endswith(f".{file.unpack}") or (
                "figshare" in urlsplit(file.url).netloc
            )


def test_published_checksums_are_those_of_the_documentation() -> None:
    # Typed from FAIR-Chem's pages on their own, not copied from the catalogue.
    published = {
        ("oc20-s2ef", "train_200K"): "f8d0909c2623a393148435dede7d3a46",
        ("oc20-s2ef", "val_id"): "f57f7f5c1302637940f2cc858e789410",
        ("oc20-is2re", "all"): "cfc04dd2f87b4102ab2f607240d25fb1",
        ("oc22-s2ef", "all"): "ebea523c6f8d61248a37b4dd660b11e6",
        ("odac23-s2ef", "all"): "162f0660b2f1c9209c5b57f7b9e545a7",
    }
    for (name, part), md5 in published.items():
        (file,) = find(name).choose_files([part])
        assert file.md5 == md5


def test_blocks_of_pubchem_are_called_as_pubchem_does() -> None:
    first, last = find("pubchem3d").choose_files(["0-1"])
    folder = "https://ftp.ncbi.nlm.nih.gov/pubchem/Compound_3D/01_conf_per_cmpd/SDF/"
    assert first.url == folder + "00000001_00025000.sdf.gz"
    assert last.url == folder + "00025001_00050000.sdf.gz"
    assert first.file_name == "00000001_00025000.sdf.gz"


@pytest.mark.parametrize("part", ["7200", "5-2", "-1", "a", "0-7200", "0-1-2", ""])
def test_blocks_that_cannot_be_are_refused(part: str) -> None:
    with pytest.raises(ConfigError, match=r"pubchem3d: no parts .* numbers from 0 to 7199"):
        find("pubchem3d").choose_files([part])


@pytest.mark.parametrize("name", ["oc20-s2ef", "pubchem3d", "omol25"])
def test_parts_that_overlap_have_to_be_chosen(name: str) -> None:
    with pytest.raises(ConfigError, match=r"Say which with --parts"):
        find(name).choose_files()


def test_files_behind_a_log_in_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"(?s)behind a log-in.*hf download facebook/ODAC25"):
        find("odac25").choose_files()


def test_a_wrong_name_is_met_with_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'oc20_s2ef'.*'oc20-s2ef'"):
        find("oc20_s2ef")


def file_of(**entries: object) -> SourceFile:
    return SourceFile.model_validate({"part": "p", "url": "https://x.org/f.tar.gz", **entries})


def test_sizes_are_read_with_their_units() -> None:
    assert file_of(size="344 MiB").about_bytes == 344 * 2**20
    assert file_of(size="1.1 TiB").size == round(1.1 * 2**40)
    assert file_of(size="3.7 GB", bytes=12).about_bytes == 12
    with pytest.raises(ValidationError, match="expected a number and one of"):
        file_of(size="344M")


@pytest.mark.parametrize(
    "entries",
    [
        {"url": "ftp://x.org/f"},
        {"url": "file:///etc/passwd"},
        {"url": "https://x.org/"},
        {"name": "../f"},
        {"unpack": "tar", "unpacked": "../up"},
        {"unpack": "tar", "ingest": ["../up"]},
        {"unpack": "tar", "ingest": ["/up"]},
        {"ingest": ["x"]},
        {"md5": "xyz"},
        {"md5": "0" * 31},
        {"sha256": "0" * 32},
        {"unpack": "rar"},
        {"bytes": -1},
    ],
    ids=str,
)
def test_a_wrong_file_is_refused(entries: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        file_of(**entries)


def test_what_unpacking_makes_has_a_name() -> None:
    assert file_of().product == "f.tar.gz"
    assert file_of(unpack="tar.gz").product == "p"
    assert file_of(unpack="tar.gz", unpacked="q").product == "q"
    assert file_of(url="https://x.org/a.h5.xz", unpack="xz").product == "a.h5"
    assert file_of(url="https://x.org/download?files=a", name="a.sdf").product == "a.sdf"


def entry_of(**entries: object) -> Entry:
    header = {"licence": "CC0-1.0", "citation": ["nobody"]}
    base = {"name": "n", "title": "t", "format": "extxyz", "homepage": "h", "header": header}
    return Entry.model_validate(base | entries)


def test_an_entry_says_how_its_files_are_had_in_one_way() -> None:
    block = Blocks(url="https://x.org/{first}", count=1, records=1)
    assert entry_of(files=[file_of()])
    with pytest.raises(ValidationError, match="write one of"):
        entry_of()
    with pytest.raises(ValidationError, match="write one of"):
        entry_of(files=[file_of()], blocks=block)


def test_an_entry_needs_a_licence_and_no_two_files_of_one_name() -> None:
    with pytest.raises(ValidationError, match="needs `licence` and `citation`"):
        entry_of(files=[file_of()], header=CardHeader(licence="MIT"))
    with pytest.raises(ValidationError, match=r"two files are called 'f\.tar\.gz'"):
        entry_of(files=[file_of(), file_of(part="q")])


def test_the_list_has_a_line_for_each() -> None:
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        *("name", "domain", "task", "functional", "labels"),
        *("structures", "size", "licence", "parts"),
    ]
    assert [line.split()[0] for line in lines[1 : len(CATALOGUE) + 1]] == list(CATALOGUE)
    (row,) = (line for line in lines if line.startswith("qm7x"))
    assert row.split()[1:] == ["Molecule", "S2EF-Total", "PBE0+MBD", "E,", "F", *row.split()[6:]]
    assert "4,195,237" in row


@every_entry
def test_each_can_be_shown(entry: Entry) -> None:
    result = CliRunner().invoke(app, ["list", entry.name])
    assert result.exit_code == 0, result.output
    assert f"lamm data ingest {entry.name}" in result.stdout
    assert entry.header.citation[0] in result.stdout
    for file in entry.files:
        assert file.url in result.stdout


def test_json_says_where_no_checksum_is_published() -> None:
    result = CliRunner().invoke(app, ["list", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)["datasets"]}
    assert list(rows) == list(CATALOGUE)
    assert rows["omol25"]["files"][0]["md5"] is None
    assert rows["omol25"]["files"][0]["checksum_published"] is False
    assert rows["rmd17"]["files"][0]["checksum_published"] is True
    assert rows["rmd17"]["files"][0]["bytes"] == 1_066_301_513
    assert rows["oc20-s2ef"]["files"][0]["bytes"] is None
    assert rows["oc20-s2ef"]["files"][0]["about_bytes"] == 344 * 2**20
    alone = CliRunner().invoke(app, ["list", "spice", "--json"])
    assert json.loads(alone.stdout) == rows["spice"]
