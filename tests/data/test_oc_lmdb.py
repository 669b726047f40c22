"""LMDBs and pickle files of OC20, OC22 and ODAC23 as structures."""

import gzip
import logging
import pickle
import shutil
import zlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from pyg_samples import LAYOUTS, new_record, old_record, relaxation, sample, write_lmdb

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.readers import FORMATS, KeysFound, SkippedRecord
from lamm.data.readers.oc_lmdb import count_oc_lmdb, read_oc_lmdb
from lamm.data.readers.paths import source_split, split_of_path
from lamm.data.sources import find_sources
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure

S2EF = {"task": "S2EF", "labels": ["energy", "forces"]}


def header(**entries: Any) -> CardHeader:
    return CardHeader.model_validate(entries)


def read(path: Path, **entries: Any) -> list[Structure]:
    return list(read_oc_lmdb(path, header(**entries)))  # type: ignore[arg-type]


def read_one(tmp_path: Path, record: dict[str, Any], **entries: Any) -> Structure:
    path = write_lmdb(tmp_path / "one.lmdb", [old_record(record)])
    return read(path, **entries)[0]


@pytest.fixture
def records() -> list[dict[str, Any]]:
    return [sample(number) for number in range(12)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_record_gives_its_numbers(layout, tmp_path, records):
    pickled = [LAYOUTS[layout](record) for record in records]
    path = write_lmdb(tmp_path / "data.lmdb", pickled, length=12)
    structures = read(path, **S2EF)
    assert len(structures) == 12 == count_oc_lmdb(path, header())
    for number, (structure, record) in enumerate(zip(structures, records, strict=True)):
        np.testing.assert_array_equal(structure.positions, record["pos"].numpy(), strict=True)
        np.testing.assert_array_equal(structure.forces, record["force"].numpy())
        np.testing.assert_array_equal(structure.cell, np.diag([5.0, 6.0, 20.0]))
        assert structure.atomic_numbers.tolist() == [29, 29, 6, 8]
        assert structure.pbc.all()
        assert structure.fixed is not None
        assert structure.fixed.tolist() == [True, False, False, False]
        assert structure.energy == record["y"]
        assert structure.id == f"{700 + number // 2}_{number % 2}"
        assert structure.origin == f"data.lmdb:{number}"
        assert structure.split is None


def test_units_and_signs_are_those_of_the_card(tmp_path):
    record = sample(stress=torch.arange(6.0))
    units = {"energy": "kcal/mol", "length": "nm", "forces_sign": -1, "stress": "GPa"}
    plain = read_one(tmp_path, record)
    turned = read_one(tmp_path, record, units=units)
    factors = header(units=units).units.factors()
    assert turned.energy == pytest.approx(plain.energy * factors["energy"], rel=1e-14)
    np.testing.assert_allclose(turned.positions, plain.positions * 10, rtol=1e-6)
    np.testing.assert_allclose(turned.cell, plain.cell * 10, rtol=1e-12)
    np.testing.assert_allclose(turned.forces, plain.forces * factors["forces"], rtol=1e-12)
    np.testing.assert_allclose(turned.stress, plain.stress * factors["stress"], rtol=1e-12)
    assert factors["forces"] < 0


# LMDBs


@pytest.mark.parametrize("length", [None, 12])
def test_a_part_of_a_file_is_that_part_of_the_whole(length, tmp_path, records):
    path = write_lmdb(tmp_path / "a.lmdb", [old_record(one) for one in records], length=length)
    whole = read(path)
    part = list(read_oc_lmdb(path, header(), start=4, stop=11))
    assert [one.id for one in part] == [one.id for one in whole][4:11]
    assert [one.origin for one in part] == [f"a.lmdb:{number}" for number in range(4, 11)]
    assert list(read_oc_lmdb(path, header(), start=12)) == []


def test_an_lmdb_that_is_a_folder_is_read(tmp_path, records):
    folder = tmp_path / "data.lmdb"
    folder.mkdir()
    write_lmdb(folder / "data.mdb", [old_record(one) for one in records])
    assert len(read(folder)) == 12 == count_oc_lmdb(folder, header())
    assert find_sources([tmp_path], FORMATS["oc-lmdb"].suffixes) == [folder / "data.mdb"]


def test_lock_files_are_no_sources(tmp_path, records):
    for number in (1, 0):
        write_lmdb(tmp_path / f"data.000{number}.lmdb", [old_record(records[number])])
        assert (tmp_path / f"data.000{number}.lmdb-lock").exists()
    (tmp_path / "lock.mdb").write_bytes(b"")
    found = find_sources([tmp_path], FORMATS["oc-lmdb"].suffixes)
    assert [path.name for path in found] == ["data.0000.lmdb", "data.0001.lmdb"]


def test_keys_that_are_no_numbers_are_read_in_their_order(tmp_path, records):
    keys = [f"cid-{number:03}".encode() for number in (7, 3, 5)]
    path = write_lmdb(tmp_path / "a.lmdb", [old_record(one) for one in records[:3]], keys)
    assert [one.energy for one in read(path)] == [-2.5, -3.5, -1.5]
    assert count_oc_lmdb(path, header()) == 3


def test_numbers_far_apart_are_names(tmp_path, records):
    keys = [b"1000", b"5", b"77"]
    path = write_lmdb(tmp_path / "a.lmdb", [old_record(one) for one in records[:3]], keys)
    assert [one.energy for one in read(path)] == [-1.5, -2.5, -3.5]


@pytest.mark.parametrize("gone", [0, 5, 10])
@pytest.mark.parametrize("length", [None, 12])
def test_a_missing_key_is_told_and_can_be_skipped(gone, length, tmp_path, records):
    keys = [f"{number}".encode() for number in range(12) if number != gone]
    kept = [old_record(records[int(key)]) for key in keys]
    path = write_lmdb(tmp_path / "a.lmdb", kept, keys, length)
    with pytest.raises(DataError, match=rf"record {gone} \(key '{gone}'\): there is no such key"):
        read(path)
    found = list(read_oc_lmdb(path, header(), on_error="skip"))
    assert [one.record for one in found if isinstance(one, SkippedRecord)] == [f"a.lmdb:{gone}"]
    assert len(found) == 12 == count_oc_lmdb(path, header())
    assert found[11].origin == "a.lmdb:11"


def test_a_length_that_is_wrong_is_told(tmp_path, records, caplog):
    path = write_lmdb(tmp_path / "a.lmdb", [old_record(one) for one in records], length=20)
    with caplog.at_level(logging.WARNING):
        assert len(read(path)) == 12
    assert "'length' is 20, and it has 12 records" in caplog.text


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress], ids=["zlib", "gzip"])
def test_compressed_values_are_read(compress, tmp_path, records):
    path = write_lmdb(tmp_path / "a.lmdb", [compress(old_record(one)) for one in records])
    assert [one.energy for one in read(path)] == [-1.5 - number for number in range(12)]


