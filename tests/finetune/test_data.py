"""The user's files on their way into a fine-tuning: read, split, looked at."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

from lamm.data.splits import VAL
from lamm.errors import DataError
from lamm.finetune.data import check_data, prepare_data
from lamm.finetune.further import unlabelled_subset
from lamm.structure import Structure
from lamm.units import HARTREE
from small import small_structure


def structures(count: int = 30, seed: int = 11) -> list[Structure]:
    rng = np.random.default_rng(seed)
    return [small_structure(rng, f"mine/{number}") for number in range(count)]


def xyz(path: Path, some: list[Structure]) -> Path:
    write(path, [one.to_atoms() for one in some], format="extxyz")
    return path


def renamed(path: Path, some: list[Structure], names: dict[str, str], **info: object) -> Path:
    """Labels under other names, and more entries of the comment line."""
    frames = []
    for one in some:
        atoms = Atoms(one.atomic_numbers, one.positions, cell=one.cell, pbc=one.pbc)
        atoms.info[names["energy"]] = one.energy
        atoms.arrays[names["forces"]] = np.asarray(one.forces, dtype=np.float64)
        atoms.info |= info
        frames.append(atoms)
    write(path, frames, format="extxyz")
    return path


def test_labels_under_unknown_names_are_listed(tmp_path: Path):
    names = {"energy": "mace_energy", "forces": "mace_forces"}
    data = renamed(tmp_path / "my.extxyz", structures(), names)
    with pytest.raises(DataError, match=r"my\.extxyz.*\n.*'mace_energy', 'mace_forces'") as error:
        prepare_data(data, tmp_path / "run")
    assert "--card" in str(error.value)


def test_one_label_alone_is_warned_of_with_the_numbers_that_arent_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    names = {"energy": "E_dft", "forces": "forces"}
    data = renamed(tmp_path / "my.extxyz", structures(), names, config_type="bulk")
    with caplog.at_level(logging.INFO, logger="lamm"):
        check_data(prepare_data(data, tmp_path / "run"), tmp_path / "run", accept=True)
    assert "no structure has an energy; numbers that aren't used: 'E_dft'. " in caplog.text
    assert "keys: {energy: E_dft}" in caplog.text
    assert "0 with an energy, 30 with forces" in caplog.text
    checks = {
        one["check"] for one in json.loads((tmp_path / "run/doctor.json").read_text())["findings"]
    }
    assert "labels.missing" in checks


def test_a_card_names_keys_and_units(tmp_path: Path):
    some = structures()
    data = renamed(tmp_path / "my.extxyz", some, {"energy": "E_dft", "forces": "F_dft"})
    card = tmp_path / "card.yaml"
    card.write_text(
        "functional: PBE\nunits: {energy: Hartree}\nkeys: {energy: E_dft, forces: F_dft}\n"
    )
    store = prepare_data(data, tmp_path / "run", card=card).store
    assert store[0].energy == pytest.approx(some[0].energy * HARTREE)
    assert store.card.functional == "PBE"
    assert store.card.label_counts["forces"] == len(some)


def test_messages_about_a_file_name_it_and_the_option_for_cards(tmp_path: Path):
    data = xyz(tmp_path / "my.extxyz", structures())
    more = renamed(tmp_path / "val.extxyz", structures(6), {"energy": "energy", "forces": "force"})
    text = more.read_text().replace("energy=", "REF_energy=1.0 energy=")
    more.write_text(text)
    with pytest.raises(DataError, match="--card FILE") as error:
        prepare_data(data, tmp_path / "run", val=more)
    assert str(more) in str(error.value)
    few = xyz(tmp_path / "few.extxyz", structures(1))
    with pytest.raises(DataError) as error:
        prepare_data(few, tmp_path / "other", test=xyz(tmp_path / "test.xyz", structures(3)))
    assert str(error.value).startswith(f"{few}: 1 structure")


@pytest.mark.parametrize("suffix", ["traj", "db", "json", "xyz.gz"])
def test_other_files_of_ase_are_read(tmp_path: Path, suffix: str):
    data = tmp_path / f"my.{suffix}"
    atoms = [one.to_atoms() for one in structures()]
    if suffix in ("db", "json"):
        with connect(data) as database:
            for one in atoms:
                database.write(one)
    else:
        write(data, atoms)
    store = prepare_data(data, tmp_path / "run").store
    assert len(store) == 30
    assert store.card.label_counts["energy"] == store.card.label_counts["forces"] == 30
    entry = unlabelled_subset(data, tmp_path / "run")
    assert entry["unlabelled"]["store"] == str(tmp_path / "run" / "unlabelled")


def test_copies_of_training_structures_in_given_files_stop_the_run(tmp_path: Path):
    some = [replace(one, id=one.id + "x") for one in structures()]
    data, val = xyz(tmp_path / "my.xyz", some), xyz(tmp_path / "val.xyz", some[:5])
    prepared = prepare_data(data, tmp_path / "run", val=val)
    with pytest.raises(DataError, match=r"splits\.copies: 5 held-out structures"):
        check_data(prepared, tmp_path / "run")
    check_data(prepared, tmp_path / "run", accept=True)
    assert json.loads((tmp_path / "run" / "doctor.json").read_text())["accepted"]


def test_our_own_split_is_said_once_and_not_held_against_the_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rng = np.random.default_rng(0)
    first = next(one for one in structures() if one.num_atoms >= 3)
    frames = [
        replace(one, positions=first.positions + rng.normal(0, 0.1, first.positions.shape))
        for one in [first] * 40
    ]
    data = xyz(tmp_path / "my.xyz", [replace(one, id=f"frame-{n}") for n, one in enumerate(frames)])
    with caplog.at_level(logging.INFO, logger="lamm"):
        prepared = prepare_data(data, tmp_path / "run")
        check_data(prepared, tmp_path / "run", accept=True)
    assert (prepared.store.index.split == VAL).any()
    assert "frames of a system" not in caplog.text
    assert caplog.text.count("groups of like structures") == 1


def test_charges_that_the_model_isnt_told_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    names = {"energy": "energy", "forces": "forces"}
    data = renamed(tmp_path / "my.xyz", structures(), names, charge=-1, spin=0)
    check_data(prepare_data(data, tmp_path / "run"), tmp_path / "run", accept=True)
    assert "'charge' is -1, and the model isn't told" in caplog.text
    assert "'spin'" not in caplog.text


def lone(symbol: str, box: float | None, energy: float) -> Atoms:
    """An isolated atom, in vacuum or in a box of its own."""
    atoms = Atoms(symbol) if box is None else Atoms(symbol, cell=[box] * 3, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
    return atoms


def test_isolated_atoms_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    few = [lone("H", None, -13.6), lone("O", 9.0, -2040.0), lone("O", 20.0, -2040.0)]
    crystal = lone("Cu", 2.6, -1.0)  # one atom whose images are its neighbours
    write(tmp_path / "my.extxyz", [*few, crystal, *(one.to_atoms() for one in structures())])
    to = tmp_path / "run"
    with caplog.at_level(logging.INFO, logger="lamm"):
        prepared = prepare_data(tmp_path / "my.extxyz", to)
        check_data(prepared, to, accept=True)
    store = prepared.store
    assert len(store) == 31
    assert int((store.index.num_atoms == 1).sum()) == 1
    assert "3 structures of isolated atoms are left out" in caplog.text
    findings = json.loads((to / "doctor.json").read_text())["findings"]
    assert [one["count"] for one in findings if one["check"] == "structures.isolated"] == [3]


def test_isolated_atoms_alone_are_no_data(tmp_path: Path):
    write(tmp_path / "my.extxyz", [lone("H", None, -13.6), lone("H", 30.0, -13.6)])
    with pytest.raises(DataError, match="has an atom a neighbour"):
        prepare_data(tmp_path / "my.extxyz", tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()
