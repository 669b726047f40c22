"""The user's structures as a store with splits: ingested, split, and looked at by the doctor."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.doctor import Diagnosis, Severity, examine
from lamm.data.groups import group_structures, split_groups
from lamm.data.ingest import ingest
from lamm.data.splits import NONE, SPLIT_CODES, TEST, TRAIN, VAL
from lamm.data.store import Store, StoreWriter
from lamm.data.writer import CARD
from lamm.errors import ConfigError, DataError
from lamm.files import write_json
from lamm.finetune.further import UNLABELLED
from lamm.finetune.rules import held_out_shares
from lamm.train.run import CONFIG

logger = logging.getLogger(__name__)

DATA, DOCTOR = "data", "doctor.json"
WARNED_ONLY = ("splits.", "stress.", "labels.ids")
"""Checks whose errors don't spoil what is learnt: they are said, and the run goes on. Stress isn't
trained on."""
_NAMES = {code: name for name, code in SPLIT_CODES.items()}


def open_source(path: Path, folder: Path) -> Store:
    """The store at a path, or one made in `folder` of the extended XYZ file there.

    Raises:
        ConfigError: there is nothing.
        DataError: the file can't be used.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file or store.")
    if path.is_dir():
        return Store.open(path)
    header = CardHeader(name=_plain(path.stem), task="S2EF-Total")
    ingest("extxyz", [path], folder, header)
    return Store.open(folder)


def _plain(name: str) -> str:
    """A name that can be a key: without dots."""
    return name.replace(".", "_") or "data"


def prepare_data(
    data: Path, to: Path, *, val: Path | None = None, test: Path | None = None, seed: int = 0
) -> Store:
    """A store of the user's structures with a split for each, in ``to/data``.

    Splits are, in this order: those of the files `val` and `test`; those that the source names,
    but for splits that a file replaces; groups of like structures (`lamm.data.groups`) by the
    shares of `lamm.finetune.rules`.

    Args:
        data: extended XYZ file or store: all structures, or those to train on.
        to: the run folder.
        val: validation structures.
        test: test structures.
        seed: which groups are held out.

    Raises:
        ConfigError: a path has nothing, or there is something else in ``to/data`` already.
        DataError: structures that can't be used or too few.
    """
    target = to / DATA
    given = {"train": data, "val": val, "test": test}
    for path in given.values():
        if path is not None and path.resolve() == target.resolve():
            raise ConfigError(
                f"{path}: data can't be where --to puts its own. Choose another --to."
            )
    _remove_leftover(to)
    with TemporaryDirectory(prefix="lamm-") as scratch:
        stores = {
            name: open_source(path, Path(scratch) / name)
            for name, path in given.items()
            if path is not None
        }
        splits = _splits(stores, seed)
        header = CardHeader.model_validate(
            {
                **{
                    key: value
                    for key, value in stores["train"].card.model_dump().items()
                    if key in CardHeader.model_fields and key not in _OWN
                },
                "name": stores["train"].card.name or _plain(data.stem),
            }
        )
        with StoreWriter(target, header) as writer:
            for name, store in stores.items():
                for row, structure in enumerate(store):
                    own = structure.id or f"{row}"
                    writer.add(
                        replace(
                            structure,
                            split=_NAMES[int(splits[name][row])],
                            id=own if name == "train" else f"{name}/{own}",
                        )
                    )
    return Store.open(target)


def _remove_leftover(to: Path) -> None:
    """Make room for ``to/data``, where a start that went no further has left its own.

    Raises:
        ConfigError: there is a run, or what is there may be the user's.
    """
    target = to / DATA
    if not target.exists():
        return
    # The doctor's findings lie there as soon as a start has prepared data, the configuration as
    # soon as it trains.
    if (to / CONFIG).exists() or not (to / DOCTOR).is_file() or not (target / CARD).is_file():
        raise ConfigError(
            f"{target}: this is there already, and no earlier start of a fine-tuning left it.\n"
            "  Choose another folder with --to."
        )
    logger.info("%s: left by a start that didn't come to training; it is made anew", target)
    shutil.rmtree(target)
    if (to / UNLABELLED / CARD).is_file():
        shutil.rmtree(to / UNLABELLED)


_OWN = ("labels", "units", "keys", "reader", "split", "periodic", "position_dtype")
"""Entries of a card that were about reading the source."""


