import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamm.balance.plan import PLANNERS, PlanIndex, plan_epoch, planner_advice, windows
from lamm.balance.uses import BatchShape
from lamm.data.sampling import SamplingConfig, temperature_sizes
from lamm.errors import ConfigError, DataError
from lamm.keyed import hash64

ANY_PLANNER = st.sampled_from(sorted(PLANNERS))


@st.composite
def small_indices(draw):
    """Up to five subsets of up to 40 structures; a subset may be empty, the last may not."""
    sizes = [*draw(st.lists(st.integers(0, 40), max_size=4)), draw(st.integers(1, 40))]
    total, key = sum(sizes), draw(st.integers(0, 2**32))
    subset = np.repeat(np.arange(len(sizes)), sizes)
    return PlanIndex(
        ids=3 * np.arange(total) + 5,
        subset=subset,
        cost=(hash64(np.arange(total), key) % np.uint64(300)).astype(np.int64) + 1,
        has_energy=hash64(np.arange(total), key + 1) % np.uint64(3) > 0,
        has_forces=subset % 2 == 0,
    )


def plan_of(index, **changes):
    arguments = {"seed": 1, "epoch": 0, "ranks": 4, "batch_size": 8, **changes}
    temperature = arguments.pop("temperature", 2.0)
    return plan_epoch(index, SamplingConfig(temperature=temperature), **arguments)


def mini_batches(plan):
    """The sorted ids of each step, whatever the rank."""
    bounds = plan.step_rank_offsets[:: plan.num_ranks]
    return [np.sort(plan.ids[a:b]).tolist() for a, b in pairwise(bounds)]


@given(
    index=small_indices(),
    planner=ANY_PLANNER,
    ranks=st.integers(1, 6),
    batch_size=st.integers(1, 5),
    temperature=st.sampled_from([0.7, 1.0, 2.0, 5.0]),
    epoch=st.integers(0, 3),
    segments=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=150, deadline=None)
