"""ASE databases in an LMDB, written here as ASE's back end writes them."""

import json
import zlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.readers.aselmdb import RowIds, count_aselmdb, read_aselmdb
from lamm.data.readers.common import KeysFound, SkippedRecord
from lamm.data.store import Store
from lamm.errors import DataError
from lamm.structure import Structure


def array(values: Any) -> dict[str, Any]:
    """An array as ASE's JSON has it."""
    flat = np.asarray(values)
    return {"__ndarray__": [list(flat.shape), flat.dtype.name, flat.ravel().tolist()]}


def row(number: int, *, arrays: bool = True, **entries: Any) -> dict[str, Any]:
    """A row of copper and oxygen, whose first atom is held still."""
    rng = np.random.default_rng(number)
    write = array if arrays else (lambda values: np.asarray(values).tolist())
    return {
        "numbers": write(np.array([29, 8])),
        "positions": write(rng.uniform(0, 3, (2, 3))),
        "cell": write(np.diag([3.0, 4.0, 5.0])),
        "pbc": write(np.array([True, True, False])),
        "energy": -10.0 - number,
        "free_energy": -99.0,
        "forces": write(rng.normal(0, 1, (2, 3))),
        "stress": write(rng.normal(0, 0.01, 6)),
        "constraints": [{"name": "FixAtoms", "kwargs": {"indices": [0]}}],
        "unique_id": f"{number:032x}",
        "ctime": 24.5,
        "user": None,
        "calculator": "unknown",
        "key_value_pairs": {"charge": 0, "part": "val" if number % 2 else "train"},
        "data": {"sid": f"agm{number}", "e_corrected": -20.0 - number},
        **entries,
    }


