"""Source files become a store: the same for any number of workers, or nothing at all."""

import lzma
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from data_samples import FILES, assert_same, some_structures

from lamm.data.cards import CardHeader
from lamm.data.ingest import IngestProgress, distinct_names, find_sources, ingest
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError

WATER = FILES / "water.extxyz"


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Three files of some structures, the first two of one name."""
    from ase.io.extxyz import write_extxyz

    paths = [tmp_path / name for name in ("a/x.extxyz", "b/x.extxyz", "b/y.extxyz")]
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        atoms = [one.to_atoms() for one in some_structures(20, seed)]
        for one in atoms:
            del one.info["id"]
        with path.open("w") as file:
            write_extxyz(file, atoms)
    return paths


def content(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.iterdir())}


def test_a_hand_made_file_becomes_a_store(tmp_path: Path) -> None:
    header = CardHeader(name="water", functional="PBE")
    card = ingest("extxyz", [WATER], tmp_path / "s", header)
    store = Store.open(tmp_path / "s")
    assert store.card == card
    assert [one.id for one in store] == ["w-001", "007", "lone atom"]
    assert card.labels == ("energy", "forces", "stress")
    assert card.label_counts == {"energy": 3, "forces": 2, "stress": 1}
    assert card.keys_found == {"energy": "energy", "forces": "forces", "stress": "stress"}
    assert card.factors == {"energy": 1.0, "length": 1.0, "forces": 1.0, "stress": 1.0}
    assert list(card.source_sha256) == ["water.extxyz"]
    assert card.periodic is None
    store.verify()


def test_any_number_of_workers_gives_the_same_bytes(sources: list[Path], tmp_path: Path) -> None:
    for workers in (1, 2):
        to = tmp_path / f"{workers}" / "store"
        ingest("extxyz", sources, to, CardHeader(), workers=workers, shard_bytes=12_000)
    one, two = content(tmp_path / "1" / "store"), content(tmp_path / "2" / "store")
    assert len(one) > 4
    assert one == two
    store = Store.open(tmp_path / "2" / "store")
    assert [one.id for one in store][:2] == ["a/x.extxyz:0", "a/x.extxyz:1"]
    assert [one.id for one in store][-1] == "y.extxyz:19"


def test_a_fault_in_a_later_file_leaves_nothing(sources: list[Path], tmp_path: Path) -> None:
    sources[1].write_text("1\nenergy=nan\nH 0 0 0\n")
    with pytest.raises(DataError, match=r"b/x.extxyz, record 0 \(line 1\): energy is nan") as error:
        ingest("extxyz", sources, tmp_path / "new" / "s", CardHeader())
    assert list((tmp_path / "new").iterdir()) == []
    from_a_worker = pickle.loads(pickle.dumps(error.value))
    assert (type(from_a_worker), str(from_a_worker)) == (DataError, str(error.value))


def test_a_folder_means_its_files(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "b" / "notes.txt").write_text("no data")
    assert find_sources([tmp_path / "b", sources[0]], (".extxyz",)) == [
        tmp_path / "b" / "x.extxyz",
        tmp_path / "b" / "y.extxyz",
        sources[0],
    ]


def test_names_are_as_short_as_tells_files_apart() -> None:
    paths = [
        Path("/d/train/0.xyz"),
        Path("/d/val/0.xyz"),
        Path("/d/val/1.xyz"),
        Path("/e/val/0.xyz"),
    ]
    assert distinct_names(paths) == ["train/0.xyz", "d/val/0.xyz", "1.xyz", "e/val/0.xyz"]


def test_skipped_records_and_large_structures_are_in_the_card(tmp_path: Path) -> None:
    path = tmp_path / "x.extxyz"
    path.write_text(WATER.read_text() + "1\nenergy=nan\nH 0 0 0\n")
    card = ingest("extxyz", [path], tmp_path / "s", CardHeader(max_atoms=3), on_error="skip")
    assert card.num_structures == 2
    assert card.num_skipped == 2
    assert [one.record for one in card.skipped] == ["x.extxyz:1", "x.extxyz:3"]
    assert card.skipped[0].reason == "4 atoms, more than max_atoms 3"


def test_the_rest_of_a_damaged_file_can_be_skipped(tmp_path: Path) -> None:
    text = "".join(f"1\nenergy={number}\nH 0 0 0\n" for number in range(50))
    packed = lzma.compress(text.encode(), preset=0)
    (tmp_path / "a.xyz.xz").write_bytes(packed[:-20])
    (tmp_path / "b.xyz").write_text("1\nenergy=1\nH 0 0 0\n2\nenergy=2\nH 0 0 0\n")
    (tmp_path / "c.xyz").write_text("1\nenergy=3\nH 0 0 0\n")
    paths = [tmp_path / name for name in ("a.xyz.xz", "b.xyz", "c.xyz")]
    with pytest.raises(DataError, match=r"a.xyz.xz: the compressed file is damaged or cut short"):
        ingest("extxyz", paths, tmp_path / "s", CardHeader())
    card = ingest("extxyz", paths, tmp_path / "s", CardHeader(), on_error="skip")
    first, second = card.skipped
    assert first.record.startswith("a.xyz.xz:")
    assert first.record.endswith("and all that follows")
    assert "damaged or cut short" in first.reason
    assert second.record == "b.xyz:1 and all that follows"
    assert [one.energy for one in Store.open(tmp_path / "s")][-2:] == [1.0, 3.0]


def test_the_card_may_say_whether_structures_repeat(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"water.extxyz:1: pbc is \[True, True, False\], and the"):
        ingest("extxyz", [WATER], tmp_path / "s", CardHeader(periodic=False))
    header = CardHeader(periodic=False)
    card = ingest("extxyz", [WATER], tmp_path / "s", header, on_error="skip")
    assert (card.num_structures, card.num_skipped, card.periodic) == (2, 1, False)


def test_files_that_call_a_label_differently_are_refused(tmp_path: Path) -> None:
    for name, key in (("a", "energy"), ("b", "REF_energy")):
        (tmp_path / f"{name}.xyz").write_text(f"1\n{key}=1\nH 0 0 0\n")
    paths = [tmp_path / "a.xyz", tmp_path / "b.xyz"]
    with pytest.raises(DataError, match=r"b.xyz: its energy label is called 'REF_energy', and"):
        ingest("extxyz", paths, tmp_path / "s", CardHeader())
    assert not (tmp_path / "s").exists()


def test_ids_that_repeat_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "x.xyz"
    path.write_text("1\nid=a energy=1\nH 0 0 0\n1\nid=a energy=1\nH 0 0 0\n")
    with pytest.raises(
        DataError, match=r"id 'a' is given twice: to x.xyz:0 and to x.xyz:1"
    ) as error:
        ingest("extxyz", [path], tmp_path / "s", CardHeader())
    assert "`keys: {id: none}`" in str(error.value)
    header = CardHeader.model_validate({"keys": {"id": "none"}})
    ingest("extxyz", [path], tmp_path / "s", header)
    assert [one.id for one in Store.open(tmp_path / "s")] == ["x.xyz:0", "x.xyz:1"]


def test_progress_ends_at_all_files(sources: list[Path], tmp_path: Path) -> None:
    seen: list[IngestProgress] = []
    ingest("extxyz", sources, tmp_path / "s", CardHeader(), progress=seen.append)
    assert seen[-1] == IngestProgress(3, 3, 60, skipped=0, fraction=1.0, taken_up=0)
    assert all(a.fraction <= b.fraction for a, b in pairwise(seen))
    assert all(a.structures <= b.structures for a, b in pairwise(seen))


def test_many_batches_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "many.xyz"
    path.write_text("".join(f"1\nenergy={number}\nH 0 0 0\n" for number in range(700)))
    ingest("extxyz", [path], tmp_path / "s", CardHeader(), shard_structures=300)
    store = Store.open(tmp_path / "s")
    assert [one.energy for one in store] == list(range(700))
    assert [shard.rows for shard in store.card.shards] == [300, 300, 100]


class TestAWrongRequestIsRefused:
    def test_format(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"unknown format 'extxzy'. Did you mean 'extxyz'"):
            ingest("extxzy", [WATER], tmp_path / "s", CardHeader())

    def test_missing_source(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none.xyz: no such file or folder"):
            ingest("extxyz", [tmp_path / "none.xyz"], tmp_path / "s", CardHeader())

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no file in this folder ends in .xyz"):
            ingest("extxyz", [tmp_path], tmp_path / "s", CardHeader())

    def test_a_file_named_twice(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="named twice"):
            ingest("extxyz", [WATER, WATER.parent], tmp_path / "s", CardHeader())

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "e.xyz").write_text("")
        with pytest.raises(DataError, match=r"no structure to store. The source has no records"):
            ingest("extxyz", [tmp_path / "e.xyz"], tmp_path / "s", CardHeader())

    def test_nothing_left(self, tmp_path: Path) -> None:
        path = tmp_path / "w.xyz"
        path.write_text("3\n\nH 0 0 0\nH 1 0 0\nH 2 0 0\n")
        with pytest.raises(DataError, match=r"All 1 records were skipped, the first for: 3 atoms"):
            ingest("extxyz", [path], tmp_path / "s", CardHeader(max_atoms=1))


@pytest.mark.parametrize(
    ("name", "split", "fixed"),
    [("downstream/mad_pbesol/mad_val_1000.xyz.xz", "val", False), ("oc20", None, True)],
)
def test_genuine_files_are_read(
    shared: Path, tmp_path: Path, name: str, split: str | None, fixed: bool
) -> None:
    path = shared / "data" / name
    if name == "oc20":
        path = shared / "data/pretrain/oc20_s2ef/train/7.extxyz.xz"
    short = tmp_path / "short.extxyz"
    short.write_text(_first_records(path, 20))
    ingest("extxyz", [short], tmp_path / "s", CardHeader())
    import ase.io

    store = Store.open(tmp_path / "s")
    for one, atoms in zip(store, ase.io.read(short, ":"), strict=True):
        np.testing.assert_array_equal(one.positions, atoms.positions)
        np.testing.assert_array_equal(one.atomic_numbers, atoms.numbers)
        assert one.energy == atoms.get_potential_energy()
        expected = atoms.get_forces(apply_constraint=False).astype(np.float32)
        np.testing.assert_array_equal(one.forces, expected)
        assert one.split == split
        assert (one.fixed is not None and one.fixed.any()) == fixed
    assert_same(store[0], store[0])


def _first_records(path: Path, count: int) -> str:
    import lzma

    lines: list[str] = []
    with lzma.open(path, "rt") as file:
        for _ in range(count):
            lines.append(file.readline())
            lines += [file.readline() for _ in range(int(lines[-1]) + 1)]
    return "".join(lines)
