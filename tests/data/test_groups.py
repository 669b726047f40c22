"""Splits that keep copies and trajectories together."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lamm.data.cards import CardHeader
from lamm.data.groups import group_structures, split_groups
from lamm.data.splits import TEST, TRAIN, VAL
from lamm.data.store import Store, StoreWriter
from lamm.structure import Structure
from small import small_structure


def store_of(path: Path, structures: list[Structure]) -> Store:
    with StoreWriter(path, CardHeader(name="s", task="S2EF-Total")) as writer:
        for structure in structures:
            writer.add(structure)
    return Store.open(path)


def frames(rng: np.random.Generator, numbers: list[int], count: int, name: str) -> list[Structure]:
    base = rng.uniform(0, 2, (len(numbers), 3)) + np.arange(len(numbers))[:, None] * 1.5
    return [
        Structure(
            atomic_numbers=np.array(numbers, dtype=np.uint8),
            positions=base + rng.normal(0, 0.05, base.shape),
            energy=-1.0,
            forces=np.ones_like(base),
            id=f"{name}/{number}",
        )
        for number in range(count)
    ]


def test_frames_of_one_system_are_one_group(tmp_path: Path):
    rng = np.random.default_rng(0)
    systems = [frames(rng, [6, 8, *[1] * n], 3, f"s{n}") for n in range(1, 21)]
    group = group_structures(store_of(tmp_path / "s", [one for s in systems for one in s]))
    assert group.tolist() == [n for n in range(20) for _ in range(3)]


def test_one_long_trajectory_is_cut_into_blocks_of_neighbouring_frames(tmp_path: Path):
    group = group_structures(
        store_of(tmp_path / "s", frames(np.random.default_rng(1), [6, 8, 1, 1], 40, "md"))
    )
    assert group.tolist() == sorted(group.tolist())
    assert np.bincount(group).tolist() == [4] * 10


def test_a_copy_goes_where_its_original_goes(tmp_path: Path):
    rng = np.random.default_rng(2)
    some = [small_structure(rng, f"a/{n}") for n in range(30)]
    first = some[0]
    copy = Structure(
        atomic_numbers=first.atomic_numbers[::-1].copy(),
        positions=first.positions[::-1] + 0.7,
        energy=first.energy,
        forces=first.forces[::-1].copy(),
        id="copy",
    )
    group = group_structures(store_of(tmp_path / "s", [*some, copy]))
    assert group[-1] == group[0]


def test_copies_among_frames_in_no_order_dont_join_all_of_them(tmp_path: Path):
    some = frames(np.random.default_rng(3), [6, 8, 1, 1], 40, "md")
    copies = [(1, 38), (6, 30), (11, 25), (15, 20), (2, 33), (9, 27), (13, 36)]
    for one, other in copies:
        some[other] = replace(some[one], id=some[other].id)
    group = group_structures(store_of(tmp_path / "s", some))
    assert all(group[one] == group[other] for one, other in copies)
    assert len(set(group.tolist())) == 10
    assert np.bincount(group).max() <= 7
    assert {VAL, TEST, TRAIN} == set(split_groups(group, 0.1, 0.1).tolist())


def test_groups_are_held_out_whole_and_by_the_shares():
    group = np.repeat(np.arange(50), 4)
    split = split_groups(group, 0.1, 0.1)
    assert all(len(set(split[group == one])) == 1 for one in range(50))
    assert (split == VAL).sum() == (split == TEST).sum() == 20
    assert (split == TRAIN).sum() == 160
    assert np.array_equal(split, split_groups(group, 0.1, 0.1))


def test_two_unequal_groups_still_give_validation_and_training():
    group = np.array([0] * 9 + [1] * 5)
    split = split_groups(group, 0.1, 0.1)
    assert set(split[group == 1]) == {VAL}
    assert set(split[group == 0]) == {TRAIN}
