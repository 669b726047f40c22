"""The verbs that use a trained potential: what they write, say and answer to a wrong request."""

import json
import lzma
from pathlib import Path

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from commands import Lamm
from lamm.calculators.ase import LaMMCalculator
from lamm.models.potential import build
from lamm.train.checkpoint import save_potential
from lamm.train.stopping import StopRequest
from small import small_store

ENCODER = {"name": "painn", "channels": 16, "num_layers": 2, "num_radial": 8, "cutoff": 4.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints with two heads, a file of molecules and one of crystals with labels."""
    path = tmp_path_factory.mktemp("use")
    for forces in ("direct", "gradient"):
        model = build({"encoder": ENCODER, "forces": forces}, ["molecules", "crystals"], seed=0)
        for column in range(2):
            known = torch.ones(119, dtype=torch.bool)
            model.set_normalisation(column, torch.zeros(119), known, 1.0 + column, 1.0)
        save_potential(model, path / f"{forces}.safetensors")
    ase.io.write(path / "molecules.xyz", [molecule("H2O"), molecule("CH3OH")])
    crystals = []
    for seed in range(3):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.info["split"] = "test" if seed else "train"
        atoms.calc = SinglePointCalculator(
            atoms, energy=-1.0, forces=np.zeros((4, 3)), stress=np.zeros(6)
        )
        crystals.append(atoms)
    ase.io.write(path / "crystals.extxyz", crystals)
    (path / "noise.xyz").write_text("this is\nno structure\n")
    small_store(path / "store", count=30)
    small_store(path / "unlabelled", count=30, labels="")
    return path


def test_predictions_are_written_with_head_and_old_labels(
    lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    to = tmp_path / "out" / "predicted.extxyz.xz"
    answer = lamm(
        "predict",
        home / "gradient.safetensors",
        home / "crystals.extxyz",
        "--to",
        to,
        "--head",
        "crystals",
        "--json",
    )
    assert answer.status == 0, answer.err
    assert answer.json["structures"] == 3
    assert lzma.decompress(to.read_bytes()).startswith(b"4\n")
    first = ase.io.read(to, 0)
    calculator = LaMMCalculator(home / "gradient.safetensors", "crystals")
    expected = calculator.get_potential_energy(ase.io.read(home / "crystals.extxyz", 0))
    assert first.get_potential_energy() == pytest.approx(expected, abs=1e-5)
    assert first.get_stress().shape == (6,)
    assert first.info["head"] == "crystals"
    assert first.info["reference_energy"] == -1.0
    assert first.arrays["reference_forces"].shape == (4, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["direct.safetensors", "molecules.xyz"], "none was named"),
        (["direct.safetensors", "molecules.xyz", "--head", "crystal"], "'crystals'"),
        (["direct.safetensors", "noise.xyz", "--head", "crystals"], "ASE can't read it"),
        (["direct.safetensors", "molecule.xyz", "--head", "crystals"], "'molecules.xyz'"),
        (["director.safetensors", "molecules.xyz"], "'direct.safetensors'"),
        (["noise.xyz", "molecules.xyz"], "not a readable safetensors file"),
        (["direct.safetensors", "molecules.xyz", "--device", "abacus"], "--device"),
        (["direct.safetensors", "molecules.xyz", "--dtype", "float3"], "float32"),
        (["direct.safetensors", "store", "--head", "crystals"], "lamm data export"),
    ],
)
def test_a_wrong_request_is_answered_and_nothing_written(
    words: list[str], message: str, lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    paths = [home / word if "." in word or word == "store" else word for word in words]
    answer = lamm("predict", *paths, "--to", tmp_path / "out.extxyz")
    assert answer.status == 2
    assert message in answer.err
    assert answer.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["predict", "relax", "md"])
def test_an_output_that_is_there_is_kept(verb: str, lamm: Lamm, home: Path, tmp_path: Path) -> None:
    to = tmp_path / "out.extxyz"
    to.write_text("precious")
    answer = lamm(verb, home / "direct.safetensors", home / "molecules.xyz", "--to", to)
    assert answer.status == 2
    assert "--force" in answer.err
    assert to.read_text() == "precious"


def test_relaxation_lowers_the_forces_and_says_so(lamm: Lamm, home: Path, tmp_path: Path) -> None:
    start = molecule("H2O")
    start.set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "in.traj", start)
    to = tmp_path / "out.extxyz"
    words = ("relax", home / "gradient.safetensors", tmp_path / "in.traj", "--to", to)
    answer = lamm(*words, "--head", "molecules", "--fmax", 0.2, "--json")
    assert answer.status == 0, answer.err
    (row,) = answer.json["structures"]
    assert row["converged"]
    assert row["max_force_ev_per_ang"] <= 0.2
    assert row["energy_after_ev"] <= row["energy_before_ev"]
    relaxed = ase.io.read(to)
    np.testing.assert_allclose(relaxed.positions[0], start.positions[0], rtol=0, atol=1e-7)
    assert "reference_energy" not in relaxed.info
    assert bool(relaxed.info["relaxed"])


def test_a_relaxation_that_does_not_converge_is_a_bad_answer(
    lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    to = tmp_path / "out.extxyz"
    words = ("relax", home / "gradient.safetensors", home / "crystals.extxyz", "--to", to)
    answer = lamm(*words, "--head", "crystals", "--fmax", 1e-9, "--steps", 1, "--cell")
    assert answer.status == 1
    assert "0 of 3 converged" in answer.out
    assert len(ase.io.read(to, ":")) == 3


def test_the_cell_relaxes_only_with_a_stress_and_a_cell(
    lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    words = ("--to", tmp_path / "out.extxyz", "--head", "crystals", "--cell")
    direct = lamm("relax", home / "direct.safetensors", home / "crystals.extxyz", *words)
    assert (direct.status, "forces: gradient" in direct.err) == (2, True)
    molecules = lamm("relax", home / "gradient.safetensors", home / "molecules.xyz", *words)
    assert (molecules.status, "no cell" in molecules.err) == (2, True)


@pytest.mark.parametrize("suffix", [".traj", ".extxyz"])
def test_molecular_dynamics_writes_a_trajectory(
    suffix: str, lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    to = tmp_path / f"out{suffix}"
    words = ("md", home / "gradient.safetensors", home / "crystals.extxyz", "--to", to)
    words += ("--head", "crystals", "--steps", 12, "--every", 5, "--dtype", "float64")
    answer = lamm(*words, "--ensemble", "nve", "--timestep", 0.5, "--temperature", 50, "--json")
    assert answer.status == 0, answer.err
    assert answer.json["steps"] == 12
    frames: list[Atoms] = ase.io.read(to, ":")
    assert len(frames) == 4  # steps 0, 5, 10 and the last
    energies = [frame.get_total_energy() for frame in frames]
    assert np.ptp(energies) < 2e-3
    assert frames[0].get_temperature() == pytest.approx(50, rel=0.8)


def test_the_same_seed_gives_the_same_trajectory(lamm: Lamm, home: Path, tmp_path: Path) -> None:
    ends = []
    for number, seed in enumerate((1, 1, 2)):
        to = tmp_path / f"{number}.traj"
        words = ("md", home / "direct.safetensors", home / "molecules.xyz", "--to", to)
        assert lamm(*words, "--head", "molecules", "--steps", 3, "--seed", seed).status == 0
        ends.append(ase.io.read(to).positions)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-6


def test_a_run_that_blows_up_is_a_bad_answer(lamm: Lamm, home: Path, tmp_path: Path) -> None:
    to = tmp_path / "out.traj"
    words = ("md", home / "gradient.safetensors", home / "molecules.xyz", "--to", to)
    answer = lamm(*words, "--head", "molecules", "--temperature", 5e5, "--json")
    assert answer.status == 1
    assert "K" in answer.json["fault"]
    assert "blew up" in answer.err


def test_a_signal_ends_the_run_and_keeps_what_was_recorded(
    lamm: Lamm, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: StopRequest) -> StopRequest:
        self.signal_number = 15
        return self

    monkeypatch.setattr(StopRequest, "__enter__", stopped)
    to = tmp_path / "out.traj"
    words = ("md", home / "direct.safetensors", home / "molecules.xyz", "--to", to)
    assert lamm(*words, "--head", "molecules").status == 143
    assert len(ase.io.read(to, ":")) == 1


def test_direct_forces_at_constant_energy_get_a_warning(
    lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    words = ("md", home / "direct.safetensors", home / "molecules.xyz", "--head", "molecules")
    answer = lamm(*words, "--to", tmp_path / "a.traj", "--steps", 1, "--ensemble", "nve")
    assert answer.status == 0
    assert "isn't conserved" in answer.err


def test_an_evaluation_of_a_file_is_written_and_said(
    lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    to = tmp_path / "evaluation"
    words = ("evaluate", home / "gradient.safetensors", home / "crystals.extxyz")
    words += ("--head", "crystals", "--to", to)
    answer = lamm(*words, "--json")
    assert answer.status == 0, answer.err
    errors = answer.json["errors"]
    assert errors["structures"] == 3
    assert {"energy_mae_mev_per_atom", "forces_rmse_mev_per_ang", "stress_mae_mev_per_ang3"} <= set(
        errors
    )
    assert json.loads((to / "results.json").read_text()) == answer.json
    names = {path.name for path in to.iterdir()}
    figures = ("parity", "distributions", "breakdown")
    assert names == {
        *("results.json", "structures.csv", "atoms.parquet", "report.html"),
        *(f"{stem}.{suffix}" for stem in figures for suffix in ("png", "svg", "csv")),
    }
    atoms = pq.read_table(to / "atoms.parquet")
    mean = np.mean([np.abs(atoms[f"force_{axis}"].to_numpy()).mean() for axis in "xyz"])
    assert errors["forces_mae_mev_per_ang"] == pytest.approx(1000 * mean)  # the labels are zero
    assert errors["force_cosine_atoms"] == 0
    assert [row["element"] for row in answer.json["by_element"]] == ["Cu"]
    assert answer.json["by_size"][0]["structures"] == 3
    assert len((to / "structures.csv").read_text().splitlines()) == 4
    again = lamm(*words)
    assert (again.status, "--force" in again.err) == (2, True)
    test_split = lamm(*words, "--split", "test", "--force")
    assert "2 structures (test split)" in test_split.out


def test_an_evaluation_says_which_elements_the_head_never_saw(
    lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    model = build({"encoder": ENCODER}, ["one"], seed=0)
    known = torch.ones(119, dtype=torch.bool)
    known[29] = False
    model.set_normalisation(0, torch.zeros(119), known, 1.0, 1.0)
    save_potential(model, tmp_path / "one.safetensors")
    to = tmp_path / "evaluation"
    words = ("evaluate", tmp_path / "one.safetensors", home / "crystals.extxyz", "--to", to)
    answer = lamm(*words)
    assert "was trained without Cu" in answer.err
    assert "was trained without Cu" in (to / "report.html").read_text()
    assert json.loads((to / "results.json").read_text())["unknown_elements"] == ["Cu"]


def test_a_store_is_evaluated_on_its_validation_split(lamm: Lamm, home: Path) -> None:
    words = ("evaluate", home / "direct.safetensors", home / "store", "--head", "molecules")
    counts = [
        lamm(*words, "--split", split, "--val-fraction", 0.3, "--json").json["errors"]["structures"]
        for split in ("train", "val", "all")
    ]
    assert counts[0] + counts[1] == counts[2] == 30
    default = lamm(*words, "--val-fraction", 0.3, "--json").json
    assert (default["split"], default["errors"]["structures"]) == ("val", counts[1])
    nothing = lamm(*words, "--split", "test")
    assert (nothing.status, "--split all" in nothing.err) == (2, True)


def test_several_sets_each_take_the_head_of_their_name(
    lamm: Lamm, home: Path, tmp_path: Path
) -> None:
    stores = [small_store(tmp_path / name, count=6) for name in ("molecules", "crystals")]
    to = tmp_path / "evaluation"
    words = ("evaluate", home / "direct.safetensors", *stores, "--split", "all")
    answer = lamm(*words, "--to", to, "--json")
    assert answer.status == 0, answer.err
    found = answer.json["subsets"]
    assert {name: one["head"] for name, one in found.items()} == {
        "molecules": "molecules",
        "crystals": "crystals",
    }
    alone = lamm(*words[:2], stores[1], "--split", "all", "--json").json
    assert alone["errors"] == found["crystals"]["errors"]
    assert json.loads((to / "molecules" / "results.json").read_text()) == found["molecules"]
    page = (to / "report.html").read_text()
    assert "crystals" in page
    assert "Force errors" in page
    assert "crystals" in lamm(*words).out
    again = lamm(*words, "--to", to)
    assert (again.status, "--force" in again.err) == (2, True)
    twice = lamm(*words[:2], stores[0], stores[0], "--split", "all")
    assert (twice.status, "several sets are called 'molecules'" in twice.err) == (2, True), (
        twice.err
    )
    other = lamm(*words[:2], home / "store", "--split", "all")
    assert (other.status, "--head: molecules, crystals" in other.err) == (2, True)


def test_a_denoising_store_reports_both_errors(lamm: Lamm, home: Path, tmp_path: Path) -> None:
    words = ("evaluate", home / "direct.safetensors", home / "unlabelled", "--head", "molecules")
    words += ("--split", "all")
    answers = [lamm(*words, "--json").json["errors"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert set(answers[0]) == {"structures", "denoising_mae_own_ang", "denoising_mae_fair_ang"}
    assert lamm(*words, "--to", tmp_path / "page").status == 0
    assert "Noise MAE" in (tmp_path / "page" / "report.html").read_text()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("molecules.xyz", "none of the 2 structures has a label"),
        ("nothing", "no store"),
        ("noise.xyz", "expected the number of atoms"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    data: str, message: str, lamm: Lamm, home: Path
) -> None:
    answer = lamm("evaluate", home / "direct.safetensors", home / data, "--head", "molecules")
    assert answer.status == 2
    assert message in answer.err


def test_presets_and_checkpoints_are_described(lamm: Lamm, home: Path) -> None:
    presets = lamm("models", "--json").json["presets"]
    counts = {card["name"]: card["parameters"] for card in presets}
    assert counts["lamm-s"] == pytest.approx(20.1e6, rel=0.005)
    assert "lamm-xs" in lamm("models").out
    card = lamm("models", home / "direct.safetensors", "--json").json
    assert card["subsets"] == ["molecules", "crystals"]
    assert "16" in lamm("models", home / "direct.safetensors").out
    wrong = lamm("models", "lamm-z")
    assert (wrong.status, "'lamm-s'" in wrong.err) == (2, True)


def metrics(folder: Path, *, validated: bool = True) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for step in (0, 10, 20):
        if step:
            numbers = {"loss": 2.0 / step, "lr": 1e-3, "structures_per_s": 50.0, "epoch": 0.1}
            lines.append({"kind": "train", "step": step, "seconds": 1.0 * step, **numbers})
        if validated:
            errors = {"a": {"structures": 3, "energy_mae_mev_per_atom": 30.0 - step}}
            lines.append(
                {"kind": "validation", "step": step, "loss": 30.0 - step, "subsets": errors}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("model: {encoder: {name: painn}}\n")
    (folder / "environment.json").write_text('{"seed": 7}')
    return folder


def test_a_report_goes_into_the_run_folder(lamm: Lamm, tmp_path: Path) -> None:
    folder = metrics(tmp_path / "run")
    answer = lamm("report", folder, "--json")
    assert answer.status == 0, answer.err
    assert answer.json["runs"][0]["best_step"] == 20
    text = (folder / "report.html").read_text()
    assert "seed: 7" in text
    assert "name: painn" in text
    assert text.count("<svg") == 3
    assert lamm("report", folder).status == 2
    assert lamm("report", folder, "--force").status == 0


def test_several_runs_are_compared_on_one_page(lamm: Lamm, tmp_path: Path) -> None:
    folders = [metrics(tmp_path / part / "run") for part in ("one", "two")]
    to = tmp_path / "page.html"
    assert lamm("report", *folders, "--to", to).status == 0
    text = to.read_text()
    assert "Comparison" in text
    assert "one/run" in text
    twice = lamm("report", folders[0], folders[0], "--to", tmp_path / "b.html")
    assert (twice.status, "named twice" in twice.err) == (2, True)


def test_a_report_says_what_a_run_lacks(lamm: Lamm, tmp_path: Path) -> None:
    young = metrics(tmp_path / "young", validated=False)
    (young / "config.yaml").unlink()
    (young / "environment.json").unlink()
    assert lamm("report", young).status == 0
    text = (young / "report.html").read_text()
    assert "hasn't validated yet" in text
    assert "neither" in text
    for folder, message in ((tmp_path / "no", "no such run"), (tmp_path, "metrics.jsonl")):
        answer = lamm("report", folder)
        assert (answer.status, message in answer.err) == (2, True)
    (young / "metrics.jsonl").write_text("")
    assert "no metrics yet" in lamm("report", young, "--force").err
