"""What goes into a store comes out of it, and a store that isn't whole is refused."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_samples import assert_same, some_structures

from lamm.data.cards import CardHeader
from lamm.data.columns import ENERGY, FORCES, STRESS, Columns, encode
from lamm.data.references import fit_normalisation
from lamm.data.splits import assign_splits, hash_id
from lamm.data.store import Store, StoreWriter
from lamm.errors import DataError, StoreError
from lamm.structure import Structure

MakeStore = Callable[..., Store]


@pytest.mark.parametrize("shard_structures", [1, 7, 100_000])
def test_structures_come_back_as_they_were(make_store: MakeStore, shard_structures: int) -> None:
    structures = some_structures(300)
    store = make_store(structures, shard_structures=shard_structures)
    assert len(store) == len(store.index) == 300
    assert len(store.card.shards) == -(-300 // shard_structures)
    for found, expected in zip(store, structures, strict=True):
        assert_same(found, expected)
        found.check()
    assert_same(store[-1], structures[-1])
    store.verify()


def test_arrays_are_views_of_the_file(make_store: MakeStore) -> None:
    store = make_store(some_structures(5))
    first, again = store[1], store[1]
    for name in ("atomic_numbers", "positions", "cell", "forces"):
        array = getattr(first, name)
        assert np.shares_memory(array, getattr(again, name)), name
        assert not array.flags.writeable


def test_the_index_knows_sizes_labels_splits_and_ids(make_store: MakeStore) -> None:
    structures = some_structures(50)
    index = make_store(structures, shard_structures=20).index
    for row, one in enumerate(structures):
        free = one.forces is not None and (one.fixed is None or not one.fixed.all())
        mask = ENERGY * one.has_energy + FORCES * free + STRESS * (one.stress is not None)
        assert index.labels[row] == mask
        assert index.num_atoms[row] == one.num_atoms
        assert (index.shard[row], index.row[row]) == divmod(row, 20)
        assert index.split[row] == {None: 0, "train": 1, "val": 2, "test": 3}[one.split]
        assert index.id_hash[row] == hash_id(one.id)
    assert index.has_energy.sum() == sum(one.has_energy for one in structures)


def test_edges_are_counted_within_the_cards_cutoff(make_store: MakeStore) -> None:
    positions = np.array([[0.0, 0, 0], [2.0, 0, 0], [5.0, 0, 0]])
    three = Structure(np.array([1, 1, 1], dtype=np.uint8), positions, energy=0.0)
    assert make_store([three], "wide").index.num_edges.tolist() == [6]
    assert make_store([three], "narrow", edge_cutoff=4.0).index.num_edges.tolist() == [4]
    assert make_store([three], "few", edge_max_neighbors=1).index.num_edges.tolist() == [3]


def test_forces_on_fixed_atoms_alone_are_no_label(make_store: MakeStore) -> None:
    held = Structure(
        np.array([1], dtype=np.uint8),
        np.zeros((1, 3)),
        forces=np.ones((1, 3)),
        fixed=np.array([True]),
    )
    store = make_store([held])
    assert not store.index.has_forces.any()
    assert store.card.label_counts["forces"] == 0
    assert store.card.force_scale is None
    np.testing.assert_array_equal(store[0].forces, held.forces)


def test_an_arrow_tool_reads_a_shard(make_store: MakeStore) -> None:
    structures = some_structures(10)
    store = make_store(structures)
    table = pa.ipc.open_file(store.path / "shard-00000.arrow").read_all()
    assert table["energy"].to_pylist() == [one.energy for one in structures]
    fixed = [None if one.fixed is None else one.fixed.tolist() for one in structures]
    assert table["fixed"].to_pylist() == fixed
    assert table["positions"].to_pylist()[3] == structures[3].positions.ravel().tolist()


def test_positions_keep_the_precision_of_the_source(make_store: MakeStore) -> None:
    single = [
        Structure(np.array([1], dtype=np.uint8), np.ones((1, 3), dtype=np.float32), energy=0.0)
    ]
    store = make_store(single, "single")
    assert store.card.position_dtype == "float32"
    assert store[0].positions.dtype == np.float32
    double = make_store(single, "double", position_dtype="float64")
    assert double[0].positions.dtype == np.float64
    with pytest.raises(DataError, match="float64, and in float32 in the records before"):
        make_store([*single, *some_structures(1)], "mixed")


def test_no_shard_is_larger_than_asked_for(tmp_path: Path) -> None:
    header = CardHeader(name="small shards")
    with StoreWriter(tmp_path / "s", header, shard_bytes=20_000) as writer:
        for structure in some_structures(400):
            writer.add(structure)
    sizes = [shard.bytes for shard in writer.card.shards]
    assert len(sizes) > 3
    assert max(sizes) <= 20_000
    assert min(sizes[:-1]) > 8_000


def test_a_structure_larger_than_a_shard_is_alone_in_one(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", CardHeader(), shard_bytes=1) as writer:
        for structure in some_structures(3):
            writer.add(structure)
    assert [shard.rows for shard in writer.card.shards] == [1, 1, 1]


def test_the_card_counts_and_fits_what_is_there(make_store: MakeStore) -> None:
    structures = some_structures(200)
    store = make_store(structures, shard_structures=31, functional="PBE", citation="somebody")
    card = store.card
    assert card.num_structures == 200
    assert card.num_atoms.total == sum(one.num_atoms for one in structures)
    assert card.num_atoms.max == max(one.num_atoms for one in structures)
    assert card.num_periodic == sum(one.pbc.any() for one in structures)
    assert card.periodic is None
    assert card.elements == ("H", "C", "O", "Cu")
    assert (card.functional, card.citation, card.task) == ("PBE", ("somebody",), "S2EF-Total")
    split = assign_splits(store.index.id_hash, store.index.split)
    assert [card.num_train, card.num_val, card.num_test] == np.bincount(split)[1:].tolist()
    fitted = fit_normalisation(store, np.flatnonzero(split == 1))
    of_card = store.normalisation()
    np.testing.assert_allclose(of_card.reference_energies, fitted.reference_energies, rtol=1e-9)
    np.testing.assert_array_equal(of_card.known, fitted.known)
    assert of_card.energy_scale == pytest.approx(fitted.energy_scale, rel=1e-9)
    assert of_card.force_scale == pytest.approx(fitted.force_scale, rel=1e-6)


def test_structures_without_labels_make_a_denoising_card(make_store: MakeStore) -> None:
    card = make_store([Structure(np.array([6], dtype=np.uint8), np.zeros((1, 3)))]).card
    assert (card.task, card.labels) == ("denoising", ())
    assert (card.energy_scale, card.force_scale, card.reference_energies) == (None, None, {})
    assert card.normalisation().energy_scale == 1.0


def test_a_structure_without_an_id_is_named_by_its_place(make_store: MakeStore) -> None:
    hydrogen = Structure(np.array([1], dtype=np.uint8), np.zeros((1, 3)), energy=0.0)
    assert [one.id for one in make_store([hydrogen, hydrogen])] == ["row:0", "row:1"]


def test_two_structures_of_one_id_are_refused_by_name(
    make_store: MakeStore, tmp_path: Path
) -> None:
    structures = some_structures(20)
    twin = structures[3]
    with pytest.raises(
        DataError, match=r"id 'structure 3' is given twice: to made:3 and to made:3"
    ):
        make_store([*structures, twin], shard_structures=4)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing_behind(make_store: MakeStore, tmp_path: Path) -> None:
    bad = Structure(np.array([1], dtype=np.uint8), np.full((1, 3), np.nan), origin="file:7")
    with pytest.raises(DataError, match=r"file:7: 'positions' has a value that is not finite"):
        make_store([*some_structures(3), bad])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no structure to store"):
        make_store([])
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_never_written_over(make_store: MakeStore) -> None:
    make_store(some_structures(2))
    with pytest.raises(StoreError, match="something at this path already"):
        make_store(some_structures(2))


def test_skipped_records_are_counted_and_the_first_thousand_listed(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", CardHeader()) as writer:
        writer.add(some_structures(1)[0])
        for number in range(1500):
            writer.skip(f"file:{number}", "no energy")
    assert writer.card.num_skipped == 1500
    assert len(writer.card.skipped) == 1000
    assert writer.card.skipped[0].reason == "no energy"


def test_another_process_opens_the_store_itself(make_store: MakeStore) -> None:
    store = make_store(some_structures(3))
    structure = store[2]
    copy = pickle.loads(pickle.dumps(store))
    assert_same(copy[2], structure)


def test_a_thousand_shards_open_at_once(make_store: MakeStore) -> None:
    one = Structure(np.array([1], dtype=np.uint8), np.zeros((1, 3)), energy=0.0)
    path = make_store([one] * 1000, shard_structures=1).path
    start = time.perf_counter()
    store = Store.open(path)
    assert time.perf_counter() - start < 1.0
    assert store._shards == [None] * 1000
    assert sum(structure.num_atoms for structure in store) == 1000


class TestABrokenStoreIsRefused:
    @pytest.fixture
    def path(self, make_store: MakeStore) -> Path:
        return make_store(some_structures(12), shard_structures=5).path

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"no store at this path.\n.*lamm data ingest"):
            Store.open(tmp_path / "nowhere")

    def test_a_file(self, path: Path) -> None:
        with pytest.raises(StoreError, match="found a file, expected a store"):
            Store.open(path / "card.json")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="a folder that is not a store"):
            Store.open(tmp_path)

    def test_half_written(self, path: Path) -> None:
        (path / "card.json").unlink()
        with pytest.raises(StoreError, match="only half written"):
            Store.open(path)

    def test_another_version(self, path: Path) -> None:
        self._change(path, format_version=7)
        with pytest.raises(StoreError, match="format_version is 7, expected 1"):
            Store.open(path)

    def test_a_card_cut_short(self, path: Path) -> None:
        card = path / "card.json"
        card.write_text(card.read_text()[:100])
        with pytest.raises(StoreError, match=r"card.json: can't be read"):
            Store.open(path)

    def test_a_wrong_entry_in_the_card(self, path: Path) -> None:
        self._change(path, num_structure=12)
        with pytest.raises(StoreError, match=r"'num_structure'. Did you mean 'num_structures'"):
            Store.open(path)

    def test_an_index_of_another_store(self, path: Path) -> None:
        self._change(path, num_structures=13)
        with pytest.raises(StoreError, match="12 structures, the shards 12, and the card says 13"):
            Store.open(path)

    def test_an_index_cut_short(self, path: Path) -> None:
        index = path / "index.arrow"
        index.write_bytes(index.read_bytes()[:-10])
        with pytest.raises(StoreError, match=r"index.arrow: found \d+ bytes, expected \d+"):
            Store.open(path)

    def test_a_shard_cut_short(self, path: Path) -> None:
        shard = path / "shard-00001.arrow"
        size = shard.stat().st_size
        shard.write_bytes(shard.read_bytes()[: size // 2])
        store = Store.open(path)
        assert store[4].num_atoms
        message = rf"shard-00001.arrow: found {size // 2} bytes, expected {size}: .* cut short"
        with pytest.raises(StoreError, match=message):
            store[5]

    def test_a_shard_missing(self, path: Path) -> None:
        (path / "shard-00002.arrow").unlink()
        store = Store.open(path)
        with pytest.raises(StoreError, match=r"shard-00002.arrow: the file is missing"):
            store[11]

    def test_a_shard_of_another_store(self, path: Path) -> None:
        shard = path / "shard-00000.arrow"
        shard.write_bytes(bytes(shard.stat().st_size))
        with pytest.raises(StoreError, match="not a readable Arrow file"):
            Store.open(path)[0]

    def test_a_changed_bit(self, path: Path) -> None:
        shard = path / "shard-00000.arrow"
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(bytes(content))
        with pytest.raises(StoreError, match=r"shard-00000.arrow: sha256 is .* damaged"):
            Store.open(path).verify()

    @staticmethod
    def _change(path: Path, **entries: object) -> None:
        card = json.loads((path / "card.json").read_text())
        (path / "card.json").write_text(json.dumps({**card, **entries}))


def test_no_such_structure(make_store: MakeStore) -> None:
    store = make_store(some_structures(3))
    for number in (3, -4):
        with pytest.raises(IndexError, match="which has 3"):
            store[number]


def test_a_moved_store_still_opens(make_store: MakeStore, tmp_path: Path) -> None:
    path = make_store(some_structures(3)).path
    shutil.move(path, tmp_path / "elsewhere")
    assert len(Store.open(tmp_path / "elsewhere")) == 3


def test_a_slice_of_a_batch_is_read_from_its_start() -> None:
    structures = some_structures(40)
    batch = encode(structures, "float64", lambda batch: np.zeros(len(batch))).slice(7, 20)
    columns = Columns(batch)
    for row, expected in enumerate(structures[7:27]):
        assert_same(columns.structure(row), expected)
    assert columns.num_atoms.tolist() == [one.num_atoms for one in structures[7:27]]
    expected_numbers = np.concatenate([one.atomic_numbers for one in structures[7:27]])
    np.testing.assert_array_equal(columns.atomic_numbers, expected_numbers)
    rows = np.arange(20) % 2 == 0
    free = [
        one.forces if one.fixed is None else one.forces[~one.fixed]
        for one in structures[7:27:2]
        if one.forces is not None
    ]
    np.testing.assert_array_equal(columns.free_forces(rows), np.concatenate(free))
