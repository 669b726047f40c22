"""Extended XYZ becomes structures in eV and Å, and a record that can't names itself."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_samples import FILES

from lamm.data.cards import CardHeader
from lamm.data.readers import FORMATS, KeysFound, SkippedRecord
from lamm.data.readers.extxyz import read_extxyz
from lamm.errors import DataError
from lamm.structure import Structure

WATER = FILES / "water.extxyz"
HARTREE, BOHR = 27.211386245988, 0.529177210903  # CODATA 2018


def structures(path: Path, **header: object) -> list[Structure]:
    read = list(read_extxyz(path, CardHeader.model_validate(header)))
    assert all(isinstance(one, Structure) for one in read)
    return read  # type: ignore[return-value]


def complaint(path: Path, **header: object) -> str:
    with pytest.raises(DataError) as error:
        structures(path, **header)
    return str(error.value)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A file of one record of hydrogen, with what a test needs in its comment and columns."""

    def write_file(comment: str = "", columns: str = "", row: str = "", element: str = "H") -> Path:
        path = tmp_path / "made.extxyz"
        properties = f"Properties=species:S:1:pos:R:3{columns}"
        path.write_text(f"1\n{properties} {comment}\n{element} 0 0 0 {row}\n", encoding="utf-8")
        return path

    return write_file


def test_the_dictionary_of_formats_has_it() -> None:
    assert FORMATS["extxyz"].read is read_extxyz


def test_a_hand_made_file_is_read() -> None:
    water, slab, lone = structures(WATER)
    assert water.atomic_numbers.tolist() == [8, 1, 1]
    assert water.positions.dtype == np.float64
    assert water.energy == -76.0
    assert water.forces is not None
    assert water.forces[0].tolist() == [0.0, 0.0, 0.1]
    assert not water.pbc.any()
    assert (water.id, water.split, water.origin) == ("w-001", "val", "water.extxyz:0")
    assert (water.fixed, water.stress) == (None, None)

    assert slab.cell.tolist() == [[8, 0, 0], [0.5, 8.5, 0], [0, 0, 20]]  # rows
    assert slab.pbc.tolist() == [True, True, False]
    assert slab.fixed is not None
    assert slab.fixed.tolist() == [True, True, False, False]
    assert slab.stress is not None
    assert slab.stress.tolist() == [1, 2, 3, 4, 5, 6]  # xx yy zz yz xz xy
    assert slab.forces is not None
    assert slab.forces[0].tolist() == [0.01, 0.02, 0.03]
    assert slab.id == "007"

    assert (lone.id, lone.split, lone.forces) == ("lone atom", "train", None)


def test_units_are_converted_once() -> None:
    units = {"energy": "Hartree", "length": "bohr", "stress": "GPa"}
    water, slab, _ = structures(WATER, units=units)
    assert water.energy == pytest.approx(-76.0 * HARTREE, rel=1e-14)
    assert water.positions[1, 0] == pytest.approx(1.8 * BOHR, rel=1e-14)
    assert slab.cell[2, 2] == pytest.approx(20 * BOHR, rel=1e-14)
    assert water.forces is not None
    assert water.forces[0, 2] == pytest.approx(0.1 * HARTREE / BOHR, rel=1e-14)
    assert slab.stress is not None
    assert slab.stress[0] == pytest.approx(1 / 160.21766208, rel=1e-8)  # eV/Å³ in GPa


