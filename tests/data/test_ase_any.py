"""Whatever ASE reads becomes structures: as ASE itself reads it, and without pickles."""

import base64
import bz2
import gzip
import json
import lzma
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.readers import FORMATS, KeysFound, SkippedRecord
from lamm.data.readers.ase_any import SUFFIXES, count_ase, read_ase
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure

HARTREE = 27.211386245988  # CODATA 2018


def header(**entries: Any) -> CardHeader:
    return CardHeader.model_validate(entries)


def structures(path: Path, **entries: Any) -> list[Structure]:
    read = list(read_ase(path, header(**entries)))
    assert all(isinstance(one, Structure) for one in read)
    return read  # type: ignore[return-value]


def complaint(path: Path, **entries: Any) -> str:
    with pytest.raises(DataError) as error:
        list(read_ase(path, header(**entries)))
    assert path.name in str(error.value)
    return str(error.value)


def labelled(number: int = 0) -> Atoms:
    """A slab-like cell of copper; the first atom is held, and has a force all the same."""
    rng = np.random.default_rng(number)
    atoms = bulk("Cu", cubic=True) * (1, 1, 1 + number % 2)
    atoms.rattle(0.1, seed=number)
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=-3.5 - number,
        forces=rng.normal(size=(len(atoms), 3)),
        stress=rng.normal(size=6),
    )
    return atoms


def agree(read: Structure, atoms: Atoms, atol: float = 0.0) -> None:
    np.testing.assert_array_equal(read.atomic_numbers, atoms.numbers)
    np.testing.assert_allclose(read.positions, atoms.positions, rtol=0, atol=atol)
    np.testing.assert_allclose(read.cell, atoms.cell.array, rtol=0, atol=atol)
    np.testing.assert_array_equal(read.pbc, atoms.pbc)
    if atoms.calc is None:
        assert read.energy is read.forces is read.stress is None
        return
    results = atoms.calc.results
    assert read.energy == results["energy"]
    np.testing.assert_array_equal(read.forces, results["forces"])
    if "stress" in results:
        np.testing.assert_array_equal(read.stress, results["stress"])


@pytest.fixture
def frames() -> list[Atoms]:
    return [labelled(number) for number in range(7)]


def write_database(path: Path, frames: list[Atoms]) -> Path:
    with ase.db.connect(path) as database:
        for number, atoms in enumerate(frames):
            database.write(atoms, key_value_pairs={"label": f"row {number}"})
    return path


@pytest.fixture(params=["made.traj", "made.db", "made.json"])
def made(request: pytest.FixtureRequest, tmp_path: Path, frames: list[Atoms]) -> Path:
    """A trajectory and both kinds of database, of the same frames."""
    path = tmp_path / request.param
    if path.suffix == ".traj":
        ase.io.write(path, frames)
        return path
    return write_database(path, frames)


def test_labels_are_those_that_ase_reads(made: Path, frames: list[Atoms]):
    read = structures(made, labels=["energy", "forces", "stress"])
    assert len(read) == len(frames)
    for one, atoms in zip(read, frames, strict=True):
        agree(one, atoms)


def test_a_held_atom_is_fixed_and_keeps_its_force(made: Path, frames: list[Atoms]):
    one = structures(made)[0]
    assert one.fixed is not None
    assert one.fixed.tolist() == [True, False, False, False]
    assert one.forces is not None
    assert np.abs(one.forces[0]).max() > 0


def test_a_record_is_the_same_wherever_reading_begins(made: Path):
    whole = structures(made)
    for start, stop in ((0, 3), (3, 5), (5, None), (6, 99), (7, None)):
        part = list(read_ase(made, header(), start=start, stop=stop))
        assert [(one.id, one.origin, one.energy) for one in part] == [
            (one.id, one.origin, one.energy) for one in whole[start:stop]
        ]


@pytest.mark.parametrize("index", [":", "2:", "::3", "1:6:2", "-1", "-3:", "4", ":-2"])
def test_an_index_takes_what_ase_takes_and_leaves_the_numbers(made: Path, index: str):
    expected = [one.origin for one in structures(made)]
    taken = ase.io.formats.string2index(index)
    expected = expected[taken] if isinstance(taken, slice) else [expected[taken]]
    reader = {"index": index}
    assert [one.origin for one in structures(made, reader=reader)] == expected
    tail = list(read_ase(made, header(reader=reader), start=1, stop=2))
    assert [one.origin for one in tail] == expected[1:2]
    if made.suffix != ".json":
        assert count_ase(made, header(reader=reader)) == len(expected)


