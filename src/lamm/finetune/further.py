"""Subsets beside the user's: pre-training data against forgetting, and unlabelled structures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lamm.data.cards import CardHeader, KeyNames
from lamm.data.ingest import ingest
from lamm.data.store import Store
from lamm.errors import ConfigError, nearest_names
from lamm.finetune.sources import format_of
from lamm.train.run import CONFIG, run_config_file

UNLABELLED = "unlabelled"
"""Name of the output for the denoising of the user's structures."""
ALL = "all"


@dataclass(frozen=True)
class Request:
    """What ``lamm finetune`` was asked for."""

    data: Path
    to: Path
    base: Path | None = None
    """Checkpoint; None for training `preset` from scratch."""
    preset: str | None = None
    val: Path | None = None
    test: Path | None = None
    card: Path | None = None
    """What is known of the files: units, keys (YAML)."""
    head: str | None = None
    """``reset``, ``best`` or a subset of the base; by rule where left out."""
    frozen: bool = False
    lora: int | None = None
    """Rank of the encoder's adapters; None: the encoder itself is trained."""
    layer_decay: float = 1.0
    """What the rate falls by with each layer of the encoder, downwards from the head."""
    replay: Sequence[str] = ()
    """Subsets of the base's pre-training that are trained on too; ``all`` for every one."""
    unlabelled: Path | None = None
    """Structures for denoising beside the labelled ones (Sec. 3.3)."""
    max_seconds: float | None = None
    accept_data: bool = False
    words: Sequence[str] = ()
    begun: float = field(default_factory=time.monotonic)
    """Since when `max_seconds` counts, by the monotonic clock."""
    ranks: int = 1
    """Ranks that share each mini-batch."""


def further_subsets(request: Request) -> dict[str, Any]:
    """The part of `data` for the pre-training subsets that are replayed.

    Their structures are split as in pre-training, so that what validates wasn't trained on.

    Raises:
        ConfigError: there is no base, its run folder isn't there, or it had no such subset.
    """
    if not request.replay:
        return {}
    if request.base is None:
        raise ConfigError("--replay needs a checkpoint by --from, whose subsets it repeats.")
    data = pretraining_data(request.base)
    subsets: dict[str, Any] = data["subsets"]
    names = list(subsets) if ALL in request.replay else list(dict.fromkeys(request.replay))
    for name in names:
        if name not in subsets:
            raise ConfigError(
                f"--replay {name}: the base had no such subset. {nearest_names(name, subsets)}"
            )
    kept: dict[str, Any] = {
        key: data[key] for key in ("val_fraction", "test_fraction") if key in data
    }
    return {"subsets": {name: subsets[name] for name in names}, **kept}


def pretraining_data(base: Path) -> dict[str, Any]:
    """What the configuration of a base's run says of its data.

    Raises:
        ConfigError: there is no configuration beside the weights.
    """
    file = run_config_file(base)
    if file is None:
        raise ConfigError(
            f"--replay: {base} has no {CONFIG} that says which subsets it was trained on.\n"
            "  Name the run folder by --from, or the stores in a configuration file."
        )
    data: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]
    return data


def unlabelled_subset(path: Path, to: Path) -> dict[str, Any]:
    """An entry of `data.subsets` that denoises the structures of a file or a store (Sec. 3.3).

    Labels that are there aren't used.

    Raises:
        ConfigError: there is nothing at the path.
        DataError: the file can't be used.
    """
    if not path.exists():
        raise ConfigError(f"--unlabelled {path}: no such file or store.")
    store = path
    if path.is_file():
        store = to / UNLABELLED
        header = CardHeader(name=UNLABELLED, task="denoising", keys=KeyNames(split="none"))
        ingest(format_of(path), [path], store, header)
    Store.open(store)
    return {UNLABELLED: {"store": str(store), "denoising": {"std": 0.1}}}