def test_a_compressed_value_that_is_cut_short_or_no_pickle_is_a_data_error(tmp_path):
    cut = zlib.compress(old_record(sample()))[:-9]
    with pytest.raises(DataError, match=r"record 0 .*cut short"):
        read(write_lmdb(tmp_path / "cut.lmdb", [cut]))
    json = zlib.compress(b'{"numbers": [1]}')
    with pytest.raises(DataError, match="format 'aselmdb'"):
        read(write_lmdb(tmp_path / "json.lmdb", [json]))


def test_a_value_that_grows_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lamm.data.readers.oc_lmdb.MAX_RECORD_BYTES", 1 << 16)
    path = write_lmdb(tmp_path / "a.lmdb", [zlib.compress(bytes(1 << 20))])
    with pytest.raises(DataError, match="more than 65536 bytes"):
        read(path)


def test_a_file_that_is_no_lmdb_is_told(tmp_path):
    (tmp_path / "text.lmdb").write_bytes(b"these are not the pages of a database\n" * 1000)
    (tmp_path / "empty.lmdb").write_bytes(b"")
    for name, message in (
        ("text", r"text\.lmdb: not an LMDB"),
        ("empty", r"empty\.lmdb: an empty file"),
        ("missing", r"missing\.lmdb: no such file"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path / f"{name}.lmdb")
        with pytest.raises(DataError, match=message):
            count_oc_lmdb(tmp_path / f"{name}.lmdb", header())
    write_lmdb(tmp_path / "none.lmdb", [])
    with pytest.raises(DataError, match="without records"):
        read(tmp_path / "none.lmdb")


def test_an_lmdb_that_was_cut_short_is_told_before_it_is_touched(tmp_path, records):
    path = write_lmdb(tmp_path / "a.lmdb", [old_record(one) for one in records])
    env = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
    used = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    env.close()
    path.write_bytes(path.read_bytes()[: used - 4096])
    with pytest.raises(DataError, match=rf"cut short: \d+ bytes, expected {used}"):
        read(path)


def test_reading_leaves_the_folder_as_it_was(tmp_path, records):
    made = write_lmdb(tmp_path / "made.lmdb", [old_record(one) for one in records])
    folder = tmp_path / "read only"
    folder.mkdir()
    path = Path(shutil.copy(made, folder / "a.lmdb"))
    before = path.read_bytes()
    path.chmod(0o444)
    read(path)
    assert [one.name for one in folder.iterdir()] == ["a.lmdb"]
    assert path.read_bytes() == before


def test_two_readers_of_one_file_do_not_hinder_each_other(tmp_path, records):
    path = write_lmdb(tmp_path / "a.lmdb", [old_record(one) for one in records])
    one, other = (read_oc_lmdb(path, header()) for _ in range(2))
    pairs = [(first.id, second.id) for first, second in zip(one, other, strict=True)]
    assert len(pairs) == 12
    assert all(first == second for first, second in pairs)
    lmdb.open(str(path), subdir=False, readonly=True, lock=False).close()  # and it is closed again


# Pickle files


def test_a_pickle_file_of_a_list_is_read_like_an_lmdb(tmp_path, records):
    path = tmp_path / "some_val.pkl"
    path.write_bytes(pickle.dumps(records))
    structures = read(path, **S2EF)
    assert [one.energy for one in structures] == [-1.5 - number for number in range(12)]
    assert count_oc_lmdb(path, header()) is None
    assert [one.origin for one in read_oc_lmdb(path, header(), start=10)] == [
        "some_val.pkl:10",
        "some_val.pkl:11",
    ]


def test_a_pickle_file_of_one_record_is_read_and_of_something_else_is_not(tmp_path):
    (tmp_path / "one.pkl").write_bytes(new_record(sample()))
    assert len(read(tmp_path / "one.pkl")) == 1
    (tmp_path / "references.pkl").write_bytes(pickle.dumps({"random1": -3.0}))
    with pytest.raises(DataError, match=r"holds a dict(.|\n)*reader\.references"):
        read(tmp_path / "references.pkl")


# Which energy


ENERGIES = {
    "S2EF takes the structure's own": ("S2EF", sample(), -1.5),
    "S2EF also beside the relaxed one": ("S2EF", sample(y_relaxed=-9.0), -1.5),
    "S2EF by its other name": ("S2EF-Total", sample(y=None, energy=-4.0), -4.0),
    "IS2RE takes the relaxed one": ("IS2RE", relaxation(), -2.25),
    "IS2RE also beside the structure's own": ("IS2RE", relaxation(y=-7.0), -2.25),
    "IS2RE-Total likewise": ("IS2RE-Total", relaxation(), -2.25),
    "without task, the only one": (None, sample(), -1.5),
    "without task, the only relaxed one": (None, relaxation(force=None), -2.25),
    "without label, as in a test set": ("IS2RE", relaxation(y_relaxed=None), None),
    "ODAC23's adsorption energy": ("S2EF", sample(raw_y=-900.0), -1.5),
    "OC22's total energy": ("S2EF-Total", sample(oc22=1), -1.5),
}


@pytest.mark.parametrize("case", ENERGIES)
def test_the_energy_is_the_one_of_the_task(case, tmp_path):
    task, record, expected = ENERGIES[case]
    structure = read_one(tmp_path, record, task=task)
    assert structure.energy == expected
    assert structure.has_forces == ("force" in record and task in (None, "S2EF", "S2EF-Total"))


UNCLEAR = {
    "IS2RE without a relaxed energy": ("IS2RE", sample(), "no 'y_relaxed'.*IS2RE"),
    "S2EF with nothing but it": ("S2EF", relaxation(), "only 'y_relaxed'"),
    "no task, relaxed energy and forces": (None, relaxation(), "'force' too"),
    "no task, both energies": (None, relaxation(y=-1.0, force=None), "'y' too"),
    "denoising, both energies": ("denoising", relaxation(y=-1.0), r"labels: \[\]"),
    "ODAC23 for total energies": ("S2EF-Total", sample(raw_y=-9.0), "adsorption(.|\n)*raw_y"),
    "ODAC23 without a task": (None, sample(raw_y=-9.0), "adsorption(.|\n)*raw_y"),
    "OC22 for adsorption energies": ("S2EF", sample(oc22=torch.tensor(1)), "total one"),
    "OC22 for relaxed ones": ("IS2RE", relaxation(oc22=1), "total one"),
    "two names": ("S2EF", sample(energy=-9.0), "could all be the energy"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_an_energy_that_may_be_another_is_an_error(case, tmp_path):
    task, record, message = UNCLEAR[case]
    with pytest.raises(DataError, match=message):
        read_one(tmp_path, record, task=task)


def test_a_key_in_the_card_goes_before_the_task(tmp_path):
    keys = {"energy": "raw_y"}
    record = sample(raw_y=torch.tensor([-900.0]), energy=1.0)
    assert read_one(tmp_path, record, task="S2EF-Total", keys=keys).energy == -900.0
    relaxed = read_one(tmp_path, relaxation(), keys={"energy": "y_relaxed"})
    assert relaxed.energy == -2.25
    assert not relaxed.has_forces


@pytest.mark.parametrize(
    "entries",
    [
        {"task": "IS2RE", "labels": ["energy", "forces"]},
        {"task": "IS2RE", "keys": {"forces": "force"}},
        {"task": "S2EF", "keys": {"energy": "y_relaxed"}},
        {"labels": ["energy", "forces"], "keys": {"energy": "y_relaxed"}},
        {"task": "S2EF", "keys": {"energy": "raw_y"}},
        {"task": "S2EF", "reader": {"references": "oc20_ref.pkl"}},
        {"reader": {"reference": "oc20_ref.pkl"}},
    ],
    ids=str,
)
def test_a_card_that_contradicts_itself_is_refused(entries, tmp_path):
    with pytest.raises(ConfigError):
        read_one(tmp_path, relaxation(), **entries)


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_a_label_that_is_promised_and_missing_is_an_error(label, tmp_path):
    record = sample(**{{"energy": "y", "forces": "force"}[label]: None})
    with pytest.raises(DataError, match=f"no '{label}', which the card promises"):
        read_one(tmp_path, record, **S2EF)


def test_labels_are_noted_and_the_others_are_seen(tmp_path):
    path = write_lmdb(tmp_path / "a.lmdb", [old_record(sample(raw_y=1.0))])
    found = KeysFound()
    list(read_oc_lmdb(path, header(**S2EF), found=found))
    assert found.names == {"energy": "y", "forces": "force"}
    assert {"raw_y", "sid", "tags"} <= set(found.seen)


# Reference energies


@pytest.fixture
def references(tmp_path: Path) -> str:
    path = tmp_path / "oc20_ref.pkl"
    path.write_bytes(pickle.dumps({"random700": -300.25, "random800": np.float64(-80.5)}))
    return str(path)


@pytest.mark.parametrize(
    ("task", "record", "expected"),
    [("S2EF-Total", sample(), -301.75), ("IS2RE-Total", relaxation(), -82.75)],
)
def test_a_total_energy_is_the_adsorption_energy_and_its_reference(
    task, record, expected, references, tmp_path
):
    reader = {"references": references}
    assert read_one(tmp_path, record, task=task, reader=reader).energy == expected


def test_a_system_without_reference_is_an_error_that_can_be_skipped(references, tmp_path):
    path = write_lmdb(tmp_path / "a.lmdb", [old_record(sample(n)) for n in (0, 2)])
    entries = {"task": "S2EF-Total", "reader": {"references": references}}
    with pytest.raises(DataError, match="no reference energy for 'random701'"):
        read(path, **entries)
    found = list(read_oc_lmdb(path, header(**entries), on_error="skip"))
    assert isinstance(found[0], Structure)
    assert isinstance(found[1], SkippedRecord)


def test_what_is_total_already_gets_no_reference(references, tmp_path):
    with pytest.raises(DataError, match="total one already"):
        read_one(tmp_path, sample(oc22=1), task="S2EF-Total", reader={"references": references})


def test_a_file_that_holds_no_references_is_refused(tmp_path):
    entries = {"task": "S2EF-Total", "reader": {"references": str(tmp_path / "list.pkl")}}
    with pytest.raises(DataError, match=r"list\.pkl: no such file"):
        read_one(tmp_path, sample(), **entries)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1.0]))
    with pytest.raises(DataError, match=r"list\.pkl: holds a list"):
        read_one(tmp_path, sample(), **entries)


