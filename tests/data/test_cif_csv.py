"""Tables of CIF texts become crystals with the energy of the whole cell."""

import csv
import io
import lzma
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.readers import SkippedRecord
from lamm.data.readers.cif_csv import read_cif_csv
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure

# Diamond in its primitive cell, by hand; the second atom is written outside the cell.
DIAMOND = """data_C
_symmetry_space_group_name_H-M   'P 1'
_cell_length_a   2.5
_cell_length_b   2.5
_cell_length_c   4.0
_cell_angle_alpha   90
_cell_angle_beta   90
_cell_angle_gamma   120
_symmetry_Int_Tables_number   1
loop_
 _symmetry_equiv_pos_site_id
 _symmetry_equiv_pos_as_xyz
  1  'x, y, z'
loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_symmetry_multiplicity
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
  C  C0  1  0.0  0.0  0.25  1
  Si  Si1  1  0.5  0.0  -0.25  1
"""
HALF = DIAMOND.replace("0.25  1\n", "0.25  0.5\n")


def write(folder: Path, rows: list[dict[str, Any]], name: str = "made.csv") -> Path:
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def structures(path: Path, **header: Any) -> list[Structure]:
    read = list(read_cif_csv(path, CardHeader.model_validate(header)))
    assert all(isinstance(one, Structure) for one in read)
    return read  # type: ignore[return-value]


def complaint(path: Path, **header: Any) -> str:
    with pytest.raises(DataError) as error:
        structures(path, **header)
    assert path.name in str(error.value)
    return str(error.value)


def test_a_row_is_a_crystal(tmp_path: Path):
    (one,) = structures(write(tmp_path, [{"cif": DIAMOND, "energy_per_atom": -154.25}]))
    assert one.atomic_numbers.tolist() == [6, 14]
    cell = [[2.5, 0, 0], [-1.25, 2.5 * np.sqrt(3) / 2, 0], [0, 0, 4]]
    np.testing.assert_allclose(one.cell, cell, atol=1e-12)
    np.testing.assert_allclose(one.positions, [[0, 0, 1], [1.25, 0, 3]], atol=1e-12)
    assert one.pbc.all()
    assert one.energy == -308.5
    assert (one.id, one.origin) == ("made.csv:0", "made.csv:0")


@pytest.mark.parametrize(
    ("column", "entries", "expected"),
    [
        ("energy", {}, -3.0),
        ("energy_per_atom", {}, -6.0),
        ("energy", {"reader": {"per_atom": True}}, -6.0),
        ("energy_per_atom", {"reader": {"per_atom": False}}, -3.0),
        ("E", {"keys": {"energy": "E"}, "reader": {"per_atom": True}}, -6.0),
        ("E", {"keys": {"energy": "E"}, "units": {"energy": "meV"}}, -0.003),
        ("formation_energy", {}, None),
        ("energy", {"labels": []}, None),
    ],
)
def test_energies_are_of_the_whole_cell(
    tmp_path: Path, column: str, entries: dict[str, Any], expected: float | None
):
    (one,) = structures(write(tmp_path, [{"cif": DIAMOND, column: -3.0}]), **entries)
    assert one.energy == expected


def test_two_energies_want_a_word_from_the_card(tmp_path: Path):
    path = write(tmp_path, [{"cif": DIAMOND, "energy": -6.0, "energy_per_atom": -3.0}])
    assert "could all be the energy" in complaint(path)
    assert structures(path, keys={"energy": "energy"})[0].energy == -6.0


def test_ids_splits_and_columns_are_named_by_the_card(tmp_path: Path):
    row = {"text": DIAMOND, "material_id": "C-007", "fold": "val"}
    (one,) = structures(
        write(tmp_path, [row]),
        reader={"cif": "text"},
        keys={"id": "material_id", "split": "fold"},
    )
    assert (one.id, one.split, one.energy) == ("C-007", "val", None)


def test_symmetry_is_unfolded_as_ase_does(tmp_path: Path):
    text = io.BytesIO()
    ase.io.write(text, bulk("NaCl", "rocksalt", 5.64, cubic=True), format="cif")
    symmetric = text.getvalue().decode()
    (one,) = structures(write(tmp_path, [{"cif": symmetric, "energy_per_atom": -3.0}]))
    expected = ase.io.read(io.StringIO(symmetric), format="cif")
    np.testing.assert_array_equal(one.positions, expected.positions)
    assert one.energy == -24.0


