"""``lamm uncertainty``, and the verbs that use what it writes."""

import json
from pathlib import Path
from typing import Any

import ase.io
import pyarrow.parquet as pq
import pytest

from commands import Lamm
from lamm.models.potential import build
from lamm.shipped import shipped_models
from lamm.train.checkpoint import save_potential
from small import SMALL_MODELS, small_store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    model = build(SMALL_MODELS["painn"], ["first", "second"], seed=0)
    save_potential(model, tmp_path / "model.safetensors")
    for seed, name in enumerate(("first", "second")):
        small_store(tmp_path / name, count=60, seed=seed)
    return tmp_path


def test_a_shipped_model_gets_no_uncertainty_beside_it(lamm: Lamm, home: Path) -> None:
    data, before = home / "first", set(shipped_models()["lamm-xs"].iterdir())
    status, _, err = lamm("uncertainty", "lamm-xs", data, "--val", data, "--head", "molecules_pbe0")
    assert status == 2
    assert "lamm finetune --from lamm-xs" in err
    assert set(shipped_models()["lamm-xs"].iterdir()) == before


def test_fitted_uncertainties_are_used_by_the_other_verbs(lamm: Lamm, home: Path) -> None:
    model, stores = home / "model.safetensors", (home / "first", home / "second")
    share = ("--val-fraction", 0.3)
    status, out, err = lamm("uncertainty", model, stores[0], *share, "--json")
    assert status == 0, err
    fitted: dict[str, Any] = json.loads(out)
    assert Path(fitted["to"]) == home / "model.uncertainty.safetensors"
    first = fitted["heads"]["first"]
    assert first["training_structures"] + first["calibration_structures"] == 60

    to = home / "evaluation"
    status, out, err = lamm("evaluate", model, *stores, *share, "--to", to, "--json")
    assert status == 0, err
    found = json.loads(out)["subsets"]
    assert found["first"]["energy_uncertainty"] == first["calibration"]
    assert "energy_uncertainty" not in found["second"]
    assert found["first"]["forces_uncertainty"]["atoms"] > 60
    assert (to / "first" / "calibration_forces.csv").is_file()
    atoms = pq.read_table(to / "first" / "atoms.parquet")
    assert atoms.num_rows == found["first"]["forces_uncertainty"]["atoms"]
    assert min(atoms["force_uncertainty"].to_pylist()) > 0
    assert (to / "first" / "calibration.csv").is_file()
    assert not (to / "second" / "calibration.csv").exists()
    assert "miscalibration" in (to / "first" / "report.html").read_text()

    status, out, err = lamm("uncertainty", model, stores[1], *share)
    assert (status, "head 'second'" in out) == (0, True), err
    status, out, _ = lamm("evaluate", model, *stores, *share, "--json")
    again = json.loads(out)["subsets"]
    assert again["first"]["energy_uncertainty"] == first["calibration"]
    assert "energy_uncertainty" in again["second"]

    lamm("data", "export", stores[0], "--to", home / "some.extxyz")
    words = ("predict", model, home / "some.extxyz", "--head", "first")
    status, out, err = lamm(*words, "--to", home / "out.extxyz", "--json")
    assert (status, json.loads(out)["uncertainty"]) == (0, True), err
    atoms = ase.io.read(home / "out.extxyz", ":")
    assert all(one.info["energy_uncertainty"] > 0 for one in atoms)
    assert all((one.arrays["forces_uncertainty"] > 0).all() for one in atoms)


def test_an_uncertainty_of_other_weights_is_refused_and_can_be_fitted_anew(
    lamm: Lamm, home: Path
) -> None:
    model = home / "model.safetensors"
    share = ("--val-fraction", 0.3)
    assert lamm("uncertainty", model, home / "first", *share)[0] == 0
    save_potential(build(SMALL_MODELS["painn"], ["first", "second"], seed=1), model)
    status, _, err = lamm("evaluate", model, home / "first", *share)
    assert (status, "fitted for another model" in err) == (2, True)
    status, _, err = lamm("uncertainty", model, home / "first", *share)
    assert (status, "It is replaced" in err) == (0, True)
    assert lamm("evaluate", model, home / "first", *share)[0] == 0


def test_wrong_requests_leave_nothing_behind(lamm: Lamm, home: Path) -> None:
    model, first = home / "model.safetensors", home / "first"
    small = small_store(home / "unlabelled", count=60, labels="")
    few = small_store(home / "few", count=12)
    requests = [
        ((first, first), "several sets are called 'first'"),
        ((first, home / "second", "--val", first), "one training set"),
        ((first, home / "second", "--head", "first"), "several sets for head 'first'"),
        ((small, "--head", "first", "--val-fraction", 0.3), "no training structure"),
        ((few, "--head", "first", "--val-fraction", 0.3), "to calibrate the uncertainty on"),
        ((first, "--head", "third"), "third"),
        ((first, "--head", "first", "--val", first), "the training structures themselves"),
        ((), "found no config.yaml of its run"),
    ]
    for words, message in requests:
        status, _, err = lamm("uncertainty", model, *words)
        assert (status, message in err) == (2, True), err
    assert not (home / "model.uncertainty.safetensors").exists()


def test_a_store_of_held_out_structures_counts_as_a_whole(lamm: Lamm, home: Path) -> None:
    held_out = small_store(home / "held_out", count=20, seed=5)
    words = ("--head", "first", "--val", held_out, "--json")
    status, out, err = lamm("uncertainty", home / "model.safetensors", home / "first", *words)
    assert status == 0, err
    assert json.loads(out)["heads"]["first"]["calibration_structures"] == 20


def test_the_run_says_what_was_held_out(lamm: Lamm, home: Path) -> None:
    step = home / "run" / "best"
    step.mkdir(parents=True)
    (home / "model.safetensors").rename(step / "model.safetensors")
    (home / "run" / "config.yaml").write_text("data: {val_fraction: 0.3}\n")
    words = (home / "run", home / "first", "--json")
    status, out, err = lamm("uncertainty", *words)
    assert status == 0, err
    held_out = json.loads(out)["heads"]["first"]["calibration_structures"]
    assert 10 <= held_out <= 30
    evaluated = json.loads(lamm("evaluate", *words)[1])
    assert evaluated["errors"]["structures"] == held_out
    assert evaluated["energy_uncertainty"]["structures"] == held_out
    status, _, err = lamm("uncertainty", *words, "--val-fraction", 0.5)
    assert (status, "held out a share of 0.3" in err) == (2, True)


def test_the_labelled_subsets_of_the_run_are_fitted_where_none_is_named(
    lamm: Lamm, home: Path
) -> None:
    step = home / "run" / "best"
    step.mkdir(parents=True)
    (home / "model.safetensors").rename(step / "model.safetensors")
    noise = small_store(home / "noise", count=20, labels="")
    subsets = {name: {"store": str(home / name)} for name in ("first", "second")}
    subsets["noise"] = {"store": str(noise), "denoising": {"std": 0.1}}
    data = {"val_fraction": 0.3, "subsets": subsets}
    (home / "run" / "config.yaml").write_text(json.dumps({"data": data}))
    status, out, err = lamm("uncertainty", home / "run", "--json")
    assert status == 0, err
    found = json.loads(out)["heads"]
    alone = json.loads(lamm("uncertainty", home / "run", home / "second", "--json")[1])["heads"]
    assert set(found) == {"first", "second"}
    assert found["second"] == alone["second"]