# Cell, atoms, ids, split


CELLS = {
    "no cell": ({"cell": None}, {}, [False] * 3),
    "a cell of zeros": ({"cell": torch.zeros(1, 3, 3)}, {}, [False] * 3),
    "a cell": ({}, {}, [True] * 3),
    "a cell of a source of molecules": ({}, {"periodic": False}, [False] * 3),
    "what the record says": ({"pbc": torch.tensor([1.0, 1.0, 0.0])}, {}, [True, True, False]),
    "one for all": ({"pbc": torch.tensor([True])}, {}, [True] * 3),
    "a slab with two vectors": ({"cell": torch.diag(torch.tensor([5.0, 6.0, 0.0]))}, {},
                                [True, True, False]),
}  # fmt: skip


@pytest.mark.parametrize("case", CELLS)
def test_a_record_repeats_along_the_vectors_that_it_has(case, tmp_path):
    others, entries, expected = CELLS[case]
    assert read_one(tmp_path, sample(**others), **entries).pbc.tolist() == expected


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"pos": None}, "no 'pos'; the record has"),
        ({"atomic_numbers": None}, "no 'atomic_numbers'"),
        ({"natoms": 5}, "'natoms' is 5"),
        ({"pos": torch.zeros(3, 3)}, "shape"),
        ({"pos": torch.full((4, 3), torch.nan)}, "not finite"),
        ({"y": float("nan")}, "energy is nan"),
        ({"y": "low"}, "'y' is a str"),
        ({"y": torch.zeros(2)}, "one number"),
        ({"force": torch.zeros(2, 3)}, "shape"),
        ({"force": [[[1.0]]]}, "'force' is a list"),
        ({"atomic_numbers": torch.tensor([29.0, 0.5, 6.0, 8.0])}, "unknown element 0.5"),
        ({"fixed": torch.tensor([0.0, 2.0, 0.0, 0.0])}, "'fixed' has other values"),
        ({"fixed": torch.ones(3)}, "shape"),
        ({"cell": torch.zeros(2, 3)}, "'cell' has shape"),
        ({"pbc": torch.tensor([1, 1])}, "'pbc' is"),
        ({"sid": torch.tensor([1, 2])}, "'sid' is"),
        ({"sid": float("inf")}, "'sid' is"),
        ({"sid": 10**400}, "too large"),
    ],
)
def test_a_record_that_can_not_be_is_named_with_the_reason(others, message, tmp_path):
    with pytest.raises(DataError, match=rf"one\.lmdb, record 0 \(key '0'\): .*{message}"):
        read_one(tmp_path, sample(**others))


