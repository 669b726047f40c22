"""The pre-trained model in the package: there by name, offline, and of use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write

import lamm
from lamm.cli.models import models
from lamm.errors import CheckpointError
from lamm.finetune.further import Request
from lamm.finetune.request import config_for
from lamm.finetune.run import finetune
from lamm.shipped import checkpoint_path, shipped_models
from lamm.train.checkpoint import save_potential
from small import small_structure


def test_the_model_is_there_by_name_small_and_with_its_card():
    folder = shipped_models()["lamm-xs"]
    assert checkpoint_path("lamm-xs") == folder
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    model = lamm.load("lamm-xs")
    assert card["model"]["parameters"] == model.num_parameters
    assert {one["subset"] for one in card["data"]} == set(model.subsets)
    assert "downstream_sevennet" not in model.subsets, "held out for what is shown downstream"


def test_it_knows_a_molecule_and_a_crystal():
    calculator = lamm.LaMMCalculator("lamm-xs", head="molecules_pbe0")
    stretched = molecule("H2O")
    stretched.positions[1] *= 1.3
    stretched.calc = calculator
    relaxed = molecule("H2O")
    relaxed.calc = calculator
    assert stretched.get_potential_energy() > relaxed.get_potential_energy() + 0.3
    crystal = bulk("MgO", "rocksalt", a=4.21)
    crystal.calc = lamm.LaMMCalculator("lamm-xs", head="crystals_chgnet")
    energies = []
    for scale in (0.9, 1.03, 1.2):
        crystal.set_cell(bulk("MgO", "rocksalt", a=4.21 * scale).cell, scale_atoms=True)
        energies.append(crystal.get_potential_energy())
        assert np.isfinite(crystal.get_stress()).all()
    assert energies[1] < min(energies[0], energies[2]) - 0.5, "the lattice constant is near"


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = lamm.build({"preset": "lamm-xs", "encoder": {"channels": 8}}, ["mine"], seed=0)
    (tmp_path / "lamm-xs").mkdir()
    save_potential(own, tmp_path / "lamm-xs" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert lamm.load("lamm-xs").subsets == ("mine",)


def test_a_name_that_is_none_gets_the_nearest():
    with pytest.raises(CheckpointError, match="lamm-xs"):
        lamm.load("lamm-sx")


def test_fine_tuning_starts_from_it_by_name(tmp_path: Path):
    rng = np.random.default_rng(0)
    data = tmp_path / "my.extxyz"
    write(data, [small_structure(rng, f"mine/{number}").to_atoms() for number in range(30)])
    words = ["train.steps=2", "train.workers=0", "balance.batch_size=4"]
    request = Request(data=data, to=tmp_path / "run", base=Path("lamm-xs"), words=words)
    assert finetune(config_for(request), quiet=True).step == 2
    card = json.loads((tmp_path / "run" / "card.json").read_text(encoding="utf-8"))
    assert card["base"]["licences"]["molecules_pbe0"].startswith("CC0")


def test_it_needs_no_network():
    script = (
        "import socket\n"
        "def refuse(*_): raise OSError('no network here')\n"
        "socket.socket.connect = refuse\n"
        "import lamm; print(len(lamm.load('lamm-xs').subsets))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


def test_the_list_of_presets_says_which_has_weights_and_what_these_are(
    capsys: pytest.CaptureFixture[str],
):
    models(None)
    line = capsys.readouterr().out.split("pre-trained, in the package")[1].splitlines()[1]
    shipped = lamm.load("lamm-xs")
    wanted = ["lamm-xs", str(len(shipped.subsets)), "gradient", f"{shipped.num_parameters:,}"]
    assert line.split() == wanted
