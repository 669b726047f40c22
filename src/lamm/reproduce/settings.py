"""The configuration of an experiment: shipped, changed by a file, by other data and by words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import Field, NonNegativeInt

from lamm.config import merged, override
from lamm.data.joint import DataConfig, JointDataset
from lamm.errors import ConfigError
from lamm.schema import Frozen, load_yaml, parse

FOLDER = "configs/reproduce"
SHARED, PAPER = "shared", "paper"
"""Shipped files that are no experiment."""
EXTENDS = "extends"
"""Entry of a shipped file: another one, into which this one is merged."""
REPLACED = ("data", "downstream", "scale")
"""Entries of a user's file that stand in place of the shipped ones; the others are merged."""
NAMED = ("arms", "models", "objectives")
"""Entries with names, of which ``null`` leaves one out; so it does in `data.subsets`."""


class Experiment(Frozen):
    """What every experiment's configuration says."""

    scale: list[str]
    """In words: how data, models and length differ from the paper's."""
    seed: NonNegativeInt = 0


class DataExperiment(Experiment):
    """An experiment that looks at a joint data set."""

    data: DataConfig
    stands_in_for: dict[str, str] = Field(default_factory=dict)
    """Subset to the row of the paper's Table 2 whose kind it is."""

    def joint(self) -> JointDataset:
        """The joint data set.

        Raises:
            ConfigError: `stands_in_for` names a subset or a row that isn't there.
        """
        unknown = set(self.stands_in_for) - set(self.data.subsets)
        unknown |= set(self.stands_in_for.values()) - set(paper_values("table2")["subsets"])
        if unknown:
            raise ConfigError(
                f"stands_in_for: {', '.join(sorted(unknown))}: expected subsets of `data` and rows "
                "of the paper's Table 2."
            )
        return JointDataset(self.data, self.seed)


SettingsT = TypeVar("SettingsT", bound=Experiment)


@dataclass(frozen=True)
class Asked(Generic[SettingsT]):
    """A checked configuration, and what of it isn't the shipped one."""

    settings: SettingsT
    changes: list[str]


def shipped(name: str) -> dict[str, Any]:
    """A shipped file of this folder as a mapping."""
    mapping = load_yaml(Path(str(files("lamm") / FOLDER / f"{name}.yaml")))
    if EXTENDS in mapping:
        base = shipped(mapping.pop(EXTENDS))
        mapping = merged(base, mapping)
    return mapping


def paper_values(name: str) -> dict[str, Any]:
    """What the paper reports in a table or figure; `where` says where."""
    values: dict[str, Any] = shipped(PAPER)[name]
    return values


def read_settings(
    name: str,
    kind: type[SettingsT],
    *,
    file: Path | None = None,
    shared: Path | None = None,
    words: Sequence[str] = (),
) -> Asked[SettingsT]:
    """The configuration of an experiment.

    Args:
        name: of the shipped configuration.
        kind: what it must be.
        file: YAML with entries to change; `data`, `downstream` and `scale` replace the shipped
            ones, others are merged into them.
        shared: folder of the stores that ``configs/shared_mini.sh`` makes from genuine samples, in
            place of the shipped subsets.
        words: dotted ``key=value`` changes.

    Raises:
        ConfigError: the experiment reads no data that `shared` could replace, or the file or a key
            in it is wrong.
    """
    mapping, changes = shipped(name), []
    if shared is not None:
        mapping = _with_shared(name, mapping, shared)
        changes.append(f"data: genuine samples in {shared}")
    if file is not None:
        entries = load_yaml(file)
        if "data" in entries and "stands_in_for" in mapping:
            mapping["stands_in_for"] = {}  # of other subsets
        for key, value in entries.items():
            replaced = key in REPLACED or not isinstance(value, dict)
            mapping[key] = value if replaced else merged(mapping.get(key), value)
        changes.append(f"entries of {file.name}")
    if words:
        mapping = override(mapping, words)
        changes += words
    for place, key in (*((mapping, key) for key in NAMED), (mapping.get("data"), "subsets")):
        if isinstance(place, dict) and isinstance(place.get(key), dict):
            place[key] = {one: v for one, v in place[key].items() if v is not None}
    return Asked(parse(kind, mapping, f"reproduce {name}"), changes)


def _with_shared(name: str, mapping: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with the data of ``shared.yaml``, whose ``$STORES`` is `folder`."""
    if "data" not in mapping:
        raise ConfigError(f"--shared {folder}: {name} reads no data. Leave it out.")
    if not folder.is_dir():
        raise ConfigError(
            f"--shared {folder}: no such folder. Make it by `bash configs/shared_mini.sh SAMPLES "
            f"{folder}`."
        )
    other = shipped(SHARED)
    placed: dict[str, Any] = yaml.safe_load(
        yaml.safe_dump(other, allow_unicode=True).replace("$STORES", str(folder.resolve()))
    )
    lines = {line.partition(":")[0]: line for line in placed["scale"]}  # "Data: ..." and so on
    scale = [lines.get(line.partition(":")[0], line) for line in mapping["scale"]]
    mapping = {**mapping, "scale": scale}
    for key in ("data", "downstream", "stands_in_for", "unlabelled"):
        if key in mapping:
            mapping[key] = placed[key]
    return mapping