def test_ids_are_system_and_frame_or_what_the_card_says(tmp_path):
    assert read_one(tmp_path, relaxation(), task="IS2RE").id == "800"
    assert read_one(tmp_path, sample(sid="MOF-5", fid=3)).id == "MOF-5_3"
    assert read_one(tmp_path, sample(sid=None)).id == "one.lmdb:0"
    assert read_one(tmp_path, sample(id="0_0")).id == "700_0"
    assert read_one(tmp_path, sample(id="0_0"), keys={"id": "id"}).id == "0_0"
    assert read_one(tmp_path, sample(), keys={"id": "none"}).id == "one.lmdb:0"
    with pytest.raises(DataError, match=r"keys\.id"):
        read_one(tmp_path, sample(), keys={"id": "name"})


def test_ids_can_be_made_like_those_of_other_files_of_the_same_data(tmp_path):
    pattern = {"id": "random{sid}_frame{fid}"}
    assert read_one(tmp_path, sample(3), reader=pattern).id == "random701_frame1"
    assert read_one(tmp_path, sample(), reader={"id": "random{sid}"}).id == "random700"
    with pytest.raises(DataError, match=r"reader\.id"):
        read_one(tmp_path, sample(fid=None), reader=pattern)
    for wrong in ("{fid}", "random", "{sid.real}", "{sid}{number}"):
        with pytest.raises(ConfigError, match="'id': found"):
            read_one(tmp_path, sample(), reader={"id": wrong})


