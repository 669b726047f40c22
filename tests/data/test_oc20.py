"""OC20's own layout: structures, and an index of systems and reference energies."""

import lzma
from pathlib import Path

import ase.io
import numpy as np
import pytest

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.readers.common import SkippedRecord
from lamm.data.readers.oc20 import read_oc20
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure

FRAME = (
    "2\n"
    'Lattice="8 0 0 0 8 0 0 0 30" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 '
    'energy={energy} free_energy=-99 pbc="T T T"\n'
    "Cu 0 0 1 F 0 0.5 0.0 0.0\n"
    "O 1 1 3 T 2 -0.1 0.2 0.3\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two frames of one system and one of another, compressed as published."""
    frames = "".join(FRAME.format(energy=energy) for energy in (-10.0, -11.0, -12.0))
    lines = "random7,frame0,-4.5\nrandom7,frame20,-4.5\nrandom1001,frame3,-6.0\n"
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.extxyz.xz").write_bytes(lzma.compress(frames.encode()))
    (tmp_path / "train" / "0.txt.xz").write_bytes(lzma.compress(lines.encode()))
    return tmp_path / "train"


def read(folder: Path, **entries: object) -> list[Structure | SkippedRecord]:
    return list(read_oc20(folder / "0.extxyz.xz", CardHeader.model_validate(entries)))


def test_total_energies_are_those_of_the_file(folder: Path) -> None:
    structures = read(folder)
    assert [one.energy for one in structures] == [-10.0, -11.0, -12.0]
    assert [one.id for one in structures] == [
        "random7_frame0",
        "random7_frame20",
        "random1001_frame3",
    ]
    assert structures[0].fixed.tolist() == [True, False]
    assert structures[0].forces[0].tolist() == [0.5, 0.0, 0.0]
    assert structures[0].origin == "0.extxyz.xz:0"


def test_adsorption_energies_are_less_the_reference(folder: Path) -> None:
    structures = read(folder, task="S2EF", reader={"energy": "adsorption"})
    assert [one.energy for one in structures] == [-5.5, -6.5, -6.0]


def test_the_task_and_the_energy_have_to_agree(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"with these energies the task is S2EF-Total"):
        read(folder, task="S2EF")


def test_uncompressed_files_are_read_as_well(folder: Path) -> None:
    expected = [one.id for one in read(folder)]
    for kind in ("extxyz", "txt"):
        packed = folder / f"0.{kind}.xz"
        (folder / f"0.{kind}").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    structures = list(read_oc20(folder / "0.extxyz", CardHeader()))
    assert [one.id for one in structures] == expected


def test_reading_may_begin_anywhere(folder: Path) -> None:
    whole = read(folder)
    part = list(read_oc20(folder / "0.extxyz.xz", CardHeader(), start=1, stop=2))
    assert [(one.id, one.origin) for one in part] == [(whole[1].id, whole[1].origin)]


def test_a_missing_index_is_named(folder: Path) -> None:
    (folder / "0.txt.xz").unlink()
    with pytest.raises(DataError, match=r"its index 0.txt.xz \(or 0.txt\) isn't beside it"):
        read(folder)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("random7,frame0,-4.5\n", "record 1.*fewer lines than the file has structures"),
        ("random7,frame0,1\n" * 4, "record 3.*more lines than the file has structures"),
        ("random7;frame0\n" * 3, "record 0.*expected random<sid>,frame<fid>"),
        (",frame0,-4.5\n" * 3, "record 0.*expected random<sid>,frame<fid>"),
        ("random7,frame0,much\n" * 3, "record 0.*expected random<sid>,frame<fid>"),
    ],
)
def test_an_index_of_another_file_is_refused(folder: Path, lines: str, message: str) -> None:
    (folder / "0.txt.xz").write_bytes(lzma.compress(lines.encode()))
    with pytest.raises(DataError, match=message):
        read(folder)


def test_an_index_of_another_length_is_not_skipped_over(folder: Path) -> None:
    (folder / "0.txt.xz").write_bytes(lzma.compress(b"random7,frame0,-4.5\n"))
    with pytest.raises(DataError, match="fewer lines"):
        list(read_oc20(folder / "0.extxyz.xz", CardHeader(), on_error="skip"))


def test_a_store_of_it_has_the_splits_of_its_folders(folder: Path, tmp_path: Path) -> None:
    card = ingest("oc20", [folder], tmp_path / "s", CardHeader(split="from_path"))
    assert (card.num_train, card.num_val) == (3, 0)
    assert card.factors["energy"] == 1.0


def test_genuine_files_are_read(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/pretrain/oc20_s2ef"
    header = CardHeader(name="oc20", split="from_path")
    card = ingest("oc20", [source / "val"], tmp_path / "s", header)
    assert (card.num_structures, card.num_val) == (645, 645)
    store = Store.open(tmp_path / "s")
    with lzma.open(source / "val/1.extxyz.xz", "rt") as file:
        expected = ase.io.read(file, ":", format="extxyz")
    with lzma.open(source / "val/1.txt.xz", "rt") as file:
        names = [line.split(",") for line in file.read().split()]
    found = [one for one in store if one.origin.startswith("1.extxyz.xz")]
    assert len(found) == len(expected) == len(names)
    for one, atoms, (system, frame, _) in zip(found, expected, names, strict=True):
        assert one.id == f"{system}_{frame}"
        assert one.energy == atoms.get_potential_energy()
        np.testing.assert_array_equal(one.positions, atoms.positions)
        forces = atoms.get_forces(apply_constraint=False).astype(np.float32)
        np.testing.assert_array_equal(one.forces, forces)
        assert set(np.flatnonzero(one.fixed)) == set(atoms.constraints[0].index)