def test_forces_may_have_a_unit_of_their_own() -> None:
    water = structures(WATER, units={"energy": "Hartree", "forces": "kcal/mol/Å"})[0]
    assert water.forces is not None
    assert water.forces[0, 2] == pytest.approx(0.1 * 0.0433641, rel=1e-6)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress)]
)
def test_compressed_files_are_read(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"water.extxyz{suffix}"
    path.write_bytes(compress(WATER.read_bytes()))
    assert [one.energy for one in structures(path)] == [-76.0, -300.5, -0.5]
    path.write_bytes(compress(WATER.read_bytes())[:-20])
    assert "damaged or cut short" in complaint(path) or "cut short" in complaint(path)


def test_labels_are_found_under_usual_names(write: Callable[..., Path]) -> None:
    path = write("REF_energy=1.5", ":REF_forces:R:3", "1 2 3")
    found = KeysFound()
    (one,) = read_extxyz(path, CardHeader(), found=found)
    assert isinstance(one, Structure)
    assert one.energy == 1.5
    assert one.forces is not None
    assert found.names == {"energy": "REF_energy", "forces": "REF_forces"}


def test_the_card_names_any_key(write: Callable[..., Path]) -> None:
    path = write("energy=1 e0=2 name=x fold=Validation", ":hold:I:1:f:R:3", "1 4 5 6")
    keys = {"energy": "e0", "forces": "f", "fixed": "hold", "id": "name", "split": "fold"}
    (one,) = structures(path, keys=keys)
    assert (one.energy, one.id, one.split) == (2.0, "x", "val")
    assert one.forces is not None
    assert one.forces.tolist() == [[4, 5, 6]]
    assert one.fixed is not None
    assert one.fixed.tolist() == [True]


def test_none_ignores_what_the_source_has(write: Callable[..., Path]) -> None:
    path = write("id=x split=fold-3", ":fixed:L:1", "T")
    (one,) = structures(path, keys={"id": "none", "split": "none", "fixed": "none"})
    assert (one.id, one.split, one.fixed) == ("made.extxyz:0", None, None)


def test_labels_left_out_of_the_card_are_left_out(write: Callable[..., Path]) -> None:
    path = write("energy=1", ":forces:R:3", "1 2 3")
    (one,) = structures(path, labels=["energy"])
    assert (one.energy, one.forces) == (1.0, None)
    (bare,) = structures(path, labels=[])
    assert (bare.energy, bare.forces) == (None, None)


def test_a_name_that_looks_like_a_number_stays_a_name(write: Callable[..., Path]) -> None:
    assert structures(write("id=1e5"))[0].id == "1e5"
    assert structures(write("id=T energy=1"))[0].id == "T"
    assert structures(write('id="1 2"'))[0].id == "1 2"


def test_a_plain_xyz_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plain.xyz"
    path.write_text("2\na comment\nH 0 0 0\nH 0 0 0.74\n\n\n1\n\nHe 0 0 0")
    hydrogen, helium = structures(path)
    assert hydrogen.positions[1, 2] == 0.74
    assert helium.atomic_numbers.tolist() == [2]


def test_a_constraint_along_one_axis_holds_the_atom(write: Callable[..., Path]) -> None:
    (one,) = structures(write("", ":move_mask:L:3", "T T F"))
    assert one.fixed is not None
    assert one.fixed.tolist() == [True]


@pytest.mark.parametrize(
    ("record", "header", "expected"),
    [
        ({"comment": "energy=nan"}, {}, "energy is nan"),
        ({"comment": "energy=high"}, {}, "'energy' is 'high', expected numbers"),
        ({"comment": "energy"}, {}, "expected one number for the energy"),
        (
            {"columns": ":forces:R:3", "row": "0 nan 0"},
            {},
            "'forces' has a value that is not finite",
        ),
        (
            {"columns": ":forces:R:2", "row": "0 0"},
            {},
            "'forces' has shape (1, 2), expected (1, 3) for 1 atoms",
        ),
        ({"columns": ":forces:R:3", "row": "0 0"}, {}, "atom 0 has 6 columns, expected 7"),
        ({"row": "0"}, {}, "atom 0 has 5 columns, expected 4"),
        ({"element": "Xy"}, {}, "unknown element 'Xy'"),
        ({"element": "X"}, {}, "unknown element 0"),
        ({"comment": 'pbc="T F F"'}, {}, "periodic along [True, False, False] but the cell"),
        ({"comment": 'stress="1 2 3"'}, {}, "stress"),
        ({"comment": 'REF_stress="1 2 3"'}, {}, "'REF_stress' has shape (3,), expected 6 or 9"),
        (
            {"comment": 'REF_stress="1 2 3 0 1 0 0 0 1"'},
            {},
            "'REF_stress' is not symmetric",
        ),
        ({"comment": "split=fold-3"}, {}, "'split' is 'fold-3'"),
        (
            {"comment": "energy=1 dft_energy=2"},
            {},
            "'energy', 'dft_energy' could all be the energy.\n  Say which it is with `keys:",
        ),
        (
            {"comment": "E=1"},
            {"labels": ["energy"]},
            "no 'energy', which the card promises; the record has: E, positions, symbols.\n  Name",
        ),
        (
            {"comment": "energy=1"},
            {"keys": {"energy": "E"}},
            "no 'E', which the card promises; the record has: energy, positions, symbols",
        ),
        ({}, {"keys": {"id": "name"}}, "no 'name', which the card names under `keys.id`"),
        ({}, {"keys": {"split": "fold"}}, "no 'fold', which the card names under `keys.split`"),
        ({}, {"keys": {"fixed": "hold"}}, "no 'hold', which the card names under `keys.fixed`"),
    ],
)
def test_a_bad_record_names_itself(
    write: Callable[..., Path],
    record: dict[str, str],
    header: dict[str, object],
    expected: str,
) -> None:
    path = write(**record)
    text = complaint(path, **header)
    assert text.startswith(f"{path}, record 0 (line 1): ")
    assert expected in text


def test_a_file_that_is_not_cut_right_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.extxyz"
    good = "1\nenergy=1\nH 0 0 0\n"
    path.write_text(good + "2\nenergy=1\nH 0 0 0\n")
    assert "x.extxyz, record 1 (line 4): the file ends after 1 of 2 atoms" in complaint(path)
    path.write_text(good + "9" * 15)
    assert "record 1 (line 4): the file ends after 0 of 999999999999999 atoms" in complaint(path)
    path.write_text(good + "H 0 0 1\n" + good)
    assert "x.extxyz, line 4: found 'H 0 0 1', expected the number of atoms" in complaint(path)
    path.write_text(good + "0\n\n")
    assert "x.extxyz, record 1 (line 4): no atoms" in complaint(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in complaint(path)
    assert "no such file" in complaint(tmp_path / "nowhere.xyz")


def test_one_file_calls_a_label_by_one_name(tmp_path: Path) -> None:
    path = tmp_path / "x.extxyz"
    path.write_text("1\nenergy=1\nH 0 0 0\n1\nREF_energy=1\nH 0 0 0\n")
    text = complaint(path)
    assert "record 1 (line 4): its energy label is called 'REF_energy', and 'energy' in" in text


def test_a_bad_record_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.extxyz"
    path.write_text("1\nenergy=1\nH 0 0 0\n1\nenergy=nan\nH 0 0 0\n1\nenergy=3\nH 0 0 0\n")
    first, bad, last = read_extxyz(path, CardHeader(), on_error="skip")
    assert isinstance(first, Structure)
    assert isinstance(bad, SkippedRecord)
    assert isinstance(last, Structure)
    assert (bad.record, last.origin) == ("x.extxyz:1", "x.extxyz:2")
    assert bad.reason.startswith("energy is nan")
