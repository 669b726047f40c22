"""Several stores as one: ids, splits, masks, noise, batches."""

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lamm.balance.columns import as_array
from lamm.data.joint import DataConfig, JointDataset, store_path
from lamm.data.loader import (
    PlannedBatches,
    _stand_back,
    load_batches,
    one_ahead,
    split_parts,
)
from lamm.errors import ConfigError, DataError, StoreError
from lamm.graph.neighbors import GraphConfig
from small import small_config, small_store

GRAPH = GraphConfig(cutoff=4.0)


@pytest.fixture
def joint(tmp_path: Path) -> JointDataset:
    return JointDataset(small_config(tmp_path).data, seed=5)


def test_ids_count_through_the_subsets_in_the_order_of_the_configuration(joint: JointDataset):
    assert joint.names == ("both", "energies", "none")
    assert joint.offsets.tolist() == [0, 40, 80, 120]
    ids = np.array([0, 39, 40, 119])
    assert joint.subset_of(ids).tolist() == [0, 0, 1, 2]
    assert joint.structure(40).id == "energies/0"


def test_every_structure_is_in_one_split(joint: JointDataset):
    parts = [joint.ids(split) for split in ("train", "val", "test")]
    assert sorted(np.concatenate(parts).tolist()) == list(range(120))
    assert len(parts[1]) > 0


def test_labels_are_those_of_the_subset(joint: JointDataset):
    assert as_array(joint.has_energy).tolist() == [True] * 80 + [False] * 40
    assert as_array(joint.has_forces).tolist() == [True] * 40 + [False] * 40 + [True] * 40
    assert joint.is_denoising.tolist() == [False, False, True]


def test_noise_depends_on_draw_and_seed_and_validation_noise_never_changes(joint: JointDataset):
    first, second = joint.structure(100, 0), joint.structure(100, 1)
    assert not np.array_equal(first.positions, second.positions)
    assert np.array_equal(first.positions, joint.structure(100, 0).positions)
    fixed = joint.structure(100)
    assert np.array_equal(fixed.positions, joint.structure(100).positions)
    clean = joint.subsets[2].store[20]
    assert np.allclose(fixed.positions + fixed.forces, clean.positions, atol=1e-6)
    assert np.allclose(fixed.forces.mean(axis=0), 0, atol=1e-7)


def test_the_denoising_subset_is_scaled_by_its_noise(joint: JointDataset):
    normalisation = joint.subsets[2].normalisation()
    assert normalisation.force_scale == joint.subsets[2].denoising.std
    assert normalisation.energy_scale == 1.0


def test_a_subset_may_use_fewer_labels_than_its_store_has(tmp_path: Path):
    config = small_config(tmp_path)
    subset = config.data.subsets["both"].model_copy(update={"labels": ["energy"]})
    joint = JointDataset(config.data.model_copy(update={"subsets": {"both": subset}}))
    assert not as_array(joint.has_forces).any()
    parts = split_parts(joint, joint.ids("train"), 64, 0, 1)
    batch = PlannedBatches(joint, GRAPH)[parts[0]]
    assert batch.has_energy.all()
    assert not batch.has_forces.any()


def test_large_structures_can_be_left_out(tmp_path: Path):
    store = small_store(tmp_path / "store")
    data = {"subsets": {"one": {"store": str(store), "max_atoms": 5}}, "val_fraction": 0.2}
    joint = JointDataset(DataConfig.model_validate(data))
    used = np.concatenate([joint.ids(split) for split in ("train", "val")])
    assert joint.num_atoms[used].max() <= 5
    assert len(used) < len(joint)