def test_rows_are_called_by_their_unique_id_unless_the_card_says_otherwise(tmp_path: Path):
    path = write_database(tmp_path / "made.db", [molecule("H2O"), molecule("CO")])
    own = [row.unique_id for row in ase.db.connect(path).select()]
    assert [one.id for one in structures(path)] == own
    assert [one.id for one in structures(path, keys={"id": "label"})] == ["row 0", "row 1"]
    assert [one.id for one in structures(path, keys={"id": "none"})] == ["made.db:0", "made.db:1"]


def test_rows_that_were_deleted_leave_no_gap(tmp_path: Path, frames: list[Atoms]):
    path = write_database(tmp_path / "made.db", frames)
    ase.db.connect(path).delete([1, 4])
    expected = [row.energy for row in ase.db.connect(path).select()]
    assert count_ase(path, header()) == len(expected) == 5
    assert [one.energy for one in structures(path)] == expected
    last = list(read_ase(path, header(), start=3))
    assert [(one.origin, one.energy) for one in last] == [
        ("made.db:3", expected[3]),
        ("made.db:4", expected[4]),
    ]


def test_reading_leaves_a_database_as_it_is(tmp_path: Path):
    path = write_database(tmp_path / "made.db", [molecule("H2O")])
    before = path.read_bytes()
    path.chmod(0o444)
    structures(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["made.db"]


def test_labels_are_found_in_info_arrays_pairs_and_data(tmp_path: Path):
    atoms = molecule("H2O")
    atoms.info["dft_energy"] = -14.0
    atoms.set_array("dft_forces", np.arange(9.0).reshape(3, 3))
    ase.io.write(tmp_path / "made.extxyz", atoms)
    trajectory = ase.io.trajectory.Trajectory(tmp_path / "info.traj", "w")
    trajectory.write(atoms)
    trajectory.close()
    (one,) = structures(tmp_path / "info.traj", labels=["energy"])
    assert one.energy == -14.0
    with ase.db.connect(tmp_path / "made.db") as database:
        database.write(
            atoms, key_value_pairs={"E_ads": -0.5}, data={"gradient": np.full((3, 3), 2.0)}
        )
    (one,) = structures(
        tmp_path / "made.db",
        labels=["energy", "forces"],
        keys={"energy": "E_ads", "forces": "gradient"},
        units={"forces_sign": -1},
    )
    assert one.energy == -0.5
    np.testing.assert_array_equal(one.forces, np.full((3, 3), -2.0))


def test_a_calculators_result_goes_before_pairs_of_the_same_name(tmp_path: Path):
    atoms = labelled()
    with ase.db.connect(tmp_path / "made.db") as database:
        database.write(atoms, data={"energy": 99.0})
    assert structures(tmp_path / "made.db")[0].energy == atoms.calc.results["energy"]


def test_the_doctor_hears_of_labels_that_nobody_uses(tmp_path: Path):
    path = write_database(tmp_path / "made.db", [labelled()])
    found = KeysFound()
    list(read_ase(path, header(labels=["energy"]), found=found))
    assert found.names == {"energy": "energy"}
    assert {"forces", "stress", "label"} <= set(found.seen)


def test_other_constraints_than_those_that_hold_are_no_matter(tmp_path: Path):
    atoms = molecule("H2O")
    atoms.set_constraint([FixBondLength(0, 1), FixCartesian([2], (True, False, False))])
    for name in ("made.traj", "made.db", "made.json"):
        ase.io.write(tmp_path / name, atoms)
        (one,) = structures(tmp_path / name)
        assert one.fixed is not None
        assert one.fixed.tolist() == [False, False, True]
        assert structures(tmp_path / name, keys={"fixed": "none"})[0].fixed is None


def schnetpack_1(path: Path, energy: float, forces: np.ndarray) -> None:
    """A row as SchNetPack 0.3 wrote it."""
    data: dict[str, Any] = {}
    for key, value in (("energy_U0", np.array([energy])), ("forces", forces)):
        data[key] = base64.b64encode(value.tobytes()).decode()
        data[f"_dtype_{key}"], data[f"_shape_{key}"] = str(value.dtype), list(value.shape)
    with ase.db.connect(path) as database:
        database.write(molecule("H2O"), data=data)


def test_arrays_in_base64_are_arrays_again(tmp_path: Path):
    forces = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    schnetpack_1(tmp_path / "made.db", -2078.5, forces)
    (one,) = structures(tmp_path / "made.db", keys={"energy": "energy_U0"})
    assert one.energy == -2078.5
    np.testing.assert_array_equal(one.forces, forces.astype(np.float64))


def references(style: str) -> dict[str, Any]:
    table = np.zeros(9)
    table[[1, 8]] = -0.5, -75.0
    if style == "by property":
        return {"atomrefs": {"energy": table.tolist()}}
    other = np.stack([np.full(9, 7.0), table], axis=1)
    return {"atomrefs": other.tolist(), "atref_labels": ["mu", "energy"]}


@pytest.mark.parametrize("kind", ["made.db", "made.json"])
@pytest.mark.parametrize("style", ["by property", "a table"])
def test_atomrefs_make_a_total_of_the_energy(tmp_path: Path, style: str, kind: str):
    database = ase.db.connect(tmp_path / kind)
    database.write(molecule("H2O"), data={"energy": [-0.3]})
    database.metadata = references(style)
    said = {"units": {"energy": "Hartree"}, "labels": ["energy"]}
    (bare,) = structures(tmp_path / kind, **said)
    (total,) = structures(tmp_path / kind, **said, reader={"add_atomrefs": True})
    assert bare.energy == pytest.approx(-0.3 * HARTREE, abs=1e-12)
    assert total.energy == pytest.approx((-0.3 - 75.0 - 2 * 0.5) * HARTREE, abs=1e-9)


def test_an_element_without_atomref_is_not_given_zero(tmp_path: Path):
    database = ase.db.connect(tmp_path / "made.db")
    database.write(molecule("CO"), data={"energy": [-0.3]})
    database.metadata = references("by property")
    text = complaint(tmp_path / "made.db", reader={"add_atomrefs": True})
    assert "no atomref of 'energy' for element 6" in text


def test_atomrefs_that_are_not_there_are_missed(tmp_path: Path):
    path = write_database(tmp_path / "made.db", [labelled()])
    assert "no 'atomrefs'" in complaint(path, reader={"add_atomrefs": True})
    ase.io.write(tmp_path / "made.traj", labelled())
    with pytest.raises(ConfigError, match="is for databases"):
        structures(tmp_path / "made.traj", reader={"add_atomrefs": True})


def test_units_that_the_database_denies_stop_the_reading(tmp_path: Path):
    database = ase.db.connect(tmp_path / "made.db")
    database.write(molecule("H2O"), data={"energy": [-0.3]})
    database.metadata = {
        "_distance_unit": "Ang",
        "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Ang"},
    }
    with pytest.raises(ConfigError, match="'energy' is in Hartree"):
        structures(tmp_path / "made.db")
    with pytest.raises(ConfigError, match="'positions' is in Ang"):
        structures(tmp_path / "made.db", units={"energy": "Hartree", "length": "bohr"})
    assert len(structures(tmp_path / "made.db", units={"energy": "Hartree"})) == 1


VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <kpoints><varray name="kpointlist"><v>0 0 0</v></varray>
  <varray name="weights"><v>1</v></varray></kpoints>
 <atominfo><array name="atoms"><set><rc><c>H </c><c>1</c></rc><rc><c>O </c><c>2</c></rc></set>
 </array></atominfo>
 <structure name="initialpos">
  <crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
  <varray name="positions"><v>0 0 0</v><v>0.25 0 0</v></varray>
  <varray name="selective"><v type="logical">F F F</v><v type="logical">T T T</v></varray>
 </structure>
 <calculation>
  <structure>
   <crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
   <varray name="positions"><v>0 0 0</v><v>0.25 0 0</v></varray>
  </structure>
  <varray name="forces"><v>1 2 3</v><v>-1 -2 -3</v></varray>
  <varray name="stress"><v>10 0 0</v><v>0 20 0</v><v>0 0 30</v></varray>
  <scstep><energy><i name="e_fr_energy">-10.5</i><i name="e_0_energy">-10.375</i></energy></scstep>
  <energy><i name="e_fr_energy">-10.5</i><i name="e_0_energy">-10.375</i></energy>
 </calculation>
</modeling>
"""


def test_vasprun_gives_raw_forces_and_tension_as_positive_stress(tmp_path: Path):
    path = tmp_path / "vasprun.xml"
    path.write_text(VASPRUN)
    (one,) = structures(path, labels=["energy", "forces", "stress"])
    assert one.energy == -10.375
    np.testing.assert_array_equal(one.forces, [[1, 2, 3], [-1, -2, -3]])
    assert one.fixed is not None
    assert one.fixed.tolist() == [True, False]
    # VASP's kbar are of pressure: 1 kbar = 0.1 GPa = 0.000624151 eV/Å³.
    np.testing.assert_allclose(
        one.stress, np.array([-10, -20, -30, 0, 0, 0]) * 6.24150907e-4, rtol=1e-6
    )
    (free,) = structures(path, keys={"energy": "free_energy"})
    assert free.energy == -10.5


@pytest.mark.parametrize("name", ["made.cif", "POSCAR", "CONTCAR", "made.vasp", "made.xsf"])
@pytest.mark.parametrize("packing", ["", ".gz", ".xz", ".bz2"])
def test_other_formats_and_packed_ones_are_as_ase_reads_them(
    tmp_path: Path, name: str, packing: str
):
    atoms = bulk("NaCl", "rocksalt", 5.64)
    plain = tmp_path / name
    ase.io.write(plain, atoms)
    expected = ase.io.read(plain)
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[packing]
    path = tmp_path / (name + packing)
    path.write_bytes(pack(plain.read_bytes()))
    (one,) = structures(path, labels=[])
    assert one.origin == f"{name}{packing}:0"
    agree(one, expected)
    assert count_ase(path, header()) is None


def test_a_packed_trajectory_is_the_same(tmp_path: Path, frames: list[Atoms]):
    ase.io.write(tmp_path / "made.traj", frames)
    (tmp_path / "made.traj.gz").write_bytes(gzip.compress((tmp_path / "made.traj").read_bytes()))
    packed = structures(tmp_path / "made.traj.gz")
    for one, atoms in zip(packed, frames, strict=True):
        agree(one, atoms)


def test_a_zip_is_one_record_per_member_in_order_of_names(tmp_path: Path):
    for name, symbol in (("b", "Cu"), ("a", "Al")):
        ase.io.write(tmp_path / f"{name}.cif", bulk(symbol))
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        for name in ("b.cif", "a.cif"):
            archive.write(tmp_path / name, f"folder/{name}")
        archive.writestr("__MACOSX/folder/._b.cif", b"\0\5\x16\7")
        archive.writestr("folder/.DS_Store", b"\0")
    read = structures(tmp_path / "made.zip")
    assert count_ase(tmp_path / "made.zip", header()) == 2
    assert [one.id for one in read] == ["made.zip:folder/a.cif", "made.zip:folder/b.cif"]
    agree(read[1], ase.io.read(tmp_path / "b.cif"))
    (second,) = read_ase(tmp_path / "made.zip", header(), start=1)
    assert second.origin == read[1].origin  # type: ignore[union-attr]


def test_a_member_that_is_no_structure_can_be_skipped(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    assert "ASE can't read" in complaint(tmp_path / "made.zip")
    (skipped,) = read_ase(tmp_path / "made.zip", header(), on_error="skip")
    assert isinstance(skipped, SkippedRecord)
    assert skipped.record == "made.zip:readme.txt"


def test_a_crystal_with_shared_sites_is_refused(tmp_path: Path):
    ase.io.write(tmp_path / "made.cif", bulk("Cu"))
    text = (tmp_path / "made.cif").read_text()
    assert "1.0000" in text
    (tmp_path / "made.cif").write_text(text.replace("1.0000", "0.5000"))
    assert "{'Cu': 0.5}" in complaint(tmp_path / "made.cif")


def test_the_card_may_name_the_format(tmp_path: Path):
    ase.io.write(tmp_path / "structure.in.1", bulk("Cu"), format="vasp")
    (one,) = structures(tmp_path / "structure.in.1", reader={"format": "vasp"})
    agree(one, ase.io.read(tmp_path / "structure.in.1", format="vasp"))
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.write(tmp_path / "structure.in.1", "1")
    (member,) = structures(tmp_path / "made.zip", reader={"format": "vasp"})
    np.testing.assert_array_equal(member.positions, one.positions)
    with pytest.raises(ConfigError, match="Did you mean 'vasp'"):
        structures(tmp_path / "structure.in.1", reader={"format": "vaps"})


@pytest.mark.parametrize("name", ["postgres.traj", "mysql.traj", "a@1.traj", "b.traj@0"])
def test_a_file_is_a_file_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    ase.io.write(tmp_path / "made.traj", [labelled(0), labelled(1)])
    (tmp_path / "made.traj").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert [one.origin for one in structures(Path(name))] == [f"{name}:0", f"{name}:1"]


@pytest.mark.parametrize("index", ["::-1", "energy", "1,2", ""])
def test_an_index_that_is_none_is_said_so(tmp_path: Path, index: str):
    with pytest.raises(ConfigError, match="index"):
        structures(tmp_path / "made.traj", reader={"index": index})


class Trap:
    """Would be noticed if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    bundle = tmp_path / "made.bundle"
    bundle.mkdir()
    (bundle / "metadata").write_bytes(pickle.dumps(Trap()))
    assert "expected a file" in complaint(bundle)
    for name in ("old.traj", "made.db", "made.json", "made.cif"):
        (tmp_path / name).write_bytes(b"PickleTrajectory" + pickle.dumps(Trap()))
        complaint(tmp_path / name)
    for kind in ("bundletrajectory", "py", "postgresql", "mysql"):
        assert "is not read here" in complaint(tmp_path / "old.traj", reader={"format": kind})
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["made.xyz", "made.extxyz"])
def test_the_xyz_family_is_left_to_its_own_reader(tmp_path: Path, name: str):
    ase.io.write(tmp_path / name, molecule("H2O"))
    assert "Use the format `extxyz`" in complaint(tmp_path / name)


