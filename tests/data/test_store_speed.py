"""A store reads what is asked for and nothing else: no copies, no open files, few mappings."""

import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_samples import assert_same, some_structures

from lamm.data.columns import Columns, encode, read_batch
from lamm.data.store import Store
from lamm.structure import Structure

MakeStore = Callable[..., Store]


def mapped_shards(path: Path) -> int:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system doesn't tell what is mapped")
    return sum(f"{path}/shard-" in line for line in maps.read_text().splitlines())


def test_opening_copies_neither_the_index_nor_a_shard(make_store: MakeStore):
    path = make_store(some_structures(3000), edge_cutoff=1.0).path
    tracemalloc.start()
    store = Store.open(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * (path / "index.arrow").stat().st_size
    for field in fields(store.index):
        array = getattr(store.index, field.name)
        assert not array.flags.owndata, field.name
        assert not array.flags.writeable, field.name
    assert mapped_shards(path) == 0


def test_mapping_a_shard_costs_the_same_however_many_rows_it_has(make_store: MakeStore):
    path = make_store(some_structures(3000), edge_cutoff=1.0).path
    batch = read_batch(path / "shard-00000.arrow")
    tracemalloc.start()
    columns = Columns(batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert columns.num_rows == 3000
    assert peak < 20_000 < 0.03 * batch.nbytes


def test_no_file_stays_open(make_store: MakeStore):
    handles = Path("/proc/self/fd")
    if not handles.exists():
        pytest.skip("this system doesn't tell which files are open")
    store = make_store(some_structures(40), shard_structures=2)
    before = len(list(handles.iterdir()))
    assert sum(one.num_atoms for one in store) == store.card.num_atoms.total
    assert len(list(handles.iterdir())) == before
    assert mapped_shards(store.path) == 20


def test_only_so_many_shards_are_mapped_at_a_time(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lamm.data.store.MAX_MAPPED", 3)
    structures = some_structures(40)
    store = make_store(structures, shard_structures=4)
    held = store[1]
    rows = np.random.default_rng(0).permutation(40)
    for row, found in zip(rows, store.structures(rows), strict=True):
        assert_same(found, structures[row])
    assert sum(shard is not None for shard in store._shards) == 3
    assert_same(held, structures[1])
    assert mapped_shards(store.path) <= 4  # three, and the one of the structure that is held


def test_a_stored_structure_is_frozen_and_decodes_each_field_once(make_store: MakeStore):
    structures = some_structures(50)
    store = make_store(structures)
    for number in (0, 7, 12, 21):
        one = store[number]
        assert isinstance(one, Structure)
        assert one.fixed is one.fixed
        assert one.id is one.id
        for field in fields(Structure):
            with pytest.raises(FrozenInstanceError):
                setattr(one, field.name, None)
            value = getattr(one, field.name)
            assert not isinstance(value, np.ndarray) or not value.flags.writeable, field.name


def test_a_copied_structure_leaves_its_shard_behind(make_store: MakeStore):
    structures = some_structures(2000)
    store = make_store(structures, edge_cutoff=1.0)
    content = pickle.dumps(store[7])
    assert len(content) < 3000
    copy = pickle.loads(content)
    assert type(copy) is Structure
    assert_same(copy, structures[7])


def test_a_field_of_a_stored_structure_can_be_replaced(make_store: MakeStore):
    store = make_store(some_structures(10))
    changed = replace(store[7], fixed=None, id="another")
    assert (changed.fixed, changed.id, changed.origin) == (None, "another", "made:7")
    assert_same(replace(changed, fixed=store[7].fixed, id=store[7].id), store[7])


@pytest.mark.parametrize("numpy_type", [np.int32, np.int64, np.uint8])
def test_numbers_of_any_integer_type_are_taken(make_store: MakeStore, numpy_type: type):
    store = make_store(some_structures(5))
    assert store[numpy_type(3)].id == "structure 3"
    for wrong in ("3", 3.0, None, slice(1, 3)):
        with pytest.raises(TypeError):
            store[wrong]


def test_columns_that_another_tool_left_empty_are_absent():
    batch = encode(some_structures(9)[1:2], "float64", lambda batch: np.zeros(len(batch)))
    empty = batch.set_column(
        batch.schema.get_field_index("stress"), "stress", pa.nulls(1, pa.list_(pa.float64(), 6))
    )
    assert Columns(empty).structure(0).stress is None


def test_columns_of_different_lengths_are_refused():
    batch = encode(some_structures(5), "float64", lambda batch: np.zeros(len(batch)))
    shorter = pa.array([[0.0, 0.0, 0.0]] * 5, pa.list_(pa.float64()))
    wrong = batch.set_column(batch.schema.get_field_index("positions"), "positions", shorter)
    with pytest.raises(pa.ArrowInvalid, match="positions of 5 atoms, atomic_numbers of"):
        Columns(wrong)


@pytest.mark.parametrize("first", [0, 1, 7, 8, 13])
def test_masks_are_unpacked_from_any_bit_on(first: int):
    rng = np.random.default_rng(first)
    structures = [
        Structure(np.ones(n, dtype=np.uint8), np.zeros((n, 3)), fixed=rng.random(n) < 0.5)
        for n in range(1, 40)
    ]
    columns = Columns(
        encode(structures, "float64", lambda batch: np.zeros(len(batch))).slice(first)
    )
    for row, expected in enumerate(structures[first:]):
        np.testing.assert_array_equal(columns.structure(row).fixed, expected.fixed)