def test_the_number_of_training_structures_can_be_limited(tmp_path: Path):
    store = small_store(tmp_path / "store")
    base = {"subsets": {"one": {"store": str(store)}}, "val_fraction": 0.2}
    few = JointDataset(DataConfig.model_validate(base | {"max_train_structures": 5}))
    more = JointDataset(DataConfig.model_validate(base | {"max_train_structures": 9}))
    assert len(few.ids("train")) == 5
    assert set(few.ids("train")) < set(more.ids("train"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_for_any_number_of_worker_processes(joint: JointDataset, workers):
    parts = split_parts(joint, joint.ids("train"), 60, 0, 1)
    batches = PlannedBatches(joint, GRAPH)
    for number, batch in enumerate(
        load_batches(batches, parts, workers=workers, device=torch.device("cpu"))
    ):
        expected = batches[parts[number]]
        assert torch.equal(batch.ids, expected.ids)
        assert torch.equal(batch.positions, expected.positions)
        assert torch.equal(batch.edge_index, expected.edge_index)


def test_validation_batches_hold_every_structure_once_over_all_ranks(joint: JointDataset):
    ids = joint.ids("train")
    parts = [part for rank in range(3) for part, _ in split_parts(joint, ids, 30, rank, 3)]
    assert sorted(np.concatenate(parts).tolist()) == ids.tolist()
    assert all(len(part) == 1 or joint.num_atoms[part].sum() <= 30 for part in parts)


def test_a_store_without_usable_labels_says_what_to_do(tmp_path: Path):
    store = small_store(tmp_path / "store", labels="E")
    data = {"subsets": {"one": {"store": str(store), "labels": ["forces"]}}}
    with pytest.raises(ConfigError, match="denoising"):
        JointDataset(DataConfig.model_validate(data))


def test_paths_of_stores_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STORES", str(tmp_path))
    assert store_path("$STORES/one") == tmp_path / "one"
    with pytest.raises(ConfigError, match="not set"):
        store_path("$NOT_SET_ANYWHERE/one")
    with pytest.raises(ConfigError, match="molecules_unlabelled"):
        store_path("mini:molecules_unlabeled")
    with pytest.raises(StoreError, match="no store at this path"):
        JointDataset(DataConfig.model_validate({"subsets": {"x": {"store": str(tmp_path / "x")}}}))


def test_the_next_item_is_taken_while_one_is_in_use():
    taken: list[int] = []
    second = threading.Event()

    def items():
        for number in range(3):
            taken.append(number)
            if number == 1:
                second.set()
            yield number

    ahead = one_ahead(items(), abs)
    assert next(ahead) == 0
    assert second.wait(5), "number 1 is taken while 0 is in use"
    assert list(ahead) == [1, 2]
    assert taken == [0, 1, 2]


def test_an_item_arrives_before_the_next_is_asked_for():
    happened: list[tuple[str, int]] = []

    def items():
        for number in range(3):
            happened.append(("taken", number))
            yield number

    def arrive(number: int) -> int:
        time.sleep(0.02)  # long enough for the thread that takes items, were it told to
        happened.append(("arrived", number))
        return number

    assert list(one_ahead(items(), arrive)) == [0, 1, 2]
    assert happened == [(what, number) for number in range(3) for what in ("taken", "arrived")]


class FrozenObjects(Dataset[int]):
    """How many objects the process that is asked leaves out of its search for garbage."""

    def __getitem__(self, _: int) -> int:
        return gc.get_freeze_count()


def test_workers_leave_the_garbage_of_the_rank_alone():
    loader = DataLoader(
        FrozenObjects(), batch_size=None, sampler=[0], num_workers=1, worker_init_fn=_stand_back
    )
    before = len(gc.get_objects())
    assert next(iter(loader)) > 0.9 * before
    assert gc.get_freeze_count() == 0, "the rank goes on as it was"


def test_what_goes_wrong_ahead_is_raised_where_the_item_is_asked_for():
    def items():
        yield 0
        raise DataError("no such structure")

    ahead = one_ahead(items(), abs)
    assert next(ahead) == 0
    with pytest.raises(DataError, match="no such structure"):
        next(ahead)