def write_lmdb(path: Path, rows: dict[int, Any], next_id: int, deleted: list[int]) -> Path:
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False)
    with environment.begin(write=True) as transaction:
        entries = {str(key): value for key, value in rows.items()}
        entries |= {"nextid": next_id, "deleted_ids": deleted, "metadata": {"format": "x"}}
        for key, value in entries.items():
            packed = (
                value if isinstance(value, bytes) else zlib.compress(json.dumps(value).encode())
            )
            transaction.put(key.encode(), packed)
    environment.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Rows 1 to 6 without 2 and 5, in both ways of writing arrays."""
    rows = {number: row(number, arrays=number % 3 > 0) for number in (1, 3, 4, 6)}
    return write_lmdb(tmp_path / "data.aselmdb", rows, 7, [5, 2])


def read(path: Path, **entries: Any) -> list[Structure]:
    structures = list(read_aselmdb(path, CardHeader.model_validate(entries)))
    assert all(isinstance(one, Structure) for one in structures)
    return structures  # type: ignore[return-value]


def test_rows_become_structures(path: Path) -> None:
    structures = read(path)
    assert [one.energy for one in structures] == [-11.0, -13.0, -14.0, -16.0]
    for one, number in zip(structures, (1, 3, 4, 6), strict=True):
        rng = np.random.default_rng(number)
        np.testing.assert_array_equal(one.positions, rng.uniform(0, 3, (2, 3)))
        np.testing.assert_array_equal(one.forces, rng.normal(0, 1, (2, 3)))
        np.testing.assert_array_equal(one.stress, rng.normal(0, 0.01, 6))
        assert one.atomic_numbers.tolist() == [29, 8]
        assert one.fixed.tolist() == [True, False]
        assert one.pbc.tolist() == [True, True, False]
        assert one.id == f"{number:032x}"
    assert [one.origin for one in structures] == [f"data.aselmdb:{n}" for n in range(4)]


def test_names_lead_into_the_data_and_the_pairs(path: Path) -> None:
    found = KeysFound()
    keys = {"energy": "e_corrected", "id": "sid", "split": "part"}
    header = CardHeader.model_validate({"keys": keys})
    structures = list(read_aselmdb(path, header, found=found))
    assert [one.energy for one in structures] == [-21.0, -23.0, -24.0, -26.0]
    assert [one.id for one in structures] == ["agm1", "agm3", "agm4", "agm6"]
    assert [one.split for one in structures] == ["val", "val", "train", "train"]
    assert found.names["energy"] == "e_corrected"
    assert {"free_energy", "e_corrected", "energy"} <= set(found.seen)


def test_deleted_ids_are_passed_over() -> None:
    for next_id, deleted in ((7, [5, 2]), (5, []), (6, [1, 2, 3]), (4, [3]), (1, [])):
        expected = [one for one in range(1, next_id) if one not in deleted]
        ids = RowIds(next_id, deleted)
        assert [ids[place] for place in range(len(ids))] == expected


def test_reading_may_begin_anywhere(path: Path) -> None:
    whole = read(path)
    assert count_aselmdb(path, CardHeader()) == 4
    for start in range(5):
        part = list(read_aselmdb(path, CardHeader(), start=start, stop=3))
        assert [(one.id, one.origin) for one in part] == [
            (one.id, one.origin) for one in whole[start:3]
        ]


def test_it_is_ingested_with_its_units(path: Path, tmp_path: Path) -> None:
    header = CardHeader.model_validate({"units": {"energy": "Hartree", "forces": "Hartree/Å"}})
    card = ingest("aselmdb", [path], tmp_path / "s", header)
    assert card.num_structures == 4
    assert Store.open(tmp_path / "s")[0].energy == pytest.approx(-11.0 * 27.211386245988)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"no zlib", "row 2: not a row of ASE's database"),
        (zlib.compress(b"{} and more"), "row 2: not a row of ASE's database"),
        (zlib.compress(b"[1]"), "row 2: found list, expected a row"),
        (zlib.compress(b"{}")[:-2], "cut short"),
        ({"numbers": [1]}, "no numbers and positions"),
        (row(2, energy=float("nan")), "energy is nan"),
        (row(2, forces=array(np.zeros((3, 3)))), r"'forces' has shape \(3, 3\), expected \(2, 3\)"),
        (row(2, numbers=[29, 200]), "unknown element 200"),
        (row(2, numbers={"__ndarray__": [[5], "int64", [1, 2]]}), "an array that can't be read"),
        (row(2, numbers={"__ndarray__": [[1], "int64", [10**30]]}), "an array that can't be read"),
        (row(2, numbers=["Cu", "O"]), "the row is damaged"),
        (row(2, numbers=[None, 8]), "unknown element nan"),
        (row(2, numbers=[29, 8.5]), "unknown element 8.5"),
        (row(2, positions=[[0, 0, 0], [1]]), "the row is damaged"),
        (row(2, cell="cubic"), "the row is damaged"),
        (row(2, constraints=["FixAtoms"]), "the row is damaged"),
        (row(2, constraints=[{"name": "FixAtoms", "kwargs": None}]), "the row is damaged"),
        (
            row(2, constraints=[{"name": "FixAtoms", "kwargs": {"indices": [9]}}]),
            "constraint .* does not fit 2 atoms",
        ),
    ],
)
def test_a_bad_row_names_itself(tmp_path: Path, broken: Any, message: str) -> None:
    path = write_lmdb(tmp_path / "x.aselmdb", {1: row(1), 2: broken, 3: row(3)}, 4, [])
    with pytest.raises(DataError, match=message):
        read(path)
    first, skipped, last = read_aselmdb(path, CardHeader(), on_error="skip")
    assert isinstance(skipped, SkippedRecord)
    assert isinstance(first, Structure)
    assert isinstance(last, Structure)


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ({"name": "FixScaled", "kwargs": {"a": [1], "mask": [True, True, True]}}, [False, True]),
        ({"name": "FixedPlane", "kwargs": {"indices": [0], "direction": [0, 0, 1]}}, [True, False]),
        ({"name": "FixAtoms", "kwargs": {"indices": array([0, 1])}}, [True, True]),
        ({"name": "FixBondLengths", "kwargs": {"pairs": [[0, 1]]}}, None),
    ],
)
def test_atoms_that_a_constraint_holds_are_fixed(
    tmp_path: Path, constraint: dict[str, Any], expected: list[bool] | None
) -> None:
    path = write_lmdb(tmp_path / "x.aselmdb", {1: row(1, constraints=[constraint])}, 2, [])
    (one,) = read(path)
    assert (None if one.fixed is None else one.fixed.tolist()) == expected


def test_the_card_says_which_atoms_are_fixed(tmp_path: Path) -> None:
    data = {"held": array([False, True])}
    path = write_lmdb(tmp_path / "x.aselmdb", {1: row(1, data=data)}, 2, [])
    assert read(path, keys={"fixed": "held"})[0].fixed.tolist() == [False, True]
    assert read(path, keys={"fixed": "none"})[0].fixed is None
    with pytest.raises(DataError, match=r"no 'other', which the card names under `keys\.fixed`"):
        read(path, keys={"fixed": "other"})


def test_a_split_that_a_row_names_is_its_split(tmp_path: Path) -> None:
    rows = {1: row(1, key_value_pairs={"split": "valid"}), 2: row(2)}
    path = write_lmdb(tmp_path / "x.aselmdb", rows, 3, [])
    assert [one.split for one in read(path)] == ["val", None]
    assert [one.split for one in read(path, keys={"split": "none"})] == [None, None]


def test_an_empty_label_is_absent_or_missed_where_it_is_promised(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "x.aselmdb", {1: row(1, energy=None)}, 2, [])
    assert read(path)[0].energy is None
    with pytest.raises(DataError, match="no 'energy', which the card promises"):
        read(path, labels=["energy"])


def test_a_missing_row_is_an_error(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "x.aselmdb", {1: row(1)}, 3, [])
    with pytest.raises(DataError, match="row 2: the row is missing"):
        read(path)


def test_another_lmdb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.aselmdb"
    environment = lmdb.open(str(path), subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        transaction.put(b"0", b"pickle")
    environment.close()
    with pytest.raises(DataError, match=r"without 'nextid'.*\n.*oc-lmdb"):
        read(path)
    (tmp_path / "text.aselmdb").write_text("no database")
    with pytest.raises(DataError, match="not an LMDB"):
        read(tmp_path / "text.aselmdb")


def test_what_the_authors_library_writes_is_read(tmp_path: Path) -> None:
    from ase_db_backends import aselmdb as backends

    path = tmp_path / "genuine.aselmdb"
    atoms = Atoms("CuO", positions=[[0, 0, 0], [0, 0, 1.8]], cell=[3, 3, 9], pbc=True)
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=np.ones((2, 3)))
    database = backends.LMDBDatabase(str(path))
    for number in range(3):
        database.write(atoms, data={"sid": f"a{number}"})
    database.delete([2])
    database.close()
    structures = read(path, keys={"id": "sid"})
    assert [one.id for one in structures] == ["a0", "a2"]
    assert structures[0].forces.tolist() == [[1.0] * 3] * 2
    assert structures[0].fixed.tolist() == [True, False]
