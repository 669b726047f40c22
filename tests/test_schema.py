"""A wrong configuration is answered with the place, what was found and what was expected."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt, model_validator

from lamm.errors import ConfigError
from lamm.schema import Frozen, load_yaml, parse


class Plain(Frozen):
    name: Literal["plain"] = "plain"
    channels: PositiveInt = 8
    layers: PositiveInt = 2


class Fancy(Frozen):
    name: Literal["fancy"] = "fancy"
    channels: PositiveInt = 8
    degree: PositiveInt = 4


class Model(Frozen):
    encoder: Annotated[Plain | Fancy, Field(discriminator="name")] = Plain()
    forces: Literal["direct", "gradient"] = "direct"


class Subset(Frozen):
    store: str
    labels: list[str] | None = None


class Steps(Frozen):
    steps: PositiveInt = 10
    warmup: int = 0

    @model_validator(mode="after")
    def _fits(self) -> "Steps":
        if self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup}, expected fewer than the {self.steps} steps")
        return self


class Run(Frozen):
    model: Model = Model()
    subsets: dict[str, Subset]
    stages: list[Steps] = []  # noqa: RUF012
    train: Steps = Steps()
    extra: Steps | None = None


GOOD = {"subsets": {"qm": {"store": "a"}}}


def complaint(**entries: object) -> str:
    with pytest.raises(ConfigError) as error:
        parse(Run, {**GOOD, **entries}, "run.yaml")
    return str(error.value)


def test_what_is_right_is_taken() -> None:
    run = parse(Run, {**GOOD, "model": {"encoder": {"name": "fancy"}}, "train": {"steps": "3"}}, "")
    assert isinstance(run.model.encoder, Fancy)
    assert run.train.steps == 3


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"models": {}}, "unknown key 'models'. Did you mean 'model'?"),
        ({"train": {"stepps": 1}}, "unknown key 'train.stepps'. Did you mean 'steps'?"),
        ({"extra": {"stepps": 1}}, "unknown key 'extra.stepps'. Did you mean 'steps'?"),
        ({"stages": [{}, {"stepps": 1}]}, "unknown key 'stages[1].stepps'. Did you mean 'steps'?"),
        (
            {"subsets": {"qm": {"store": "a", "stores": "b"}}},
            "unknown key 'subsets.qm.stores'. Did you mean 'store'?",
        ),
        (
            {"model": {"encoder": {"name": "fancy", "degre": 1}}},
            "unknown key 'model.encoder.degre'. Did you mean 'degree'?",
        ),
        (
            {"model": {"encoder": {"name": "plain", "degree": 1}}},
            "unknown key 'model.encoder.degree'. Known: channels, layers, name.",
        ),
        ({"warmup": 1}, "unknown key 'warmup'. Did you mean 'train.warmup' or 'extra.warmup'?"),
        ({"train": {"zzz": 1}}, "unknown key 'train.zzz'. Known: steps, warmup."),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(
    entries: dict[str, object], expected: str
) -> None:
    assert complaint(**entries).startswith(f"run.yaml: {expected}")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"run.yaml: missing key 'subsets.qm.store'"):
        parse(Run, {"subsets": {"qm": {}}}, "run.yaml")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"train": {"steps": "many"}}, "'train.steps': found 'many', expected a valid integer"),
        ({"train": {"steps": 0}}, "'train.steps': found 0, expected greater than 0"),
        ({"train": 3}, "'train': found 3, expected keys with values"),
        (
            {"model": {"forces": "gradeint"}},
            "'model.forces': found 'gradeint', expected 'direct' or 'gradient'. "
            "Did you mean 'gradient'?",
        ),
        (
            {"model": {"encoder": {"name": "plainn"}}},
            "'model.encoder.name': found 'plainn'. Did you mean 'plain'?",
        ),
        ({"model": {"encoder": {"channels": 4}}}, "missing key 'model.encoder.name'"),
        ({"train": {"warmup": 99}}, "'train': warmup is 99, expected fewer than the 10 steps"),
    ],
)
def test_a_wrong_value_is_answered_with_what_was_expected(
    entries: dict[str, object], expected: str
) -> None:
    assert complaint(**entries).startswith(f"run.yaml: {expected}")


def test_every_fault_is_listed() -> None:
    text = complaint(models=1, train={"steps": "many"})
    assert text.startswith("run.yaml: unknown key 'models'")
    assert "\n  'train.steps': found 'many'" in text


def test_no_mapping_at_all() -> None:
    with pytest.raises(ConfigError, match=r"run.yaml: found \[\], expected keys with values"):
        parse(Run, [], "run.yaml")


class TestYaml:
    @staticmethod
    def complaint(tmp_path: Path, text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as error:
            load_yaml(path)
        return str(error.value)

    def test_a_mapping_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text("base: &b {x: 1}\nother:\n  <<: *b\n  y: [2]\n", encoding="utf-8")
        assert load_yaml(path)["other"] == {"x": 1, "y": [2]}

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none.yaml: no such file"):
            load_yaml(tmp_path / "none.yaml")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="can't be read as text"):
            load_yaml(tmp_path)

    def test_a_fault_is_found_by_line(self, tmp_path: Path) -> None:
        assert "run.yaml, line 2: not valid YAML" in self.complaint(tmp_path, "a: 1\nb: [1, 2]]\n")

    def test_a_key_given_twice(self, tmp_path: Path) -> None:
        text = self.complaint(tmp_path, "a: 1\nb:\n  c: 1\n  c: 2\n")
        assert "line 4: not valid YAML: the key 'c' is given twice" in text

    def test_no_mapping(self, tmp_path: Path) -> None:
        assert "found a list, expected keys" in self.complaint(tmp_path, "- 1\n")
        assert "found nothing, expected keys" in self.complaint(tmp_path, "")
