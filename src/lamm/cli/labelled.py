"""Labelled structures of a store or a file, by split: what `evaluate` and `uncertainty` read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from lamm.cli.structures import read_atoms
from lamm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lamm.structure import Structure


DEFAULT_VAL_FRACTION = 0.01
"""Validation share where neither the source nor the run says another: 99/1, as the paper splits."""


class Split(StrEnum):
    """Which structures to look at."""

    train = "train"
    val = "val"
    test = "test"
    all = "all"


@dataclass
class Source:
    """The structures of one store or file."""

    name: str
    """Of the store's card, or of the file without its suffix."""
    structures: Iterator[Structure]
    count: int
    split: Split
    denoising: bool = False


ValFraction = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.999,
        help="Validation share of a store without splits; the run's where left out, else 0.01.",
    ),
]


def run_val_fraction(checkpoint: Path) -> float | None:
    """The share of validation structures in the run that a checkpoint is of; None if unknown."""
    from lamm.train.run import run_config_file

    file = run_config_file(checkpoint)
    if file is None:
        return None
    data = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("data") or {}
    return float(data.get("val_fraction", DEFAULT_VAL_FRACTION))


def labelled_source(
    data: str,
    split: Split | None = None,
    val_fraction: float = DEFAULT_VAL_FRACTION,
    card: Path | None = None,
    noise: float = 0.1,
    most: int | None = None,
) -> Source:
    """Structures of a store or a file.

    Args:
        data: path of either, or ``mini:NAME``.
        split: all of a file and the validation split of a store where left out.
        val_fraction: share of the validation split of a store that has none.
        card: units and keys of an extended XYZ file.
        noise: standard deviation in Å for the denoising task.
        most: so many structures at most, drawn at random (but always the same).

    Raises:
        LaMMError: nothing there, nothing of that split, or unreadable.
    """
    from lamm.data.joint import store_path

    path = store_path(data)
    if path.is_file():
        return _file_source(path, split or Split.all, card, most)
    if card is not None:
        raise ConfigError("--card is for extended XYZ files; a store has its own card.")
    return _store_source(path, split or Split.val, val_fraction, noise, most)


def _store_source(
    path: Path, split: Split, val_fraction: float, noise: float, most: int | None
) -> Source:
    import numpy as np

    from lamm.data.denoising import DenoisingConfig, denoising_structure
    from lamm.data.joint import FIXED_NOISE
    from lamm.data.splits import SPLIT_CODES, assign_splits
    from lamm.data.store import Store

    store = Store.open(path)
    rows = np.arange(len(store))
    if split is not Split.all:
        index = store.index
        codes = assign_splits(index.id_hash, index.split, val_fraction=val_fraction)
        rows = np.flatnonzero(codes == SPLIT_CODES[split.value])
        if len(rows) == 0:
            raise ConfigError(
                f"{path}: no structure of the {split.value} split.\n"
                f"  See `lamm data split {path}`, raise --val-fraction, or use --split all."
            )
    rows = _some(rows, most)
    if store.card.task != "denoising":
        return Source(store.card.name, store.structures(rows), len(rows), split)
    if noise <= 0:
        raise ConfigError(f"--noise {noise}: expected a standard deviation above 0, in Å.")
    config = DenoisingConfig(std=noise)
    hashes = store.index.id_hash
    noisy = (
        denoising_structure(store[int(row)], int(hashes[row]), config, 0, FIXED_NOISE)
        for row in rows
    )
    return Source(store.card.name, noisy, len(rows), split, denoising=True)


def _file_source(path: Path, split: Split, card: Path | None, most: int | None) -> Source:
    import numpy as np

    from lamm.data.cards import CardHeader, read_header
    from lamm.data.readers.common import SkippedRecord
    from lamm.data.readers.extxyz import SUFFIXES, read_extxyz
    from lamm.evaluate.predict import structure_of

    if path.name.lower().endswith(SUFFIXES):
        header = read_header(card) if card is not None else CardHeader()
        records = read_extxyz(path, header)
        structures = [one for one in records if not isinstance(one, SkippedRecord)]
    elif card is not None:
        raise ConfigError(f"--card is for extended XYZ files, and {path} isn't one.")
    else:
        structures = [
            structure_of(one, f"{path}, structure {k}") for k, one in enumerate(read_atoms(path))
        ]
    if not structures:
        raise DataError(f"{path}: no structure in it.")
    if split is not Split.all:
        structures = [one for one in structures if one.split == split.value]
        if not structures:
            raise ConfigError(
                f"{path}: no structure says that it is of the {split.value} split "
                "(`split=` in the comment line). Use --split all."
            )
    rows = _some(np.arange(len(structures)), most)
    structures = [structures[row] for row in rows]
    return Source(path.name.split(".")[0], iter(structures), len(structures), split)


def _some(rows: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """At most so many of the rows, drawn at random and always the same, in order."""
    import numpy as np

    if most is None or len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