BROKEN = {
    "missing.traj": None,
    "empty.traj": b"",
    "text.traj": b"no trajectory" * 40,
    "empty.db": b"",
    "text.db": b"no database" * 400,
    "list.json": b'[{"a": 1}]',
    "other.json": b'{"a": 1}',
    "cut.json": b'{"1": {"numbers": [1], "posi',
    "row.json": b'{"1": {"positions": [[0, 0, 0]]}, "ids": [1], "nextid": 2}',
    "text.cif": b"no crystal",
    "POSCAR": b"no numbers\n1.0\nx y z\n",
    "unknown.abc": b"whatever it is",
    "packed.cif.gz": b"not packed",
    "packed.zip": b"not a zip",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_names_itself(tmp_path: Path, name: str):
    if (content := BROKEN[name]) is not None:
        (tmp_path / name).write_bytes(content)
    complaint(tmp_path / name)


def test_a_file_that_was_cut_short_is_an_error(made: Path):
    content = made.read_bytes()
    made.write_bytes(content[: len(content) // 2])
    complaint(made)


def test_a_damaged_row_is_named_and_can_be_skipped(tmp_path: Path, frames: list[Atoms]):
    path = write_database(tmp_path / "made.db", frames)
    database = ase.db.connect(path)
    with database.managed_connection() as connection:
        connection.execute("UPDATE systems SET positions = X'0011' WHERE id = 3")
        connection.execute("UPDATE systems SET energy = 9e999 WHERE id = 5")
    assert "record 2: the row is damaged" in complaint(path)
    read = list(read_ase(path, header(), on_error="skip"))
    skipped = [one for one in read if isinstance(one, SkippedRecord)]
    assert [one.record for one in skipped] == ["made.db:2", "made.db:4"]
    assert "energy is inf" in skipped[1].reason
    assert len(read) == 7


def test_a_promised_label_that_is_missing_is_an_error(tmp_path: Path):
    path = write_database(tmp_path / "made.db", [molecule("H2O")])
    text = complaint(path, labels=["energy"])
    assert "no 'energy'" in text
    assert "label" in text


def test_large_json_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frames = [labelled(number) for number in range(7)]
    path = write_database(tmp_path / "made.json", frames)
    for size in (1, 17, 1000):
        monkeypatch.setattr("lamm.data.readers.ase_db._CHUNK", size)
        assert [one.energy for one in structures(path)] == [
            row.energy for row in ase.db.connect(path).select()
        ]


def test_a_folder_means_files_whose_names_end_as_ases_do():
    assert {".traj", ".db.gz", ".cif", "vasprun.xml", ".xsf.bz2"} <= set(SUFFIXES)
    assert not any("xyz" in suffix or suffix == ".json" for suffix in SUFFIXES)
    assert FORMATS["ase"].suffixes == SUFFIXES


def test_a_store_is_made_of_a_trajectory(tmp_path: Path, frames: list[Atoms]):
    ase.io.write(tmp_path / "made.traj", frames)
    card = ingest(
        "ase",
        [tmp_path / "made.traj"],
        tmp_path / "store",
        header(name="made", labels=["energy", "forces"], task="S2EF-Total"),
    )
    assert card.num_structures == 7
    assert card.label_counts["forces"] == 7
    store = Store.open(tmp_path / "store")
    stored = [store[number] for number in range(7)]
    for one, atoms in zip(stored, frames, strict=True):
        assert one.energy == atoms.calc.results["energy"]
        np.testing.assert_allclose(one.forces, atoms.calc.results["forces"], rtol=1e-6)
    assert json.loads(card.model_dump_json())["keys_found"]["energy"] == "energy"


@pytest.mark.parametrize("name", ["random1000156.traj", "random1000163.traj"])
def test_genuine_trajectories_are_as_ase_reads_them(shared: Path, name: str):
    path = shared / "data" / "formats" / name
    read, expected = structures(path, labels=["energy", "forces"]), ase.io.read(path, ":")
    assert len(read) == len(expected) == count_ase(path, header())
    for one, atoms in zip(read, expected, strict=True):
        assert one.energy == atoms.get_potential_energy()
        np.testing.assert_array_equal(one.forces, atoms.get_forces(apply_constraint=False))
        np.testing.assert_array_equal(one.positions, atoms.positions)
        held = np.zeros(len(atoms), dtype=bool)
        held[atoms.constraints[0].index] = True
        np.testing.assert_array_equal(one.fixed, held)


def test_nabladft_with_its_atomrefs_are_total_energies(shared: Path):
    path = shared / "data" / "pretrain" / "nabladft" / "test_database.db"
    read = structures(
        path,
        labels=["energy", "forces"],
        units={"energy": "Hartree"},
        reader={"add_atomrefs": True},
    )
    database = ase.db.connect(path)
    table = np.array(database.metadata["atomrefs"]["energy"])
    rows = list(database.select())
    assert len(read) == len(rows) == 100
    for one, row in zip(read, rows, strict=True):
        total = row.data["energy"][0] + table[row.numbers].sum()
        assert one.energy == pytest.approx(total * HARTREE, rel=1e-14)
        np.testing.assert_allclose(one.forces, row.data["forces"] * HARTREE, rtol=1e-14)
        np.testing.assert_array_equal(one.positions, row.positions)
        assert one.id == row.unique_id


def test_qm9_of_an_early_schnetpack_is_read(shared: Path):
    path = shared / "data" / "pretrain" / "qm9" / "qm9_500.db"
    read = structures(path, labels=["energy"], keys={"energy": "energy_U0"})
    rows = list(ase.db.connect(path).select())
    assert len(read) == len(rows) == 500
    for one, row in zip(read, rows, strict=True):
        assert one.energy == np.frombuffer(base64.b64decode(row.data["energy_U0"]))[0]
        np.testing.assert_array_equal(one.positions, row.positions)
    # Methane at B3LYP/6-31G(2df,p): -40.47893 Hartree in the paper's own table.
    assert read[0].energy == pytest.approx(-40.47893 * HARTREE, abs=1e-3)


def test_adsorption_energies_of_odac_are_read(shared: Path):
    path = shared / "data" / "pretrain" / "odac_mof" / "deform_dataset.db"
    read = structures(path, labels=["energy"], keys={"energy": "E_ads_dft"}, task="IS2RE")
    rows = list(ase.db.connect(path).select())
    assert [one.energy for one in read] == [row.data["E_ads_dft"] for row in rows]
    assert len(read) == 59


def test_genuine_cifs_in_a_zip_are_as_ase_reads_them(shared: Path, tmp_path: Path):
    path = shared / "data" / "pretrain" / "odac_mof" / "pristine.zip"
    assert count_ase(path, header()) == 135
    one, two = read_ase(path, header(labels=[]), start=2, stop=4)
    for read, name in ((one, "BAXFUD.cif"), (two, "BEXQIF.cif")):
        assert isinstance(read, Structure)
        assert read.id == f"pristine.zip:{name}"
        with zipfile.ZipFile(path) as archive:
            agree(read, ase.io.read(archive.extract(name, tmp_path)))