def test_bad_rows_are_named_and_can_be_skipped(tmp_path: Path):
    rows = [
        {"cif": DIAMOND, "energy": "-3"},
        {"cif": "nothing", "energy": "-3"},
        {"cif": "", "energy": "-3"},
        {"cif": HALF, "energy": "-3"},
        {"cif": DIAMOND, "energy": ""},
        {"cif": DIAMOND, "energy": "low"},
        {"cif": DIAMOND, "energy": "nan"},
    ]
    path = write(tmp_path, rows)
    assert "row 1: not a CIF that ASE can read" in complaint(path, labels=["energy"])
    header = CardHeader(labels=("energy",))
    read = list(read_cif_csv(path, header, on_error="skip"))
    reasons = [one.reason for one in read if isinstance(one, SkippedRecord)]
    words = (
        "not a CIF",
        "nothing in the column 'cif'",
        "occupied by",
        "no 'energy'",
        "'low'",
        "energy is nan",
    )
    for reason, word in zip(reasons, words, strict=True):
        assert word in reason
    assert structures(write(tmp_path, [rows[4]]))[0].energy is None


def test_a_row_of_more_values_than_columns_is_an_error(tmp_path: Path):
    path = write(tmp_path, [{"cif": DIAMOND, "energy": -3.0}])
    path.write_text(path.read_text() + "a,b,c\n")
    first, second = read_cif_csv(path, CardHeader(), on_error="skip")
    assert isinstance(first, Structure)
    assert isinstance(second, SkippedRecord)
    assert "more values than the 2 columns" in second.reason


def test_labels_that_a_table_cannot_have_are_errors(tmp_path: Path):
    path = write(tmp_path, [{"cif": DIAMOND, "energy": -3.0}])
    assert "no forces" in complaint(path, labels=["energy", "forces"])
    assert "no 'name'" in complaint(path, keys={"id": "name"})
    with pytest.raises(ConfigError, match="per_cell"):
        structures(path, reader={"per_cell": True})


def test_a_record_is_the_same_wherever_reading_begins(tmp_path: Path):
    path = write(tmp_path, [{"cif": DIAMOND, "energy": -float(number)} for number in range(5)])
    part = list(read_cif_csv(path, CardHeader(), start=3, stop=5))
    assert [(one.id, one.energy) for one in part] == [  # type: ignore[union-attr]
        ("made.csv:3", -3.0),
        ("made.csv:4", -4.0),
    ]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01,cif\n", b"", b"a,b\n1,2\n"])
def test_files_that_are_no_such_table(tmp_path: Path, content: bytes):
    path = tmp_path / "made.csv"
    path.write_bytes(content)
    complaint(path)


def test_a_file_that_was_cut_short_is_an_error(tmp_path: Path):
    path = write(tmp_path, [{"cif": DIAMOND, "energy": -3.0}])
    packed = tmp_path / "made.csv.xz"
    packed.write_bytes(lzma.compress(path.read_bytes())[:-12])
    complaint(packed)


def test_a_store_is_made_of_a_table(tmp_path: Path):
    path = write(tmp_path, [{"cif": DIAMOND, "energy_per_atom": -1.0 - row} for row in range(3)])
    header = CardHeader(name="made", labels=("energy",), task="S2EF-Total")
    card = ingest("cif-csv", [path], tmp_path / "store", header)
    assert card.num_structures == card.num_periodic == 3
    assert card.keys_found == {"energy": "energy_per_atom"}


@pytest.mark.parametrize(("name", "count"), [("val", 2032), ("test", 2030)])
def test_carbon24_is_as_ase_reads_it(shared: Path, name: str, count: int):
    path = shared / "data" / "pretrain" / "carbon24" / f"{name}.csv.xz"
    with lzma.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count  # 4,062 together
    header = CardHeader.model_validate({"labels": ["energy"], "keys": {"id": "material_id"}})
    for start, stop in ((0, 60), (count - 20, None)):
        read = list(read_cif_csv(path, header, start=start, stop=stop))
        for one, row in zip(read, rows[start:stop], strict=True):
            assert isinstance(one, Structure)
            expected = ase.io.read(io.StringIO(row["cif"]), format="cif")
            assert (one.id, one.num_atoms) == (row["material_id"], len(expected))
            np.testing.assert_array_equal(one.positions, expected.positions)
            np.testing.assert_array_equal(one.cell, expected.cell.array)
            assert one.energy == pytest.approx(float(row["energy_per_atom"]) * len(expected))
    assert not list(read_cif_csv(path, header, start=count))
