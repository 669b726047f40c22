"""Configurations: what is misspelt or impossible stops before anything is done."""

from pathlib import Path

import pytest
import yaml

from lamm.config import json_schema, override, read_finetune_config, read_run_config, to_yaml
from lamm.errors import ConfigError
from small import small_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    config = small_config(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    return file


def test_the_resolved_configuration_reads_back_as_itself(path: Path):
    config = read_run_config(path)
    assert yaml.safe_load(to_yaml(config)) == yaml.safe_load(path.read_text())


def test_dotted_words_change_single_entries(path: Path):
    config = read_run_config(path, ["train.steps=77", "optim.lr=1e-4", "model=lamm-xs"])
    assert (config.train.steps, config.optim.lr) == (77, 1e-4)
    assert config.model.encoder.channels > 16


def test_a_preset_can_be_changed_by_a_word():
    changed = override({"model": "lamm-xs"}, ["model.encoder.channels=32"])
    assert changed == {"model": {"preset": "lamm-xs", "encoder": {"channels": 32}}}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.stepz=3", r"unknown key 'train.stepz'.*'steps'"),
        ("optim.learning_rate=3", "unknown key 'optim.learning_rate'"),
        ("data.subsets.both.stor=x", r"data.subsets.both.stor'.*'store'"),
        ("optim.lr=fast", r"optim.lr"),
        ("balance.batch_size=0", r"balance.batch_size"),
        ("balance.planner=best", r"balance.planner"),
        ("train.epochs=2", "one of the two"),
        ("model=lamm-xl", r"lamm-xl.*lamm-"),
        ("optim.warmup_steps=99", "fewer than the 12"),
        ("trainsteps", "is not an override"),
        ("seed.x=3", "no keys below it"),
    ],
)
def test_a_wrong_word_is_named_with_what_to_do(path: Path, word: str, message: str):
    with pytest.raises(ConfigError, match=message):
        read_run_config(path, [word])


def test_a_missing_file_says_so(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        read_run_config(tmp_path / "nothing.yaml")


def test_fine_tuning_needs_a_base(path: Path):
    with pytest.raises(ConfigError, match="base"):
        read_finetune_config(path)


def test_the_json_schema_explains_every_entry_of_training():
    properties = json_schema()["$defs"]["TrainConfig"]["properties"]
    assert "Optimizer steps" in properties["steps"]["description"]
