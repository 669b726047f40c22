"""``lamm figures`` and ``lamm data info``: from a configuration to files and tables."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import lamm.data.writer
from commands import Lamm
from lamm.cli.info import group_reasons
from lamm.data.cards import CardHeader
from lamm.data.store import StoreWriter
from lamm.evaluate.dataset_figures import FILES
from small import small_store, small_structure


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stores and the configurations that name them."""
    path = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lamm.data.writer, "sync", lambda path: None)
        small_store(
            path / "forces", 40, functional="PBE", licence="CC0", citation=["A. Bee (2020)"]
        )
        small_store(path / "relaxed", 10, "E", task="IS2RE-Total", is_dft=False)
        small_store(path / "unlabelled", 20, "")
    data = {
        "val_fraction": 0,
        "subsets": {
            "zinc": {"store": str(path / "forces"), "max_atoms": 5},
            "relaxed": {"store": str(path / "relaxed")},
            "conformers": {"store": str(path / "unlabelled")},
        },
    }
    whole = {"to": "run", "model": "lamm-xs", "data": data, "train": {"steps": 3}}
    (path / "run.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    (path / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    (path / "other.yaml").write_text("model: lamm-xs\n")
    (path / "wrong.yaml").write_text("data: {subsets: {a: {stor: x}}}\n")
    return path


def test_a_run_and_its_data_section_alone_give_the_same_files(
    lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    for name in ("run", "data"):
        answer = lamm("figures", home / f"{name}.yaml", "--to", tmp_path / name)
        assert answer.status == 0, answer.err
        assert "2 of 3 subsets drawn" in answer.out
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(FILES)
    for name in ("fig2.csv", "fig4.csv", "fig2.svg", "fig4.svg", "table2.md"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "data" / name).read_bytes()
    assert (tmp_path / "run/table2.md").read_text().splitlines()[2].startswith(r"| zinc\* |")


def test_json_has_the_table_and_the_paths(lamm: Lamm, home: Path, tmp_path: Path) -> None:
    answer = lamm("figures", home / "run.yaml", "--to", tmp_path / "f", "--json", "--all")
    value = json.loads(answer.out)
    assert sorted(value["files"]) == sorted(FILES)
    assert all(Path(path).is_file() for path in value["files"].values())
    assert value["left_out"] == []
    assert [row["name"] for row in value["table2"]["subsets"]] == ["zinc", "relaxed", "conformers"]
    assert "IS2RE" not in (tmp_path / "f/index.html").read_text().split("<figure>")[1]


def test_an_override_changes_what_is_drawn(lamm: Lamm, home: Path, tmp_path: Path) -> None:
    words = (
        "figures",
        home / "run.yaml",
        "data.sampling.temperature=1",
        "--to",
        tmp_path,
        "--json",
    )
    table = json.loads(lamm(*words).out)["table2"]
    assert table["temperature"] == 1
    assert all(row["num_sampled"] == row["num_train"] for row in table["subsets"])


def test_files_are_replaced_only_when_told(lamm: Lamm, home: Path, tmp_path: Path) -> None:
    (tmp_path / "fig2.csv").write_text("precious")
    words = ("figures", home / "data.yaml", "--to", tmp_path)
    answer = lamm(*words)
    assert (answer.status, answer.out) == (2, "")
    assert "fig2.csv exists. Add --force" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["fig2.csv"]
    assert lamm(*words, "--force").status == 0
    assert (tmp_path / "fig2.csv").read_text() != "precious"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "found model, expected 'data' with 'subsets' below it"),
        ("wrong", "unknown key 'subsets.a.stor'. Did you mean"),
        ("none", "no such file"),
    ],
)
def test_a_configuration_without_a_joint_data_set_is_refused(
    lamm: Lamm, home: Path, tmp_path: Path, name: str, message: str
) -> None:
    answer = lamm("figures", home / f"{name}.yaml", "--to", tmp_path / "f")
    assert answer.status == 2
    assert message in answer.err
    assert not (tmp_path / "f").exists()


def test_info_of_a_configuration_has_its_limits_and_noise(lamm: Lamm, home: Path) -> None:
    answer = lamm("data", "info", "--config", home / "run.yaml")
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == [
        "Subset",
        "zinc*",
        "relaxed",
        "conformers",
        "Total",
    ]
    assert re.search(r"Denoising +N/A +✗ +N ", lines[3])
    assert "more than 5 atoms are excluded from zinc" in answer.out
    value = json.loads(lamm("data", "info", "--config", home / "run.yaml", "--json").out)
    assert value["joint"]["temperature"] == 2
    assert value["stores"][0]["store"] == str(home / "forces")
    assert value["stores"][0]["name"] == "zinc"


def test_info_wants_stores_or_a_configuration(lamm: Lamm, home: Path) -> None:
    both = lamm("data", "info", home / "forces", "--config", home / "run.yaml")
    for answer in (both, lamm("data", "info")):
        assert answer.status == 2
        assert "expected either stores or --config" in answer.err


def test_info_of_one_store_says_what_its_card_knows(lamm: Lamm, home: Path) -> None:
    out = lamm("data", "info", home / "forces").out
    assert "w/ TS" not in out
    for pattern in (
        r"structures +40: train \d+, val \d+, test 0",
        r"elements +H C O",
        r"labels +energy 40, forces 40",
        r"units +energy in eV",
        r"references +H -?[\d.]+, C -?[\d.]+, O -?[\d.]+ \(eV per atom\)",
        r"scales +energy [\d.]+ eV, forces [\d.]+ eV/Å",
        r"files +1 shard and an index, [\d.]+ kB",
        r"licence +CC0",
        r"citation +A. Bee \(2020\)",
    ):
        assert re.search(pattern, out), pattern


def test_info_of_a_store_the_package_ships(lamm: Lamm) -> None:
    out = lamm("data", "info", "mini:molecules_gfn2").out
    assert "GFN2-xTB†" in out
    assert "read from" in out


def test_info_groups_the_reasons_of_skipped_records(lamm: Lamm, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", CardHeader(name="s")) as writer:
        writer.add(small_structure(np.random.default_rng(0), "a"))
        for number in range(1200):
            writer.skip(f"f:{number}", f"energy is nan in line {number}")
        writer.skip("f:last", "never listed")
    out = lamm("data", "info", tmp_path / "s").out
    assert "1,201 records; reasons of the first 1,000" in out
    assert "1,000 × energy is nan in line …" in out


def test_reasons_differ_by_their_words_and_not_by_their_numbers() -> None:
    reasons = ["shape (3, 2)", "shape (4, 2)", "no key 'E2'", "no key 'E2'", "no key 'E2'"]
    assert group_reasons(reasons) == [("no key 'E2'", 3), ("shape (…, …)", 2)]


@pytest.mark.parametrize(("width", "ruled"), [(150, True), (60, False)])
def test_a_wide_terminal_gets_rules_and_no_column_is_cut(
    lamm: Lamm, home: Path, monkeypatch: pytest.MonkeyPatch, width: int, ruled: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    out = lamm("data", "info", "--config", home / "run.yaml").out
    assert ("───" in out) is ruled
    assert "…" not in out
    for word in ("zinc*", "conformers", "Denoising", "w/ TS"):
        assert word in out
