"""``lamm embed``: its files, where its subsets come from, and what it refuses."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import molecule

from commands import Lamm
from lamm.models.potential import build
from lamm.train.checkpoint import save_potential
from small import SMALL_MODELS, small_store

FAST = ("--projection", "pca", "--no-page")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model beside the configuration of its run, and one alone."""
    path = tmp_path_factory.mktemp("embed")
    model = build(SMALL_MODELS["painn"], ["forces", "noise", "relaxed"], seed=0)
    (path / "run").mkdir()
    (path / "alone").mkdir()
    save_potential(model, path / "run" / "model.safetensors")
    save_potential(model, path / "alone" / "model.safetensors")
    small_store(path / "forces", 12)
    small_store(path / "noise", 8, "")
    small_store(path / "relaxed", 8, "E", task="IS2RE-Total")
    names = ("forces", "noise", "relaxed")
    data = {"subsets": {name: {"store": str(path / name)} for name in names}}
    (path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": data}, sort_keys=False))
    ase.io.write(path / "mine.xyz", [molecule("H2O"), molecule("CH3OH")])
    return path


def test_all_that_isnt_installed_is_said_at_once_with_what_works_without(
    lamm: Lamm, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = lamm("embed", home / "run" / "model.safetensors", "--to", tmp_path)
    assert status == 2
    for word in ("umap-learn", "chemiscope", "lamm[map]", " ".join(FAST)):
        assert word in err


def test_the_subsets_of_the_run_are_used_without_those_of_is2re(
    lamm: Lamm, home: Path, tmp_path: Path
):
    model = home / "run" / "model.safetensors"
    status, out, err = lamm("embed", model, "--to", tmp_path, "--atoms", 20, *FAST, "--json")
    assert status == 0, err
    answer = json.loads(out)
    assert answer["atoms"] == 40
    assert sorted(answer["files"]) == sorted(path.name for path in tmp_path.iterdir())
    arrays = np.load(tmp_path / "features.npz")
    assert arrays["subset_names"].tolist() == ["forces", "noise"]
    assert arrays["features"].shape == (40, 16)
    assert arrays["pca"].shape == (40, 2)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["atoms"] == {"forces": 20, "noise": 20}
    assert 0 <= results["measures"]["subset"]["purity"] <= 1
    status, out, err = lamm(
        "embed", model, "--to", tmp_path, "--atoms", 20, *FAST, "--json", "--all", "--force"
    )
    assert json.loads(out)["atoms"] == 60, err


def test_two_runs_with_a_seed_give_the_same_arrays(lamm: Lamm, home: Path, tmp_path: Path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        model = home / "run" / "model.safetensors"
        assert (
            lamm("embed", model, "--to", tmp_path / name, "--atoms", 9, "--seed", seed, *FAST)[0]
            == 0
        )
    one, two, other = (np.load(tmp_path / n / "features.npz") for n in ("one", "two", "other"))
    assert all(np.array_equal(one[k], two[k], equal_nan=k.startswith("energy")) for k in one)
    assert not np.array_equal(one["structure_ids"], other["structure_ids"])


def test_stores_and_files_can_be_named(lamm: Lamm, home: Path, tmp_path: Path):
    words = (f"mine={home / 'mine.xyz'}", home / "forces")
    status, out, err = lamm(
        "embed",
        home / "alone" / "model.safetensors",
        *words,
        "--to",
        tmp_path,
        *FAST,
        "--elements",
        "H,O",
    )
    assert status == 0, err
    assert "2 subsets" in out
    assert np.load(tmp_path / "features.npz")["subset_names"].tolist() == ["mine", "forces"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "rum: no such"),
        (["alone/model.safetensors"], "no config.yaml of its run"),
        (["run/model.safetensors", "--elements", "H,Xx"], "'Xx' is no chemical element"),
        (["run/model.safetensors", "forces", "a/../forces"], "two subsets are named 'forces'"),
        (["run/model.safetensors", "--dtype", "float16"], "float16"),
    ],
)
def test_a_wrong_request_leaves_nothing_behind(
    lamm: Lamm, home: Path, tmp_path: Path, words: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    import re

    monkeypatch.chdir(home)
    (home / "a").mkdir(exist_ok=True)
    status, _, err = lamm("embed", *words, "--to", tmp_path / "out", *FAST)
    assert status == 2
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()


def test_files_are_replaced_only_with_force(lamm: Lamm, home: Path, tmp_path: Path):
    (tmp_path / "results.json").write_text("mine")
    status, _, err = lamm("embed", home / "run" / "model.safetensors", "--to", tmp_path, *FAST)
    assert (status, "--force" in err) == (2, True)
    assert (tmp_path / "results.json").read_text() == "mine"