def test_a_plan_uses_what_sampling_says_and_keeps_every_rank_busy(
    index, planner, ranks, batch_size, temperature, epoch, segments
):
    plan = plan_of(
        index,
        planner=planner,
        ranks=ranks,
        batch_size=batch_size,
        temperature=temperature,
        epoch=epoch,
        segments=segments,
    )
    sizes = np.diff(index.subset_offsets)
    entries = index.find(plan.ids)
    uses = np.bincount(entries, minlength=len(index))
    for subset, wanted in enumerate(temperature_sizes(sizes, temperature)):
        of_subset = uses[index.subset == subset]
        assert of_subset.sum() == wanted
        if len(of_subset):
            assert of_subset.max() - of_subset.min() <= (1 if epoch == 0 else 2)

    count = np.diff(plan.step_rank_offsets).reshape(-1, ranks)
    in_step = count.sum(axis=1)
    assert len(in_step) == -(-len(entries) // (ranks * batch_size))
    if planner == "balanced":  # one window, whose mini-batches share what is missing
        assert in_step.max() - in_step.min() <= 1
    else:
        assert (in_step[:-1] == ranks * batch_size).all()
        assert 0 < in_step[-1] <= ranks * batch_size
    assert (count[in_step >= ranks] > 0).all()
    assert ((count > 0).sum(axis=1) == np.minimum(in_step, ranks)).all()

    bounds = plan.step_rank_offsets[::ranks]
    for step in range(plan.num_steps):
        here = entries[bounds[step] : bounds[step + 1]]
        assert plan.num_energy[step] == index.has_energy[here].sum()
        assert plan.num_forces[step] == index.has_forces[here].sum()


@given(index=small_indices(), planner=ANY_PLANNER, epochs=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_over_epochs_structures_are_used_equally_often(index, planner, epochs):
    plans = [plan_of(index, planner=planner, epoch=epoch) for epoch in range(epochs)]
    uses = np.bincount(index.find(np.concatenate([plan.ids for plan in plans])))
    uses = np.concatenate([uses, np.zeros(len(index) - len(uses), dtype=np.int64)])
    for subset in np.unique(index.subset):
        of_subset = uses[index.subset == subset]
        assert of_subset.max() - of_subset.min() <= 1


@given(index=small_indices(), planner=ANY_PLANNER)
@settings(max_examples=25, deadline=None)
def test_a_use_knows_its_pass(index, planner):
    plans = [plan_of(index, planner=planner, epoch=epoch) for epoch in range(3)]
    pairs = np.concatenate(
        [np.stack([plan.ids, plan.passes.astype(np.int64)], axis=1) for plan in plans]
    )
    assert len(np.unique(pairs, axis=0)) == len(pairs)


@pytest.mark.parametrize("planner", sorted(PLANNERS))
def test_the_same_arguments_give_the_same_plan(index, planner):
    one, other = plan_of(index, planner=planner), plan_of(index, planner=planner)
    assert np.array_equal(one.ids, other.ids)
    assert np.array_equal(one.passes, other.passes)
    assert np.array_equal(one.step_rank_offsets, other.step_rank_offsets)
    for change in ({"seed": 2}, {"epoch": 1}):
        assert not np.array_equal(one.ids, plan_of(index, planner=planner, **change).ids)


@pytest.mark.parametrize("planner", ["random", "greedy", "balanced"])
def test_mini_batches_do_not_depend_on_the_number_of_ranks(index, planner):
    plans = [
        plan_of(index, planner=planner, ranks=ranks, batch_size=None, mini_batch_size=96)
        for ranks in (1, 6, 20)
    ]
    expected = mini_batches(plans[0])
    assert all(mini_batches(plan) == expected for plan in plans[1:])
    assert [plan.num_energy.tolist() for plan in plans] == [plans[0].num_energy.tolist()] * 3


def test_greedy_spreads_the_mini_batches_of_random(index):
    assert mini_batches(plan_of(index, planner="greedy")) == mini_batches(
        plan_of(index, planner="random")
    )


@given(
    index=small_indices(),
    ranks=st.integers(1, 6),
    mini_batch_size=st.integers(1, 30),
    segments=st.integers(1, 5),
)
@settings(max_examples=80, deadline=None)
def test_totals_never_rise_within_a_segment(index, ranks, mini_batch_size, segments):
    plan = plan_of(
        index,
        planner="paper",
        ranks=ranks,
        batch_size=None,
        mini_batch_size=mini_batch_size,
        segments=segments,
    )
    total = plan.rank_load(index.cost[index.find(plan.ids)]).sum(axis=1)
    segments = min(segments, plan.num_steps)
    edges = [segment * plan.num_steps // segments for segment in range(segments + 1)]
    for first, last in pairwise(edges):
        assert (np.diff(total[first:last]) <= 0).all()


def test_the_paper_sorts_by_atoms(index):
    plan = plan_of(index, planner="paper", ranks=8, segments=3)
    atoms = plan.rank_load(index.num_atoms[index.find(plan.ids)]).sum(axis=1)
    rises = np.flatnonzero(np.diff(atoms) > 0) + 1
    assert rises.tolist() == [plan.num_steps // 3, 2 * plan.num_steps // 3]


def test_segments_are_chosen_by_the_length_of_the_epoch():
    shape = BatchShape(ranks=4, mini_batch_size=32)
    assert shape.num_segments(32 * 100) == 1
    assert shape.num_segments(32 * 2560) == 10
    assert shape.num_segments(2**30) == 256
    assert BatchShape(ranks=4, mini_batch_size=32, segments=7).num_segments(64) == 2


def test_windows_are_planned_one_by_one(index):
    sampling = SamplingConfig()
    some = windows(index, sampling, seed=1, epoch=0, ranks=4, batch_size=8)
    plan = plan_of(index)
    first = next(some)
    assert np.array_equal(index.ids[first.entries], plan.ids[: len(first.entries)])
    assert len(first.counts) < plan.num_steps


def test_a_part_of_the_plan_is_one_gpu_batch(index):
    plan = plan_of(index)
    load = plan.rank_load(np.ones(len(plan.ids), dtype=np.int64))
    assert plan.part(0, 0).start == 0
    assert plan.part(plan.num_steps - 1, 3).stop == len(plan.ids)
    assert all(
        plan.part(step, rank).stop - plan.part(step, rank).start == load[step, rank]
        for step in range(5)
        for rank in range(4)
    )


def test_a_saved_plan_has_a_row_per_use(index, tmp_path):
    plan = plan_of(index)
    plan.save(tmp_path / "plan.npz")
    with np.load(tmp_path / "plan.npz") as saved:
        step, rank, sample = saved["step"], saved["rank"], saved["sample"]
    assert np.array_equal(sample, plan.ids)
    assert np.array_equal(np.bincount(step), np.diff(plan.step_rank_offsets[::4]))
    part = plan.part(7, 2)
    assert (step[part] == 7).all()
    assert (rank[part] == 2).all()


@pytest.mark.parametrize(
    ("planner", "digest"),
    [
        ("balanced", "e32fd79800b28437"),
        ("greedy", "0552768dab8fec59"),
        ("paper", "263503674f65c4b8"),
        ("paper_shuffled", "637e162d0e8070aa"),
        ("random", "3265f9e3122c152c"),
    ],
)
def test_plans_are_the_same_bits_as_ever(index, planner, digest):
    # A change here means that a resumed run would see other mini-batches: it has to be wanted.
    plan = plan_of(index, planner=planner, ranks=5, batch_size=7, epoch=2)
    text = hashlib.blake2b(digest_size=8)
    for array in (plan.ids, plan.passes, plan.step_rank_offsets):
        text.update(array.astype("<i8").tobytes())
    assert text.hexdigest() == digest


def columns(**changes):
    arrays = {
        "ids": np.arange(3),
        "subset": np.array([0, 0, 1]),
        "cost": np.array([5, 6, 7]),
        "has_energy": np.ones(3, dtype=bool),
        "has_forces": np.ones(3, dtype=bool),
    }
    return arrays | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost": np.array([5, 6])}, "unequal length.*'cost': 2"),
        ({"num_atoms": np.array([5, 6])}, "unequal length.*'num_atoms': 2"),
        ({"subset": np.array([0, 1, 0])}, "subset 0 at entry 2 comes after subset 1"),
        ({"subset": np.array([-1, 0, 0])}, "subset -1 at entry 0"),
        ({"cost": np.array([5, 0, 7])}, "structure 1 .* has cost 0"),
        ({name: array[:0] for name, array in columns().items()}, "no training structure"),
    ],
)
def test_a_wrong_index_says_what_is_wrong(changes, message):
    with pytest.raises(DataError, match=message):
        PlanIndex(**columns(**changes))


def test_an_id_of_another_index_is_refused():
    with pytest.raises(DataError, match="joint id 9"):
        PlanIndex(**columns()).find(np.array([0, 9]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planner": "balancd"}, "Did you mean 'balanced'"),
        ({"batch_size": None}, "exactly one"),
        ({"mini_batch_size": 8}, "exactly one"),
        ({"ranks": 0}, "ranks=0"),
        ({"batch_size": 0}, "mini_batch_size=0"),
        ({"segments": 0}, "segments=0"),
        ({"epoch": -1}, "epoch -1"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(index, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(index, **changes)


def uneven(dear: float) -> PlanIndex:
    """A hundred structures of cost 10, some of which cost a hundred times as much."""
    cost = np.full(100, 10)
    cost[: round(100 * dear)] = 1000
    ones = np.ones(100, dtype=bool)
    return PlanIndex(np.arange(100), np.zeros(100, dtype=np.int64), cost, ones, ones)


@pytest.mark.parametrize(
    ("planner", "ranks", "size", "dear", "said"),
    [
        ("balanced", 64, 512, 0.0, False),
        ("paper_shuffled", 64, 128, 0.0, False),
        ("balanced", 1, 2, 0.0, False),
        ("balanced", 64, 128, 0.0, True),
        ("balanced", 64, 512, 0.02, True),  # up to 34 times the mean, ten in a mini-batch
        ("balanced", 64, 4096, 0.02, False),  # 64 a rank
    ],
)
def test_too_few_structures_per_rank_is_said(planner, ranks, size, dear, said):
    advice = planner_advice(planner, ranks, size, uneven(dear))
    assert (advice is not None) == said
    if said:
        assert "paper_shuffled" in advice
