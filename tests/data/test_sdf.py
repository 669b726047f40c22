"""SDF files: tables, data fields, compression, records without a structure, damage."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sdf_samples import WATER, molblock, record

from lamm.data.cards import CardHeader
from lamm.data.readers import FORMATS, KeysFound, SkippedRecord
from lamm.data.readers.molfile import parse_molecule
from lamm.data.readers.sdf import SUFFIXES, read_sdf
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure


def write(folder: Path, *records: str) -> Path:
    path = folder / "a.sdf"
    path.write_bytes("".join(records).encode())
    return path


def read(path: Path, *, on_error: Any = "stop", **header: Any) -> list[Any]:
    return list(read_sdf(path, CardHeader(**header), on_error=on_error))


def structure(path: Path, **header: Any) -> Structure:
    (one,) = read(path, **header)
    assert isinstance(one, Structure)
    return one


def reason(path: Path, **header: Any) -> str:
    (one,) = read(path, **header)
    assert isinstance(one, SkippedRecord)
    return one.reason


def test_a_molecule_has_the_atoms_of_its_table(tmp_path: Path) -> None:
    one = structure(write(tmp_path, record()))
    assert one.atomic_numbers.tolist() == [8, 1, 1]
    assert one.positions.tolist() == [list(atom[1:]) for atom in WATER]
    assert not one.pbc.any()
    assert (one.energy, one.forces, one.stress) == (None, None, None)
    assert one.id == one.origin == "a.sdf:0"


def test_coordinates_are_the_numbers_that_float_reads(rng: np.random.Generator) -> None:
    values = np.concatenate(
        [rng.uniform(-9999, 9999, 300), rng.uniform(-1, 1, 300), [0.0, -0.0001, 99999.9999, -0.0]]
    ).round(4)
    atoms = tuple(("C", float(x), 1.0, -1.0) for x in values)
    molecule = parse_molecule(molblock(atoms).encode())
    expected = [float(f"{x:10.4f}") for x in values]
    assert molecule.positions[:, 0].tolist() == expected


def test_coordinates_that_touch_are_told_apart_by_their_columns(tmp_path: Path) -> None:
    atoms = (("C", -1234.5678, -1000.25, -9999.9999), ("N", 12345.6789, 10000.5, 99999.0))
    one = structure(write(tmp_path, record(molblock(atoms))))
    assert one.positions.tolist() == [list(atom[1:]) for atom in atoms]


@pytest.mark.parametrize(
    "column", ["  1.23456 ", " 1.5e+00  ", "      2   ", "    1.2.34", "  1 0.0000", "   --1.000"]
)
def test_numbers_of_another_form_are_read_by_float_or_refused(column: str) -> None:
    text = molblock().replace(f"{0.1173:10.4f}", column)
    try:
        expected = float(column)
    except ValueError:
        with pytest.raises(DataError, match="a coordinate isn't a number in its 10 columns"):
            parse_molecule(text.encode())
    else:
        assert parse_molecule(text.encode()).positions[0, 2] == expected


@pytest.mark.parametrize("change", [lambda s: s, lambda s: s.replace("\n", "\r\n")])
@pytest.mark.parametrize("cut", [100, 34, 32])
def test_lines_may_be_shorter_and_end_as_in_windows(
    tmp_path: Path, change: Callable[[str], str], cut: int
) -> None:
    table = "\n".join(line[:cut].rstrip() for line in molblock().split("\n"))
    table = table.replace("  0  0  0\n", "\n").replace("  3  0  0", "  3  0  0 ")
    header = molblock().split("\n")[3]
    lines = table.split("\n")
    lines[3] = header
    one = structure(write(tmp_path, change(record("\n".join(lines), A="1"))))
    assert one.atomic_numbers.tolist() == [8, 1, 1]
    assert one.positions.tolist() == [list(atom[1:]) for atom in WATER]


def test_isotopes_and_symbols_of_two_letters_are_elements() -> None:
    atoms = tuple((one, 0.0, 0.0, 1.0) for one in ("D", "T", "Cl", "BR", "Si", "W", "Og"))
    molecule = parse_molecule(molblock(atoms).encode())
    assert molecule.atomic_numbers.tolist() == [1, 1, 17, 35, 14, 74, 118]


@pytest.mark.parametrize("symbol", ["R#", "R1", "A", "Q", "*", "L", "LP", "Du", "X", "Pol"])
def test_a_place_holder_is_passed_over_with_the_reason(tmp_path: Path, symbol: str) -> None:
    path = write(tmp_path, record(molblock((("C", 0.0, 0.0, 1.0), (symbol, 1.0, 0.0, 0.0)))))
    assert reason(path).startswith(f"atom 1 is '{symbol}', which is no element")


V3000 = """big
     RDKit          3D

  0  0  0  0  0  0  0  0  0  0999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 2 1 0 0 0