def test_fixed_atoms_are_those_of_the_card(tmp_path):
    held = torch.tensor([0, 0, 1, 1])
    named = read_one(tmp_path, sample(held=held), keys={"fixed": "held"})
    assert named.fixed is not None
    assert named.fixed.tolist() == [False, False, True, True]
    assert read_one(tmp_path, sample(), keys={"fixed": "none"}).fixed is None
    assert read_one(tmp_path, sample(fixed=torch.zeros(4))).fixed is None


def test_a_split_of_the_record_is_the_one_that_the_card_names(tmp_path):
    assert read_one(tmp_path, sample(part="valid"), keys={"split": "part"}).split == "val"
    assert read_one(tmp_path, sample(part="valid"), keys={"split": "none"}).split is None
    assert read_one(tmp_path, sample(part="valid")).split is None
    with pytest.raises(DataError, match=r"'part' is 'vall'\. Did you mean 'val'"):
        read_one(tmp_path, sample(part="vall"), keys={"split": "part"})
    with pytest.raises(DataError, match=r"keys\.split"):
        read_one(tmp_path, sample(), keys={"split": "part"})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/oc20/s2ef/all/train/data.0003.lmdb", "train"),
        ("/data/oc20/s2ef/all/val_id/data.0003.lmdb", "val"),
        ("/data/s2ef_val_ood_ads/s2ef_val_ood_ads/0.extxyz.xz", "val"),
        ("/data/is2re/all/test_ood_both/data.lmdb", "test"),
        ("/data/is2re/all/val_id/data.lmdb/data.mdb", "val"),
        ("/data/hme21_test.xyz", "test"),
        ("/data/train/hme21_test.xyz", "test"),
        ("oc22_pickle16_Validation.pkl", "val"),
        ("/data/is2res_train_val_test_lmdbs/data/data.lmdb", None),
        ("/data/train/is2res_train_val_test_lmdbs/data.lmdb", "train"),
        ("/home/test/data/a/b/c.lmdb", None),
        ("/data/a/contest/latest/trained.lmdb", None),
    ],
)
def test_the_nearest_name_with_one_split_tells_it(path, expected):
    assert split_of_path(path) == expected