def _splits(stores: Mapping[str, Store], seed: int) -> dict[str, NDArray[np.uint8]]:
    """Split of each structure of each source."""
    splits = {
        name: np.full(len(store), SPLIT_CODES[name], dtype=np.uint8)
        for name, store in stores.items()
        if name != "train"
    }
    store = stores["train"]
    split = store.index.split.copy()
    for name in splits:
        marked = split == SPLIT_CODES[name]
        if marked.any():
            logger.warning(
                "%d structures are marked '%s' in the file, and --%s names others: they are "
                "trained on",
                int(marked.sum()),
                name,
                name,
            )
            split[marked] = TRAIN
    if (split != NONE).all() and not (split == TRAIN).any():
        logger.warning(
            "every structure is marked '%s' in the file and none is for training: the marks are "
            "left aside",
            "' or '".join(_NAMES[int(code)] for code in np.unique(split)),
        )
        split[:] = NONE
    free = split == NONE
    shares = held_out_shares(len(store))
    val_share = 0.0 if "val" in stores or (split == VAL).any() else shares.val
    test_share = 0.0 if splits or (split != NONE).any() else shares.test
    if not free.any() and val_share:  # the source has training and test structures alone
        free = split == TRAIN
    if val_share or test_share:
        if free.sum() < 2:
            raise DataError(
                f"{store.path}: {int(free.sum())} structure to split, expected at least 2: one to "
                "train on and one to validate with.\n  Add structures, or name a file by --val."
            )
        groups = np.unique(group_structures(store)[free], return_inverse=True)[1].reshape(-1)
        if groups.max() == 0:
            groups = np.arange(len(groups))
            logger.info("all structures are nearly the same: they are split one by one")
        split[free] = _with_all_elements(
            store, np.flatnonzero(free), groups, split_groups(groups, val_share, test_share, seed)
        )
        logger.info(
            "split by %d groups of like structures (same system, copies)", int(groups.max()) + 1
        )
    split[split == NONE] = TRAIN
    splits["train"] = split
    return splits


def _with_all_elements(
    store: Store,
    rows: NDArray[np.int64],
    groups: NDArray[np.int64],
    split: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """The split with those groups in training that have an element which training lacks.

    Its reference energy couldn't be known otherwise, and the error would be that of an atom.
    """
    present = [set(structure.atomic_numbers.tolist()) for structure in store.structures(rows)]
    known = {z for place in np.flatnonzero(split == TRAIN) for z in present[int(place)]}
    result = split.copy()
    moved = 0
    for place in np.flatnonzero(split != TRAIN):
        if result[place] != TRAIN and not present[int(place)] <= known:
            group = np.flatnonzero(groups == groups[place])
            if not ((result == VAL) & (groups != groups[place])).any():
                continue  # the last group for validation stays
            result[group] = TRAIN
            known |= {z for other in group for z in present[int(other)]}
            moved += len(group)
    if moved:
        logger.info("%d structures with elements that no other has go to training", moved)
    return result


def check_data(store: Store, to: Path, *, accept: bool = False) -> Diagnosis:
    """What the doctor says of the data, in a few lines; stops at what is surely wrong.

    Args:
        store: the prepared data.
        to: the run folder; all findings go to its ``doctor.json``.
        accept: go on all the same.

    Raises:
        DataError: an error that spoils training.
    """
    diagnosis = examine({"data": store}, verify=False)
    write_json(to / DOCTOR, diagnosis.as_dict())
    fatal = []
    for finding in diagnosis.findings:
        if finding.severity is Severity.note:
            continue
        ids = f" ({', '.join(finding.ids[:3])}{', ...' if finding.count > 3 else ''})"
        logger.warning(
            "doctor: %s: %s%s", finding.severity.value, finding.title, ids if finding.ids else ""
        )
        if finding.severity is Severity.error and not finding.check.startswith(WARNED_ONLY):
            fatal.append(finding)
    if fatal and not accept:
        raise DataError(
            f"the doctor found {len(fatal)} error(s) in the data:\n"
            + "\n".join(f"  {one.check}: {one.title}. {one.advice}" for one in fatal)
            + f"\n  All findings are in {to / DOCTOR}. Mend the data, or accept it as it is with "
            "--accept-data."
        )
    counts = np.bincount(store.index.split, minlength=4)
    logger.info(
        "data: %d structures, %.0f atoms on average; %d to train, %d to validate, %d to test; "
        "doctor: %d errors, %d warnings",
        len(store),
        float(store.index.num_atoms.mean()),
        counts[TRAIN],
        counts[VAL],
        counts[TEST],
        diagnosis.count(Severity.error),
        diagnosis.count(Severity.warning),
    )
    return diagnosis
