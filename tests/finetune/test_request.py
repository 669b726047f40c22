"""``lamm finetune`` as a chemist types it: one file in, a model, a report and a card out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write

from lamm.balance.uses import uses_of
from lamm.data.joint import JointDataset
from lamm.data.references import Normalisation
from lamm.data.splits import TEST, TRAIN, VAL
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError
from lamm.evaluate.curves import read_metrics
from lamm.evaluate.predict import predict
from lamm.finetune import Request, config_for, finetune, ranking
from lamm.finetune.ranking import rank_heads, take_over
from lamm.finetune.request import parse_time
from lamm.finetune.run import start_from
from lamm.structure import Structure
from lamm.train.checkpoint import load
from lamm.train.run import pretrain
from small import small_config, small_structure

SHORT = ["train.steps=4", "train.workers=0"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    pretrain(small_config(folder, train={"steps": 40, "workers": 0}), quiet=True)
    return folder / "run"


def xyz(
    path: Path, count: int = 30, change: Callable[[Structure], Structure] | None = None
) -> Path:
    rng = np.random.default_rng(11)
    structures = [small_structure(rng, f"mine/{number}") for number in range(count)]
    if change is not None:
        structures = [change(one) for one in structures]
    write(path, [one.to_atoms() for one in structures], format="extxyz")
    return path


def test_one_file_gives_a_model_a_report_and_a_card(base: Path, tmp_path: Path):
    data = xyz(tmp_path / "my.extxyz")
    to = tmp_path / "run"
    finetune(config_for(Request(data=data, to=to, base=base, words=SHORT)), quiet=True)
    card = json.loads((to / "card.json").read_text())
    splits = card["data"][0]["splits"]
    assert splits["train"] + splits["val"] == 30
    assert splits["val"] >= 3
    assert card["errors"]["validation_step_0"]["my"]["energy_mae_mev_per_atom"] > 0
    assert {fit["head"] for fit in card["heads_ranked"]["my"]} == set(load(base).subsets)
    text = (to / "card.md").read_text()
    assert "## Limits" in text
    assert f"from the base's head '{card['heads_ranked']['my'][0]['head']}'" in text
    assert "30 with an energy, 30 with forces" in text
    assert "<html" in (to / "report.html").read_text()
    assert (to / "doctor.json").is_file()
    assert (to / "best").exists()


def test_no_steps_give_the_predictions_of_the_base(base: Path, tmp_path: Path):
    nothing = ["train.steps=0", "train.workers=0"]
    data = xyz(tmp_path / "my.extxyz")
    request = Request(data, tmp_path / "one", base, head="both", words=nothing)
    finetune(config_for(request), quiet=True)
    finetune(config_for(replace(request, to=tmp_path / "two", base=tmp_path / "one", head="my")))
    structures = list(Store.open(tmp_path / "one" / "data"))
    original = list(predict(load(base), structures, "both"))
    first = list(predict(load(tmp_path / "one"), structures))
    second = list(predict(load(tmp_path / "two"), structures))
    for before, one, two in zip(original, first, second, strict=True):
        assert one.energy == two.energy == before.energy
        assert np.array_equal(one.forces, before.forces)
        assert np.array_equal(two.forces, before.forces)


def test_a_model_from_scratch_needs_no_checkpoint(tmp_path: Path):
    request = Request(
        data=xyz(tmp_path / "my.extxyz"), to=tmp_path / "run", preset="lamm-xs", words=SHORT
    )
    assert finetune(config_for(request), quiet=True).step == 4
    assert json.loads((tmp_path / "run" / "card.json").read_text())["base"] is None
    model = load(tmp_path / "run")
    assert model.config.forces == "gradient"
    assert model.energy_scale == model.force_scale, "one unit for both"


def test_a_model_from_scratch_has_direct_forces_where_asked_for_or_not_needed(tmp_path: Path):
    data = xyz(tmp_path / "my.extxyz")
    words = [*SHORT, "model.forces=direct"]
    asked = config_for(Request(data=data, to=tmp_path / "a", preset="lamm-xs", words=words))
    energies = xyz(tmp_path / "energies.extxyz", change=lambda one: replace(one, forces=None))
    without = config_for(Request(data=energies, to=tmp_path / "b", preset="lamm-xs", words=SHORT))
    for config in (asked, without):
        assert config.model is not None
        assert config.model.forces == "direct"


def test_given_files_are_the_splits(base: Path, tmp_path: Path):
    request = Request(
        data=xyz(tmp_path / "train.xyz", 20),
        val=xyz(tmp_path / "val.xyz", 5),
        test=xyz(tmp_path / "test.xyz", 4),
        to=tmp_path / "run",
        base=base,
        accept_data=True,
        words=SHORT,
    )
    finetune(config_for(request), quiet=True)
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["data"][0]["splits"] == {"train": 20, "val": 5, "test": 4}
    assert card["errors"]["test"]["train"]["structures"] == 4
    report, text = ((tmp_path / "run" / name).read_text() for name in ("report.html", "card.md"))
    assert "Test errors" in report
    for page in (report, text):
        assert "by --accept-data" in page
        assert "held-out structures are copies of training structures" in page


def test_marks_of_splits_that_no_file_replaces_are_kept(base: Path, tmp_path: Path):
    def marked(one: Structure) -> Structure:
        number = int(one.id.split("/")[-1])
        return replace(one, split="test" if number < 5 else "val" if number < 8 else "train")

    request = Request(
        data=xyz(tmp_path / "my.xyz", 30, marked),
        val=xyz(tmp_path / "val.xyz", 4),
        to=tmp_path / "run",
        base=base,
        accept_data=True,
        words=SHORT,
    )
    config_for(request)
    counts = np.bincount(Store.open(tmp_path / "run" / "data").index.split, minlength=4)
    assert counts[TRAIN] == 30 - 5
    assert counts[VAL] == 4
    assert counts[TEST] == 5


def test_marks_that_leave_nothing_to_train_on_are_left_aside(base: Path, tmp_path: Path):
    data = xyz(tmp_path / "my.xyz", change=lambda one: replace(one, split="val"))
    config_for(Request(data=data, to=tmp_path / "run", base=base, words=SHORT))
    split = Store.open(tmp_path / "run" / "data").index.split
    assert (split == TRAIN).sum() > (split == VAL).sum() > 0


def test_data_that_are_surely_wrong_stop_the_run_and_leave_no_data(base: Path, tmp_path: Path):
    def flipped(one: Structure) -> Structure:
        return replace(one, positions=one.positions * 0.529177)  # bohr in a file of ångströms

    data = xyz(tmp_path / "my.xyz", 60, flipped)
    request = Request(data=data, to=tmp_path / "run", base=base, words=SHORT)
    with pytest.raises(DataError, match="--accept-data"):
        config_for(request)
    assert not (tmp_path / "run" / "data").exists()
    config_for(replace(request, accept_data=True))


def test_a_start_that_never_trained_doesnt_lock_the_folder(base: Path, tmp_path: Path):
    data, to = xyz(tmp_path / "my.extxyz"), tmp_path / "run"
    request = Request(data, to, base, unlabelled=data, words=SHORT)
    config_for(request)  # and then it was interrupted
    config_for(replace(request, data=xyz(tmp_path / "other.extxyz", 20)))
    assert len(Store.open(to / "data")) == 20


def test_a_folder_of_somebody_elses_is_never_replaced(base: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "card.json").write_text("{}")
    request = Request(xyz(tmp_path / "my.extxyz"), tmp_path, base, words=SHORT)
    with pytest.raises(ConfigError, match="--to"):
        config_for(request)
    assert (tmp_path / "data" / "card.json").exists()


def test_a_wrong_word_leaves_no_data(base: Path, tmp_path: Path):
    data, to = xyz(tmp_path / "my.extxyz"), tmp_path / "run"
    with pytest.raises(ConfigError, match="lrate"):
        config_for(Request(data, to, base, unlabelled=data, words=["optim.lrate=1"]))
    assert not (to / "data").exists()
    assert not (to / "unlabelled").exists()
    assert config_for(Request(data, to, base, words=SHORT)).to == to


def test_the_card_says_which_charge_the_model_wasnt_told(base: Path, tmp_path: Path):
    data = xyz(tmp_path / "my.extxyz")
    data.write_text(data.read_text().replace("energy=", "charge=1 energy="))
    finetune(config_for(Request(data, tmp_path / "run", base, words=SHORT)), quiet=True)
    limits = json.loads((tmp_path / "run" / "card.json").read_text())["limits"]
    assert any("'charge' is 1, and the model isn't told" in one for one in limits)


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_the_card_says_which_label_wasnt_trained(base: Path, tmp_path: Path, label: str):
    def without(one: Structure) -> Structure:
        one = replace(one, forces=None) if label == "forces" else replace(one, energy=None)
        return replace(one, pbc=np.ones(3, dtype=bool), cell=9 * np.eye(3))

    data = xyz(tmp_path / "my.xyz", 30, without)
    request = Request(data, tmp_path / "run", base, accept_data=True, words=SHORT)
    finetune(config_for(request), quiet=True)
    word = {"energy": "energies", "forces": "forces"}[label]
    assert f"my was trained without {word}" in (tmp_path / "run" / "card.md").read_text()


def test_some_structures_without_forces_are_trained_on_too(base: Path, tmp_path: Path):
    def half(one: Structure) -> Structure:
        return replace(one, forces=None) if int(one.id.split("/")[-1]) % 2 else one

    request = Request(
        data=xyz(tmp_path / "my.xyz", 30, half), to=tmp_path / "run", base=base, words=SHORT
    )
    assert finetune(config_for(request), quiet=True).step == 4


def test_a_time_limit_ends_the_run_with_the_rate_at_its_end(base: Path, tmp_path: Path):
    config = config_for(
        Request(
            data=xyz(tmp_path / "my.xyz"),
            to=tmp_path / "run",
            base=base,
            max_seconds=60.0,
            words=[
                "train.max_seconds=4",
                "train.workers=0",
                "train.log_every=2",
                "optim.warmup_steps=2",
            ],
        )
    )
    state = finetune(config, quiet=True)
    assert state.step >= 4
    assert state.seconds < 12
    rates = [line["lr"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert rates[-1] < 0.3 * max(rates)


def test_a_time_limit_that_is_too_short_says_what_would_do(base: Path, tmp_path: Path):
    request = Request(xyz(tmp_path / "my.xyz"), tmp_path / "run", base, max_seconds=3.0)
    with pytest.raises(ConfigError, match=r"3 s are too few.*\n  Give \d+ s or more"):
        config_for(request)
    both = replace(request, max_seconds=60.0, words=["train.steps=4"])
    assert config_for(both).optim.warmup_steps == 3


def test_the_head_of_the_same_data_ranks_first(base: Path):
    model = load(base)
    rng = np.random.default_rng(3)
    structures = [small_structure(rng, f"x/{n}") for n in range(40)]
    column = model.column("energies")
    with torch.no_grad():  # labels that one head gives, on another zero of the energy
        said = list(predict(model, structures, "energies"))
    labelled = [
        replace(one, energy=p.energy + 3.0 * one.num_atoms, forces=p.forces)
        for one, p in zip(structures, said, strict=True)
    ]
    zero = Normalisation(np.zeros(119), np.ones(119, dtype=bool), 1.0, 1.0)
    best = rank_heads(model, labelled, zero)[0]
    assert best.head == model.subsets[column]
    assert best.energy_mae == pytest.approx(0, abs=1e-2)
    assert best.forces_mae == pytest.approx(0, abs=1e-2)
    assert best.energy_factor == pytest.approx(1, abs=1e-4)


def test_two_broken_records_choose_no_head_and_move_no_reference(base: Path):
    model = load(base)
    rng = np.random.default_rng(3)
    structures = [small_structure(rng, f"x/{n}") for n in range(40)]
    with torch.no_grad():
        said = list(predict(model, structures, "both"))
    labelled = [
        replace(one, energy=p.energy + 3.0 * one.num_atoms, forces=p.forces)
        for one, p in zip(structures, said, strict=True)
    ]
    zero = Normalisation(np.zeros(119), np.ones(119, dtype=bool), 1.0, 1.0)
    sound = rank_heads(model, labelled, zero)[0]
    for number, error in ((4, 5000.0), (20, -3000.0)):
        one = labelled[number]
        labelled[number] = replace(one, energy=one.energy + error, forces=one.forces * 1e4)
    best = rank_heads(model, labelled, zero)[0]
    assert best.head == sound.head == "both"
    assert best.score < 1e-2
    assert best.energy_factor == pytest.approx(1, abs=1e-3)
    assert best.force_factor == pytest.approx(1, abs=1e-3)
    assert best.reference_energies == pytest.approx(sound.reference_energies, abs=1e-2)


def test_a_head_without_energies_isnt_the_best_for_structures_that_have_some(base: Path):
    model = load(base)
    rng = np.random.default_rng(3)
    structures = [small_structure(rng, f"x/{n}") for n in range(12)]
    with torch.no_grad():
        said = list(predict(model, structures, "none"))
    labelled = [
        replace(one, energy=p.energy, forces=p.forces)
        for one, p in zip(structures, said, strict=True)
    ]
    zero = Normalisation(np.zeros(119), np.ones(119, dtype=bool), 1.0, 1.0)
    fits = rank_heads(model, labelled, zero)
    assert fits[-1].head == "none"
    assert fits[-1].score == min(fit.score for fit in fits)
    bare = [replace(one, energy=None) for one in labelled]
    assert rank_heads(model, bare, zero)[0].head == "none"


def test_forces_of_a_few_structures_and_energies_of_all_rank_the_heads(
    base: Path, monkeypatch: pytest.MonkeyPatch
):
    model = load(base)
    rng = np.random.default_rng(5)
    structures = [small_structure(rng, f"x/{n}") for n in range(9)]
    zero = Normalisation(np.zeros(119), np.ones(119, dtype=bool), 1.0, 1.0)
    monkeypatch.setattr(ranking, "MAX_FORCES", 3)
    found = {fit.head: fit for fit in rank_heads(model, structures, zero)}
    few = {fit.head: fit for fit in rank_heads(model, [structures[n] for n in (0, 4, 8)], zero)}
    for head, fit in found.items():
        assert fit.force_factor == few[head].force_factor
        assert fit.forces_mae == few[head].forces_mae
        assert fit.energy_mae != few[head].energy_mae


@pytest.mark.parametrize("useful", [True, False])
def test_an_output_has_the_heads_predictions_and_the_datas_scales(base: Path, useful: bool):
    """Of a head that tells nothing of direct energies and forces, references alone are left."""
    model = load(base).double()
    rng = np.random.default_rng(3)
    structures = [small_structure(rng, f"x/{n}") for n in range(40)]
    said = list(predict(model, structures, "both"))
    sign = 2.0 if useful else -2.0  # other signs than the head's are beyond the factors
    labelled = [
        replace(one, energy=3.0 * one.num_atoms + sign * p.energy, forces=sign * p.forces)
        for one, p in zip(structures, said, strict=True)
    ]
    scales = Normalisation(np.zeros(119), np.ones(119, dtype=bool), 0.25, 8.0)
    fit = next(one for one in rank_heads(model, labelled, scales) if one.head == "both")
    tuned = start_from(model, ("mine",), {"mine": "both"}, seed=0)
    take_over(tuned, 0, model, fit, scales)
    assert (float(tuned.energy_scale[0]), float(tuned.force_scale[0])) == (0.25, 8.0)
    found = list(predict(tuned, structures))
    errors = [one.energy - p.energy for one, p in zip(labelled, found, strict=True)]
    forces = np.concatenate([p.forces for p in found])
    if useful:
        assert (fit.energy_factor, fit.force_factor) == pytest.approx((2, 2), rel=1e-3)
        assert np.abs(errors).max() < 1e-2
        np.testing.assert_allclose(forces, np.concatenate([one.forces for one in labelled]), 1e-3)
    else:
        assert (fit.energy_factor, fit.force_factor) == (0, 0)
        assert not forces.any()
        assert fit.score == pytest.approx(1)


def test_a_frozen_encoder_doesnt_move(base: Path, tmp_path: Path):
    request = Request(
        data=xyz(tmp_path / "my.xyz"), to=tmp_path / "run", base=base, frozen=True, words=SHORT
    )
    finetune(config_for(request), quiet=True)
    before, after = load(base), load(tmp_path / "run" / "last")
    for name, weight in before.encoder.state_dict().items():
        assert torch.equal(weight, after.encoder.state_dict()[name]), name
    moved = [
        not torch.equal(a, b)
        for (_, a), (_, b) in zip(before.head_parameters(), after.head_parameters(), strict=True)
        if a.shape == b.shape
    ]
    assert any(moved)


def test_a_rank_gives_adapters_that_are_merged_in_the_end(base: Path, tmp_path: Path):
    request = Request(
        data=xyz(tmp_path / "my.xyz"), to=tmp_path / "run", base=base, lora=2, words=SHORT
    )
    config = config_for(request)
    assert config.lora is not None
    assert config.lora.rank == 2
    finetune(config, quiet=True)
    before, after = load(base), load(tmp_path / "run")
    assert after.encoder.state_dict().keys() == before.encoder.state_dict().keys()
    assert not torch.equal(
        after.encoder.messages[0].filter.weight, before.encoder.messages[0].filter.weight
    )


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_times_as_people_write_them(text: str, seconds: float):
    assert parse_time(text) == seconds


def test_a_time_without_a_unit_is_refused():
    with pytest.raises(ConfigError, match="10m"):
        parse_time("10")


def test_replayed_heads_are_the_base_before_the_first_step(base: Path, tmp_path: Path):
    to = tmp_path / "run"

    def pair(one: Structure) -> Structure:
        arrays = {
            name: getattr(one, name)[:2] for name in ("atomic_numbers", "positions", "forces")
        }
        return replace(one, **arrays)

    data = xyz(tmp_path / "my.xyz", change=pair)
    request = Request(data, to, base, replay=("both", "none"), accept_data=True, words=SHORT)
    finetune(config_for(request), quiet=True)
    assert load(to).subsets == ("my", "both", "none")
    card = json.loads((to / "card.json").read_text())
    validations = [line for line in read_metrics(base) if line["kind"] == "validation"]
    known = min(validations, key=lambda line: line["loss"])["subsets"]["both"]
    before = card["forgetting"]["both"]["before"]
    assert before["structures"] == known["structures"]
    for key in ("energy_mae_mev_per_atom", "forces_mae_mev_per_ang"):
        assert before[key] == pytest.approx(known[key], rel=1e-4)
    assert "What the old heads forgot" in (to / "card.md").read_text()
    assert "What the old heads forgot" in (to / "report.html").read_text()
    assert "The largest structure had 2 atoms" in (to / "card.md").read_text()


def test_replayed_structures_are_used_as_often_as_the_users_own(base: Path, tmp_path: Path):
    own = {"data": xyz(tmp_path / "my.xyz"), "base": base, "accept_data": True, "words": SHORT}
    alone = config_for(Request(to=tmp_path / "alone", **own))
    config = config_for(Request(to=tmp_path / "run", replay=("all",), **own))
    joint = JointDataset(config.data, config.seed)
    uses = uses_of(joint.plan_index(8, 0.5), config.data.sampling)
    assert joint.names[0] == "my"
    assert uses[1:].sum() == pytest.approx(uses[0], abs=1)
    assert config.balance.batch_size == 2 * alone.balance.batch_size


def test_a_weight_that_the_user_says_holds(base: Path, tmp_path: Path):
    words = [*SHORT, "data.subsets.both.sampling_weight=3"]
    request = Request(
        xyz(tmp_path / "my.xyz"),
        tmp_path / "run",
        base,
        replay=("both",),
        accept_data=True,
        words=words,
    )
    assert config_for(request).data.subsets["both"].sampling_weight == 3


def test_a_subset_that_the_base_never_had_cant_be_replayed(base: Path, tmp_path: Path):
    request = Request(
        data=xyz(tmp_path / "my.xyz"), to=tmp_path / "run", base=base, replay=("both_2",)
    )
    with pytest.raises(ConfigError, match="Did you mean 'both'"):
        config_for(request)
    assert not (tmp_path / "run").exists()


def test_unlabelled_structures_are_denoised_beside_the_labelled_ones(base: Path, tmp_path: Path):
    def bare(one: Structure) -> Structure:
        return replace(one, energy=None, forces=None, split="val")  # a mark that says nothing

    request = Request(
        data=xyz(tmp_path / "my.xyz"),
        to=tmp_path / "run",
        base=base,
        unlabelled=xyz(tmp_path / "more.xyz", 200, bare),
        words=SHORT,
    )
    finetune(config_for(request), quiet=True)
    model = load(tmp_path / "run")
    assert model.subsets == ("my", "unlabelled")
    assert float(model.force_scale[1]) == pytest.approx(0.1)
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    noise = card["errors"]["validation"]["unlabelled"]["denoising_mae_fair_ang"]
    assert noise > 0
    assert f"{noise:.4f}" in (tmp_path / "run" / "card.md").read_text()


def test_an_element_of_one_structure_alone_is_for_training(base: Path, tmp_path: Path):
    def rare(one: Structure) -> Structure:
        numbers = one.atomic_numbers.copy()
        numbers[0] = 20 + int(one.id.split("/")[-1])  # each structure has an element of its own
        return replace(one, atomic_numbers=numbers) if one.id.endswith(("1", "2", "3")) else one

    request = Request(data=xyz(tmp_path / "my.xyz", 60, rare), to=tmp_path / "run", base=base)
    config_for(replace(request, accept_data=True))
    store = Store.open(tmp_path / "run" / "data")
    split = store.index.split
    trained = {z for row in np.flatnonzero(split == TRAIN) for z in store[int(row)].atomic_numbers}
    held = {z for row in np.flatnonzero(split != TRAIN) for z in store[int(row)].atomic_numbers}
    assert held
    assert held <= trained
