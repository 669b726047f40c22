"""``lamm data``: what it prints, and how it answers a wrong request."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from data_samples import FILES, assert_same, some_structures
from typer.testing import CliRunner, Result

from lamm.cli.data import app
from lamm.data.store import Store
from lamm.errors import LaMMError

WATER = str(FILES / "water.extxyz")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def run_json(*words: str | Path) -> dict[str, object]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    value: dict[str, object] = json.loads(result.stdout)
    return value


def complaint(*words: str | Path) -> str:
    result = run(*words)
    assert isinstance(result.exception, LaMMError), result.output
    return str(result.exception)


def test_ingest_says_what_it_made(tmp_path: Path) -> None:
    card = tmp_path / "card.yaml"
    card.write_text("name: water\nfunctional: PBE\nunits: {energy: eV}\n")
    result = run("ingest", "extxyz", WATER, "--to", tmp_path / "s", "--card", card)
    assert result.exit_code == 0, result.output
    assert f"3 structures, 8 atoms -> {tmp_path / 's'}" in result.stdout
    assert "labels: energy 3, forces 2, stress 1" in result.stdout
    assert Store.open(tmp_path / "s").card.functional == "PBE"


def test_ingest_as_json_writes_one_object(tmp_path: Path) -> None:
    answer = run_json("ingest", "extxyz", WATER, "--to", tmp_path / "s")
    assert answer["store"] == str(tmp_path / "s")
    assert answer["card"]["num_structures"] == 3  # type: ignore[index]
    assert answer["card"]["name"] == "s"  # type: ignore[index]


def test_ingest_says_what_was_skipped_and_what_is_odd(tmp_path: Path) -> None:
    source = tmp_path / "x.xyz"
    source.write_text("1\nsplit=val\nH 0 0 0\n1\nenergy=nan\nH 0 0 0\n")
    result = run("ingest", "extxyz", source, "--to", tmp_path / "s", "--on-error", "skip")
    assert "skipped: 1 records" in result.stdout
    assert "x.xyz:1: energy is nan" in result.stdout
    assert "no structure is for training" in result.stdout


def test_info_has_the_columns_of_table_2(make_store: Callable[..., Store]) -> None:
    first = make_store(some_structures(60), "first", domain="Molecule", functional="PBE0")
    result = run("info", first.path)
    assert result.exit_code == 0, result.output
    title, row, *details = result.stdout.splitlines()
    for word in ("Domain", "Task", "DFT functional", "Periodic", "Labels", "# avg. atoms"):
        assert word in title
    assert title.endswith("# samples")
    for word in ("first", "Molecule", "S2EF-T", "PBE0", "mixed", "E, F, S"):
        assert word in row
    assert row.endswith(str(first.card.num_train))
    assert any(line.startswith("structures") and "60: train" in line for line in details)


def test_several_stores_are_also_one_joint_data_set(make_store: Callable[..., Store]) -> None:
    large = make_store(some_structures(160), "large")
    small = make_store(some_structures(10), "small")
    answer = run_json("info", large.path, small.path)
    rows = {row["name"]: row for row in answer["stores"]}  # type: ignore[attr-defined]
    sizes = [rows[name]["num_train"] for name in ("large", "small")]
    sampled = [rows[name]["num_sampled"] for name in ("large", "small")]
    assert sampled == [sizes[0], round(sizes[0] * (sizes[1] / sizes[0]) ** 0.5)]
    assert answer["joint"]["num_sampled"] == sum(sampled)  # type: ignore[index]
    result = run("info", large.path, small.path)
    lines = result.stdout.splitlines()
    assert lines[3].startswith("Total")
    assert "# samples w/ TS" in lines[0]
    assert "temperature sampling with T = 2" in lines[5]


def test_split_tells_the_sources_word_from_the_hash(
    make_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = make_store(some_structures(100))
    path = tmp_path / "split.csv"
    answer = run_json("split", store.path, "--val-fraction", "0.5", "--to", path)
    splits: dict[str, dict[str, int]] = answer["splits"]  # type: ignore[assignment]
    assert [splits[name]["by_source"] for name in ("train", "val", "test")] == [25, 25, 25]
    assert sum(row["by_hash"] for row in splits.values()) == 25
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [one.id for one in store]
    assert sum(row["split"] == "val" for row in rows) == splits["val"]["structures"]
    assert "by hash" in run("split", store.path).stdout


def test_export_and_ingest_give_the_same_store(
    make_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = make_store(some_structures(40))
    path = tmp_path / "out.extxyz"
    assert run_json("export", store.path, "--to", path)["num_structures"] == 40
    run_json("ingest", "extxyz", path, "--to", tmp_path / "again")
    for number, (one, original) in enumerate(
        zip(Store.open(tmp_path / "again"), store, strict=True)
    ):
        assert one.id == original.id
        assert abs(one.positions - original.positions).max() < 1e-8
        assert one.energy == original.energy
        assert one.split == original.split
        assert (one.forces is None) == (original.forces is None)
        if original.fixed is not None and original.fixed.any():
            assert one.fixed is not None
            assert one.fixed.tolist() == original.fixed.tolist()
        assert (one.stress is None) == (original.stress is None), number


def test_export_replaces_a_file_only_when_told(
    make_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = make_store(some_structures(3))
    path = tmp_path / "out.extxyz"
    path.write_text("precious")
    assert "the file exists. Add --force" in complaint("export", store.path, "--to", path)
    assert path.read_text() == "precious"
    assert run("export", store.path, "--to", path, "--force").exit_code == 0
    assert "expected a name ending in .extxyz" in complaint(
        "export", store.path, "--to", tmp_path / "out.cif"
    )


class TestAWrongRequest:
    def ingest(self, tmp_path: Path, text: str, card: str = "{}") -> str:
        (tmp_path / "in.extxyz").write_text(text)
        (tmp_path / "card.yaml").write_text(card)
        to = tmp_path / "new" / "store"
        answer = complaint(
            "ingest", "extxyz", tmp_path / "in.extxyz", "--to", to, "--card", tmp_path / "card.yaml"
        )
        assert not to.parent.exists() or not list(to.parent.iterdir())
        return answer

    def test_nan_label(self, tmp_path: Path) -> None:
        text = self.ingest(tmp_path, "1\nenergy=1\nH 0 0 0\n1\nenergy=nan\nH 0 0 0\n")
        assert "in.extxyz, record 1 (line 4): energy is nan. Mend the record" in text

    def test_wrong_shape(self, tmp_path: Path) -> None:
        record = "1\nProperties=species:S:1:pos:R:3:forces:R:2\nH 0 0 0 1 2\n"
        assert "'forces' has shape (1, 2), expected (1, 3)" in self.ingest(tmp_path, record)

    def test_unknown_element(self, tmp_path: Path) -> None:
        assert "unknown element 'Zz'" in self.ingest(tmp_path, "1\n\nZz 0 0 0\n")

    def test_no_atoms(self, tmp_path: Path) -> None:
        assert "no atoms; a structure has at least one" in self.ingest(tmp_path, "0\n\n")

    def test_missing_label(self, tmp_path: Path) -> None:
        text = self.ingest(tmp_path, "1\nE=1\nH 0 0 0\n", "labels: [energy]")
        assert "no 'energy', which the card promises; the record has: E" in text

    def test_unknown_key_in_the_card(self, tmp_path: Path) -> None:
        text = self.ingest(tmp_path, "1\n\nH 0 0 0\n", "unit: {energy: eV}")
        assert "card.yaml: unknown key 'unit'. Did you mean 'units'?" in text

    def test_unknown_unit_in_the_card(self, tmp_path: Path) -> None:
        text = self.ingest(tmp_path, "1\n\nH 0 0 0\n", "units: {energy: Hartre}")
        assert "card.yaml: 'units': unknown energy unit 'Hartre'. Did you mean 'Hartree'?" in text

    def test_missing_card(self, tmp_path: Path) -> None:
        words = ("ingest", "extxyz", WATER, "--to", tmp_path / "s", "--card", tmp_path / "c.yaml")
        assert "c.yaml: no such file" in complaint(*words)

    def test_unknown_format(self, tmp_path: Path) -> None:
        assert "Did you mean 'extxyz'?" in complaint("ingest", "xyz", WATER, "--to", tmp_path / "s")

    def test_missing_source(self, tmp_path: Path) -> None:
        words = ("ingest", "extxyz", tmp_path / "none", "--to", tmp_path / "s")
        assert "no such file or folder" in complaint(*words)

    def test_a_store_that_is_there_already(self, make_store: Callable[..., Store]) -> None:
        store = make_store(some_structures(2))
        text = complaint("ingest", "extxyz", WATER, "--to", store.path)
        assert "something at this path already" in text
        assert_same(Store.open(store.path)[0], store[0])

    @pytest.mark.parametrize("verb", ["info", "split", "export"])
    def test_no_store(self, tmp_path: Path, verb: str) -> None:
        words = ("--to", tmp_path / "x.extxyz") if verb == "export" else ()
        assert "there is no store at this path" in complaint(verb, tmp_path / "none", *words)

    def test_a_shard_cut_short(self, make_store: Callable[..., Store], tmp_path: Path) -> None:
        store = make_store(some_structures(5))
        shard = store.path / "shard-00000.arrow"
        shard.write_bytes(shard.read_bytes()[:-100])
        text = complaint("export", store.path, "--to", tmp_path / "out.extxyz")
        assert "shard-00000.arrow: found" in text
        assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_the_command_exits_with_2_and_one_message(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lamm", "data", "info", str(tmp_path / "none")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("StoreError: ")
    assert "Traceback" not in done.stderr