M  V30 BEGIN ATOM
M  V30 1 C -1.5 0.25 0.125 0
M  V30 2 Cl 1.123456 -
M  V30 2.5 -0.75 0 CHG=-1
M  V30 END ATOM
M  V30 BEGIN BOND
M  V30 1 1 1 2
M  V30 END BOND
M  V30 END CTAB
M  END
"""


def test_a_table_of_v3000_is_read(tmp_path: Path) -> None:
    one = structure(write(tmp_path, record(V3000, NAME="x")), keys={"id": "NAME"})
    assert one.atomic_numbers.tolist() == [6, 17]
    assert one.positions.tolist() == [[-1.5, 0.25, 0.125], [1.123456, 2.5, -0.75]]
    assert one.id == "x"


def test_data_fields_have_names_and_values_of_several_lines() -> None:
    text = molblock() + (
        "> 25 <MELTING.POINT>\n179.0\n\n>  <EMPTY>\n\n> <LINES>  (1) \n1\n>2 <x>\n3\n\n"
        "> <A:B>\nb <1>\n\n"
    )
    molecule = parse_molecule(text.encode())
    fields = {name: molecule.field(name) for name in molecule.fields}
    assert fields == {
        "MELTING.POINT": "179.0",
        "EMPTY": "",
        "LINES": "1\n>2 <x>\n3",
        "A:B": "b <1>",
    }


def test_a_named_field_is_a_label_in_its_unit(tmp_path: Path) -> None:
    path = write(tmp_path, record(E__TOTAL="-76.5", F="1 2 3\n4 5 6\n7 8 9", OTHER="1"))
    found = KeysFound()
    header = CardHeader(
        keys={"energy": "E:TOTAL", "forces": "F"}, units={"energy": "Hartree", "length": "Å"}
    )
    (one,) = read_sdf(path, header, found=found)
    assert isinstance(one, Structure)
    assert one.energy == pytest.approx(-76.5 * 27.211386245988, rel=1e-14)  # CODATA 2018
    assert one.forces is not None
    assert one.forces[2].tolist() == pytest.approx([x * 27.211386245988 for x in (7, 8, 9)])
    assert found.names == {"energy": "E:TOTAL", "forces": "F"}
    assert list(found.seen) == ["E:TOTAL", "F", "OTHER"]


def test_no_field_is_a_label_unless_it_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, record(PUBCHEM_MMFF94_ENERGY="39.5", energy="1.0"))
    assert structure(path).energy is None
    with pytest.raises(DataError, match=r"record 0 \(line 1\): no 'energy', which the card prom"):
        read(path, labels=["energy"])


@pytest.mark.parametrize("value", ["", "nan", "NaN", "None"])
def test_an_energy_that_is_not_known_passes_the_record_over(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, record(E=value))
    assert "the energy isn't known" in reason(path, keys={"energy": "E"})


def test_an_id_is_a_field_a_pattern_of_fields_or_the_title(tmp_path: Path) -> None:
    path = write(tmp_path, record(CID="2244", CONF="01"))
    assert structure(path, keys={"id": "CID"}).id == "2244"
    assert structure(path, keys={"id": "cid:{CID}/{CONF}"}).id == "cid:2244/01"
    assert structure(path, keys={"id": "title"}).id == "water"
    assert structure(path, keys={"id": "none"}).id == "a.sdf:0"
    with pytest.raises(DataError, match=r"no 'X', which the card names under `keys.id`; .*CONF"):
        read(path, keys={"id": "{X}"})


def test_a_split_is_that_of_its_field(tmp_path: Path) -> None:
    path = write(tmp_path, record(PART="valid"))
    assert structure(path, keys={"split": "PART"}).split == "val"
    with pytest.raises(DataError, match="'CID' is '1'"):
        read(write(tmp_path, record(CID="1")), keys={"split": "CID"})


FLAT = tuple((symbol, x, y, 0.0) for symbol, x, y, _ in (*WATER, ("C", 1.0, 2.0, 0.0)))


@pytest.mark.parametrize(
    ("atoms", "dimensions", "is_kept"),
    [
        (FLAT, "2D", False),
        (FLAT, "  ", False),
        (FLAT, "3D", True),
        (FLAT[:3], "  ", True),
        (FLAT[:2], "2D", False),
        (WATER, "2D", True),
        ((("He", 0.0, 0.0, 0.0),), "  ", True),
    ],
)
def test_a_drawing_is_passed_over_and_a_flat_molecule_is_not(
    tmp_path: Path, atoms: Any, dimensions: str, is_kept: bool
) -> None:
    path = write(tmp_path, record(molblock(atoms, dimensions=dimensions)))
    assert isinstance(read(path)[0], Structure) == is_kept
    assert isinstance(read(path, reader={"keep_flat": True})[0], Structure)


def test_records_without_a_structure_are_passed_over_where_damage_stops(tmp_path: Path) -> None:
    nowhere = tuple((symbol, 0.0, 0.0, 0.0) for symbol, *_ in WATER)
    path = write(tmp_path, record(molblock(())), record(), record(molblock(nowhere)))
    empty, water, zeros = read(path)
    assert empty == SkippedRecord("a.sdf:0", "no atoms: a record without a structure.")
    assert water.id == "a.sdf:1"
    assert zeros.reason.startswith("all coordinates are 0")


def test_a_damaged_record_stops_or_is_skipped(tmp_path: Path) -> None:
    lines = molblock().split("\n")
    path = write(tmp_path, record(), record("\n".join(lines[:5]) + "\n"), record())
    with pytest.raises(DataError, match=r"a.sdf, record 1 \(line 10\): .* after 1 of 3 atoms"):
        read(path)
    first, skipped, third = read(path, on_error="skip")
    assert (first.id, third.id) == ("a.sdf:0", "a.sdf:2")
    assert skipped.record == "a.sdf:1"


def test_a_table_whose_columns_are_shifted_or_cut_is_an_error() -> None:
    lines = molblock().split("\n")
    shifted = "\n".join([*lines[:5], lines[5][1:], *lines[6:]])
    with pytest.raises(DataError, match="atom 1 has '' where a symbol is expected"):
        parse_molecule(shifted.encode())
    cut = "\n".join([*lines[:5], lines[5][:40], lines[6]])
    with pytest.raises(DataError, match="the record ends after 2 of 3 atoms"):
        parse_molecule(cut.encode())


def test_a_file_that_is_cut_short_names_itself(tmp_path: Path) -> None:
    path = write(tmp_path, record(A="1"), record(A="1")[:-8])
    with pytest.raises(DataError, match=r"a.sdf, record 1: the file ends within it"):
        read(path, on_error="skip")


def test_a_file_of_one_molecule_may_do_without_its_last_line(tmp_path: Path) -> None:
    assert structure(write(tmp_path, molblock())).num_atoms == 3
    assert len(read(write(tmp_path, record(), record().rstrip("\n")))) == 2
    assert len(read(write(tmp_path, record(), "\n\n"))) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_compressed_files_have_the_same_structures(tmp_path: Path, suffix: str) -> None:
    text = "".join(record(A=str(number)) for number in range(20)).encode()
    pack: dict[str, Callable[[bytes], bytes]] = {
        ".sdf": bytes,
        ".sdf.gz": gzip.compress,
        ".sdf.xz": lzma.compress,
        ".sdf.bz2": bz2.compress,
    }
    path = tmp_path / f"b{suffix}"
    path.write_bytes(pack[suffix](text))
    assert [one.id for one in read(path, keys={"id": "A"})] == [str(n) for n in range(20)]


def test_a_compressed_file_that_is_cut_short_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.sdf.gz"
    path.write_bytes(gzip.compress(record().encode() * 50)[:-20])
    with pytest.raises(DataError, match=r"a.sdf.gz: the compressed file is damaged"):
        read(path)


def test_a_file_without_records_is_no_sdf_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamm.data.readers.sdf.MAX_RECORD_BYTES", 1000)
    with pytest.raises(DataError, match="Is this an SDF file"):
        read(write(tmp_path, "x" * 2000))


def test_records_that_span_the_chunks_of_reading_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, *(record(A=f"{number}$$$$") for number in range(10)))
    expected = [f"{number}$$$$" for number in range(10)]
    for chunk in (1, 7, 64, 333):
        monkeypatch.setattr("lamm.data.readers.sdf._CHUNK", chunk)
        assert [one.id for one in read(path, keys={"id": "A"})] == expected


def test_reading_from_a_record_on_gives_the_same_records(tmp_path: Path) -> None:
    path = write(tmp_path, *(record(A=str(number)) for number in range(10)))
    whole = read(path)
    part = list(read_sdf(path, CardHeader(), start=3, stop=6))
    assert (
        [one.id for one in part]
        == [one.id for one in whole[3:6]]
        == [f"a.sdf:{n}" for n in (3, 4, 5)]
    )


def test_an_option_that_is_misspelt_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep_flat"):
        read(write(tmp_path, record()), reader={"keep_falt": True})


def test_genuine_records_of_pubchem_are_read(shared: Path) -> None:
    header = CardHeader(keys={"id": "cid:{PUBCHEM_COMPOUND_CID}"}, labels=[])
    formats = shared / "data" / "formats"
    (aspirin,) = read_sdf(formats / "Conformer3D_COMPOUND_CID_2244.sdf", header)
    assert isinstance(aspirin, Structure)
    assert aspirin.id == "cid:2244"
    assert np.bincount(aspirin.atomic_numbers)[[1, 6, 8]].tolist() == [8, 9, 4]  # C9H8O4
    assert aspirin.positions[0].tolist() == [1.2333, 0.554, 0.7792]
    conformers = list(read_sdf(formats / "bulk.pubchem.sdf.xz", header))
    assert len({one.id for one in conformers if isinstance(one, Structure)}) == 101


def test_rdkit_reads_the_same_atoms_and_fields(shared: Path) -> None:
    chem = pytest.importorskip("rdkit.Chem")
    path = shared / "data" / "pretrain" / "pubchem3d_like" / "off.sdf.gz"
    with gzip.open(path) as file:
        peers = list(islice(chem.ForwardSDMolSupplier(file, sanitize=False, removeHs=False), 300))
    ours = read_sdf(path, CardHeader(keys={"id": "SMILES"}), stop=300)
    for one, peer in zip(ours, peers, strict=True):
        assert isinstance(one, Structure)
        assert one.atomic_numbers.tolist() == [atom.GetAtomicNum() for atom in peer.GetAtoms()]
        np.testing.assert_array_equal(one.positions, peer.GetConformer().GetPositions())
        assert one.id == peer.GetProp("SMILES")


def test_the_format_is_known_by_its_name() -> None:
    assert FORMATS["sdf"].read is read_sdf
    assert FORMATS["sdf"].count is None
