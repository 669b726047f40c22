"""Bad input ends in one clear message and exit status 2, and leaves nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lamm.cli.main import run
from lamm.train.run import pretrain
from small import small_config


def invoke(arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    """Run the command in this process: exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["lamm", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        run()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def lamm(monkeypatch, capsys):
    return lambda *arguments: invoke(list(arguments), monkeypatch, capsys)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    settings = small_config(tmp_path, train={"steps": 3, "workers": 0, "log_every": 1})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "CONFIG", "--to"],
        ["bench", "balance", "--structures", "100", "--planner", "random", "--to"],
        ["bench", "balance", "--structures", "100", "--planner", "random", "--to-json"],
        ["bench", "store", "--structures", "2", "--to"],
        ["bench", "planning", "--structures", "100", "--to"],
        ["bench", "step", "CONFIG", "--to"],
        ["bench", "model", "--batch", "CONFIG", "--to"],
        ["data", "split", "mini:slabs_chgnet", "--to"],
        ["data", "doctor", "mini:slabs_chgnet", "--all-ids"],
    ],
    ids=" ".join,
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    lamm, tmp_path: Path, config: Path, words: list[str]
):
    folder = tmp_path / "folder"
    folder.mkdir()
    words = [str(config) if word == "CONFIG" else word for word in words]
    for path, message in ((folder, "this is a folder"), (config / "plan.npz", "is a file")):
        status, out, err = lamm(*words, path)
        assert status == 2
        assert f"{words[-1]} {path}: " in err
        assert message in err
        assert out == ""
    assert not (tmp_path / "run").exists()  # nothing was measured


def xyz(comment: str, *rows: str) -> str:
    return "\n".join([str(len(rows)), comment, *rows]) + "\n"


FORCES = "Properties=species:S:1:pos:R:3:forces:R:3"
ATOM = "H 0 0 0 0 0 0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xyz(f"energy=nan {FORCES}", ATOM), "nan"),
        (xyz(f"energy=1.0 {FORCES}", "H 0 0 0 0 nan 0"), "forces"),
        (xyz(f"energy=1.0 {FORCES}", "H 0 0 0 0 0"), "record"),
        (xyz(f"energy=1.0 {FORCES}", "Qq 0 0 0 0 0 0"), "Qq"),
        ("0\nenergy=1.0\n", "no atoms"),
        ("this is no structure\n", "record"),
    ],
    ids=["NaN energy", "NaN force", "wrong shape", "unknown element", "no atoms", "no structure"],
)
def test_a_bad_record_is_named(lamm, tmp_path: Path, content: str, message: str):
    source, store = tmp_path / "bad.xyz", tmp_path / "store"
    source.write_text(xyz(f"energy=1.0 {FORCES}", ATOM) + content)
    status, out, error = lamm("data", "ingest", "extxyz", source, "--to", store)
    assert status == 2
    assert "bad.xyz" in error
    assert message.lower() in error.lower()
    assert "Traceback" not in error + out
    assert [path.name for path in tmp_path.iterdir()] == ["bad.xyz"]


def test_a_missing_source_and_an_unknown_format(lamm, tmp_path: Path):
    status, _, error = lamm("data", "ingest", "extxyz", tmp_path / "no.xyz", "--to", tmp_path / "s")
    assert (status, "no.xyz" in error) == (2, True)
    (tmp_path / "a.xyz").write_text(xyz(f"energy=1.0 {FORCES}", ATOM))
    status, _, error = lamm("data", "ingest", "extxy", tmp_path / "a.xyz", "--to", tmp_path / "s")
    assert (status, "'extxyz'" in error) == (2, True)
    assert not (tmp_path / "s").exists()


def test_an_unknown_key_offers_the_nearest_one(lamm, config: Path):
    status, _, error = lamm("pretrain", config, "train.stepz=4")
    assert status == 2
    assert "train.stepz" in error
    assert "'steps'" in error
    assert not (config.parent / "run").exists()


def test_a_missing_configuration(lamm, tmp_path: Path):
    status, _, error = lamm("pretrain", tmp_path / "none.yaml")
    assert (status, "no such file" in error) == (2, True)


def test_a_truncated_shard_stops_the_run_by_name(lamm, config: Path):
    shard = next((config.parent / "both").glob("shard-*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-64])
    status, _, error = lamm("pretrain", config)
    assert status == 2
    assert str(shard) in error
    assert "bytes" in error


def test_a_checkpoint_of_another_architecture(lamm, config: Path, tmp_path: Path):
    pretrain(small_config(tmp_path, train={"steps": 3, "workers": 0}), quiet=True)
    settings = yaml.safe_load(config.read_text())
    del settings["start_from"]
    settings |= {"base": str(tmp_path / "run"), "to": str(tmp_path / "tuned")}
    settings["model"]["encoder"]["channels"] = 24
    other = tmp_path / "finetune.yaml"
    other.write_text(yaml.safe_dump(settings))
    status, _, error = lamm("finetune", other)
    assert status == 2
    assert "channels is 16, expected 24" in error
    assert not (tmp_path / "tuned").exists()


def test_fine_tuning_from_nothing(lamm, tmp_path: Path):
    status, _, error = lamm("finetune")
    assert (status, "nothing to fine-tune" in error) == (2, True)
    store = tmp_path / "data.xyz"
    store.write_text(xyz(f"energy=1.0 {FORCES}", ATOM))
    arguments = ["--from", tmp_path / "none", "--data", store, "--to", tmp_path / "run"]
    status, _, error = lamm("finetune", *arguments)
    assert (status, "no such run" in error) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_run_and_its_fine_tuning_say_what_came_out_as_json(lamm, config: Path, tmp_path: Path):
    status, out, _ = lamm("pretrain", config, "--json")
    assert status == 0
    said = json.loads(out)
    assert said["steps"] == 3
    assert set(said["validation_best"]["subsets"]) == {"both", "energies", "none"}
    arguments = ["--from", tmp_path / "run", "--data", tmp_path / "both", "--to", tmp_path / "ft"]
    words = ["train.steps=2", "train.workers=0", "optim.warmup_steps=1"]
    status, out, _ = lamm("finetune", *words, *arguments)
    assert status == 0
    assert "step 0 ->" in out
    assert "both" in out


def test_the_command_and_its_help_start_quickly_without_the_heavy_libraries():
    script = (
        "import sys\nfrom lamm.cli.main import app\nfrom typer.main import get_command\n"
        "get_command(app)\n"
        "print(*{'torch', 'ase', 'pyarrow', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.split() == []