def test_a_path_that_is_to_tell_the_split_and_does_not_is_an_error():
    assert source_split("/data/a/val_id/data.lmdb", "from_path") == "val"
    assert source_split("/data/a/val_id/data.lmdb", "train") == "train"
    assert source_split("/data/a/val_id/data.lmdb", None) is None
    with pytest.raises(DataError, match=r"don't tell a split(.|\n)*`split: train`"):
        source_split("/data/a/b/data.lmdb", "from_path")


def test_folders_of_lmdbs_become_a_store_with_the_splits_of_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr("lamm.data.writer.sync", lambda path: None)
    parts = {"train": (0, 1, 2), "train ": (3,), "val_id": (4, 5), "val_ood_ads": (6,)}
    for number, (folder, numbers) in enumerate(parts.items()):
        place = tmp_path / "s2ef" / folder.strip()
        place.mkdir(parents=True, exist_ok=True)
        pickled = [new_record(sample(one)) for one in numbers]
        write_lmdb(place / f"data.{number:04}.lmdb", pickled, length=len(numbers))
    card = ingest(
        "oc-lmdb", [tmp_path / "s2ef"], tmp_path / "store", header(**S2EF, split="from_path")
    )
    assert (card.num_structures, card.num_train, card.num_val) == (7, 4, 3)
    assert card.keys_found == {"energy": "y", "forces": "force"}
    assert card.periodic is True
    store = Store.open(tmp_path / "store")
    assert [store[row].energy for row in range(7)] == [-1.5 - number for number in range(7)]
    assert store[6].split == "val"
    assert store[6].id == "703_0"


# Genuine files


def test_an_lmdb_of_others_has_the_numbers_that_torch_reads(shared):
    path = shared / "data/pretrain/lips/data.lmdb"
    structures = read(path, **{**S2EF, "task": "S2EF-Total"})
    env = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
    with env.begin() as transaction:
        for number in (0, 57, 199):
            record = pickle.loads(transaction.get(b"%d" % number))
            structure = structures[number]
            np.testing.assert_array_equal(structure.positions, record["pos"].numpy())
            np.testing.assert_array_equal(structure.forces, record["force"].numpy())
            np.testing.assert_array_equal(structure.cell, record["cell"].numpy())
            assert structure.energy == float(record["energy"])
    env.close()
    assert len(structures) == 200


@pytest.mark.parametrize(
    ("name", "energy", "periodic"),
    [
        ("oc22_s2ef/oc22_pickle16_train.pkl", -566.62288864, True),
        ("transition1x/trans1x_pickle16_train.pkl", -7762.637212807026, False),
        ("ani1x/ani1x_pickle16_train.pkl", -7222.384567385502, False),
    ],
)
def test_pickles_of_others_are_read(name, energy, periodic, shared):
    structures = read(
        shared / "data/pretrain" / name,
        task="S2EF-Total",
        labels=["energy", "forces"],
    )
    assert len(structures) == 16
    assert structures[0].energy == energy
    assert {bool(one.pbc.all()) for one in structures} == {periodic}
    assert len({one.id for one in structures}) == 16
