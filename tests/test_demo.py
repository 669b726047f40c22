"""The demonstration: in small at every test, whole in `make test-slow`."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lamm.demo.config import read_demo_config
from lamm.demo.run import clear, run_demo
from lamm.errors import ConfigError
from small import small_store

RESULTS = {"seconds", "subsets", "downstream", "denoising"}
SHORT = {
    "train": {"steps": 4, "validate_every": 2, "workers": 0, "log_every": 2},
    "optim": {"lr": 2e-3, "warmup_steps": 1},
    "balance": {"batch_size": 6},
}


@pytest.fixture
def changes(tmp_path: Path) -> Path:
    """The demonstration on small stores, with a small model and few steps."""
    stores = {"both": "EF", "none": "", "downstream": "EF"}
    paths = {
        name: str(small_store(tmp_path / name, labels=labels, seed=len(name)))
        for name, labels in stores.items()
    }
    small = {"encoder": {"name": "painn", "channels": 8, "num_layers": 1, "num_radial": 8}}
    mapping = {
        "model": small,
        "data": {
            "subsets": {name: {"store": paths[name]} for name in ("both", "none")},
            "val_fraction": 0.2,
        },
        "downstream": {"name": "downstream", "subset": {"store": paths["downstream"]}},
        "pretrain": SHORT,
        "finetune": SHORT,
        "denoising": {"model": small, **SHORT},
    }
    path = tmp_path / "changes.yaml"
    path.write_text(json.dumps(mapping))
    return path


class Sections(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.svg = 0
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.svg += tag == "svg"
        for name, value in attrs:
            if name in ("src", "href") and value and value.startswith(("http", "//", "/")):
                self.outside.append(value)


def test_the_demonstration_in_small_gives_results_and_one_page(changes: Path, tmp_path: Path):
    to = tmp_path / "demo"
    results = run_demo(read_demo_config(changes), to, quiet=True)
    written = json.loads((to / "results.json").read_text())
    assert set(written) >= RESULTS
    for label in ("scratch", "pretrained"):
        assert set(written["downstream"][label]) >= {
            "energy_mae_mev_per_atom",
            "forces_mae_mev_per_ang",
            "steps_to_threshold",
        }
    assert [row["name"] for row in written["subsets"]] == ["both", "none"]
    assert written["subsets"][1]["labels"] == "N"
    assert results["relaxation"]["steps"] >= 0
    page = Sections()
    page.feed((to / "report.html").read_text())
    assert page.svg == 6
    assert page.outside == []
    assert {path.suffix for path in (to / "figures").iterdir()} == {".png", ".svg", ".csv"}
    with pytest.raises(ConfigError, match="--force"):
        run_demo(read_demo_config(changes), to, quiet=True)
    clear(to)
    assert not to.exists()


def test_the_demonstration_can_start_from_a_checkpoint(changes: Path, tmp_path: Path):
    run_demo(read_demo_config(changes), tmp_path / "first", quiet=True)
    base, to = tmp_path / "first" / "pretrain", tmp_path / "second"
    shorter = tmp_path / "shorter.yaml"
    kept = {k: v for k, v in json.loads(changes.read_text()).items() if k not in ("model", "data")}
    shorter.write_text(json.dumps(kept))
    config = read_demo_config(shorter, base=base)
    assert config.data.subsets.keys() == {"both", "none"}, "those of the checkpoint"
    run_demo(config, to, quiet=True)
    assert not (to / "pretrain").exists()
    assert f"pre-trained before: {base}" in (to / "report.html").read_text()
    clear(to)
    assert not to.exists()


def test_only_a_demonstration_is_removed(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not removed"):
        clear(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_wrong_entry_of_the_users_file_is_named(tmp_path: Path):
    path = tmp_path / "changes.yaml"
    path.write_text("pretrain: {train: {stepz: 3}}\n")
    with pytest.raises(ConfigError, match=r"pretrain.train.stepz.*'steps'"):
        read_demo_config(path)


@pytest.mark.slow
def test_pre_training_helps_in_the_whole_demonstration(tmp_path: Path):
    results = run_demo(read_demo_config(), tmp_path / "demo", quiet=True)
    downstream = results["downstream"]
    for key in ("energy_mae_mev_per_atom", "forces_mae_mev_per_ang"):
        assert downstream["pretrained"][key] < downstream["scratch"][key]
    for kind in ("energy", "forces"):
        assert downstream["speedup"][kind] > 1
    assert results["seconds"] < 600
