"""The user's structures as a store with splits: ingested, split, and looked at by the doctor."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lamm.data.cards import CardHeader, Label, read_header
from lamm.data.doctor import Diagnosis, Finding, Severity, examine
from lamm.data.groups import group_structures, split_groups
from lamm.data.splits import NONE, SPLIT_CODES, TEST, TRAIN, VAL
from lamm.data.store import Store, StoreWriter
from lamm.data.writer import CARD
from lamm.errors import ConfigError, DataError
from lamm.files import write_json
from lamm.finetune.further import UNLABELLED
from lamm.finetune.isolated import without_isolated
from lamm.finetune.rules import held_out_shares
from lamm.finetune.sources import CARD_TAIL, Source, check_labels, open_source, plain_name
from lamm.train.run import CONFIG

logger = logging.getLogger(__name__)

DATA, DOCTOR = "data", "doctor.json"
WARNED_ONLY = ("splits.", "stress.", "labels.ids")
"""Checks whose errors don't spoil what is learnt: they are said, and the run goes on. Stress isn't
trained on."""
_NAMES = {code: name for name, code in SPLIT_CODES.items()}


class Prepared(NamedTuple):
    """The user's structures, each with a split."""

    store: Store
    how: str
    """How they were split, in words."""
    is_ours: bool
    """Whether no file and no mark says what is held out."""
    is_given: bool
    """Whether files say what is held out."""
    findings: tuple[Finding, ...]
    """What is odd about labels in the sources."""


def prepare_data(
    data: Path,
    to: Path,
    *,
    val: Path | None = None,
    test: Path | None = None,
    card: Path | None = None,
    seed: int = 0,
) -> Prepared:
    """A store of the user's structures with a split for each, in ``to/data``.

    Splits are, in this order: those of the files `val` and `test`; those that the source names,
    but for splits that a file replaces; groups of like structures (`lamm.data.groups`) by the
    shares of `lamm.finetune.rules`.

    Args:
        data: file or store: all structures, or those to train on.
        to: the run folder.
        val: validation structures.
        test: test structures.
        card: what is known of the files (YAML), as `lamm data ingest` takes it.
        seed: which groups are held out.

    Raises:
        ConfigError: a path has nothing, or there is something else in ``to/data`` already.
        DataError: structures that can't be used or too few.
    """
    target = to / DATA
    given = {
        name: path
        for name, path in {"train": data, "val": val, "test": test}.items()
        if path is not None
    }
    if any(path.resolve() == target.resolve() for path in given.values()):
        raise ConfigError(f"{target}: data can't be where --to puts its own. Choose another --to.")
    if card is not None and all(path.is_dir() for path in given.values()):
        raise ConfigError(f"--card {card}: a card is for files; a store has its own. Leave it out.")
    header = None if card is None else read_header(card)
    _remove_leftover(to)
    with TemporaryDirectory(prefix="lamm-") as scratch:
        sources = {
            name: open_source(path, Path(scratch) / name, header) for name, path in given.items()
        }
        findings = [finding for source in sources.values() for finding in check_labels(source)]
        for name, source in list(sources.items()):
            kept = Path(scratch) / f"{name}-kept"
            sources[name], found = without_isolated(source, kept, _header(source))
            findings += found
        splits = _splits(sources, seed)
        with StoreWriter(target, _header(sources["train"])) as writer:
            for name, source in sources.items():
                for row, structure in enumerate(source.store):
                    own = structure.id or f"{row}"
                    writer.add(
                        replace(
                            structure,
                            split=_NAMES[int(splits.codes[name][row])],
                            id=own if name == "train" else f"{name}/{own}",
                        )
                    )
    return Prepared(
        Store.open(target),
        splits.how,
        splits.is_ours,
        is_given=len(sources) > 1,
        findings=tuple(findings),
    )


def _header(source: Source) -> CardHeader:
    """What is known of the data, without what was about reading its source."""
    card = source.store.card
    known = {
        key: value
        for key, value in card.model_dump().items()
        if key in CardHeader.model_fields and key not in _OWN
    }
    return CardHeader.model_validate(known | {"name": card.name or plain_name(source.path.stem)})


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


class _Splits(NamedTuple):
    """Split of each structure of each source, and where it is from."""

    codes: dict[str, NDArray[np.uint8]]
    how: str
    is_ours: bool


def _splits(sources: Mapping[str, Source], seed: int) -> _Splits:
    splits = {
        name: np.full(len(source.store), SPLIT_CODES[name], dtype=np.uint8)
        for name, source in sources.items()
        if name != "train"
    }
    path, store = sources["train"]
    how = [f"--{name} {sources[name].path}" for name in splits]
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
    if not free.all():
        how.append("as the source says")
    shares = held_out_shares(len(store))
    val_share = 0.0 if "val" in sources or (split == VAL).any() else shares.val
    test_share = 0.0 if splits or (split != NONE).any() else shares.test
    if not free.any() and val_share:  # the source has training and test structures alone
        free = split == TRAIN
    if val_share or test_share:
        if free.sum() < 2:
            raise DataError(
                f"{path}: {int(free.sum())} structure to split, expected at least 2: one to "
                "train on and one to validate with.\n  Add structures, or name a file by --val."
            )
        groups = np.unique(group_structures(store)[free], return_inverse=True)[1].reshape(-1)
        like = f"by {int(groups.max()) + 1} groups of like structures: {_GROUPED}"
        if groups.max() == 0:
            groups = np.arange(len(groups))
            like = "one by one, as all structures are nearly the same"
        split[free] = _with_all_elements(
            store, np.flatnonzero(free), groups, split_groups(groups, val_share, test_share, seed)
        )
        how.append(like)
    split[split == NONE] = TRAIN
    splits["train"] = split
    is_ours = how == [like] if val_share or test_share else False
    return _Splits(splits, "; ".join(how), is_ours)


_GROUPED = (
    "copies, and frames of one system, of which a large one is cut into blocks of frames that "
    "follow each other"
)


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


def check_data(prepared: Prepared, to: Path, *, accept: bool = False) -> Diagnosis:
    """What the doctor says of the data, in a few lines; stops at what is surely wrong.

    Args:
        prepared: the prepared data.
        to: the run folder; all findings go to its ``doctor.json``.
        accept: go on all the same.

    Raises:
        DataError: an error that spoils training, or held-out files that have copies of training
            structures.
    """
    store = prepared.store
    diagnosis = _examined(prepared)
    notes = {"splits": prepared.how, "accepted": accept}
    write_json(to / DOCTOR, diagnosis.as_dict() | notes)
    fatal = []
    for finding in diagnosis.findings:
        if finding.severity is Severity.note:
            continue
        ids = f" ({', '.join(finding.ids[:3])}{', ...' if finding.count > 3 else ''})"
        logger.warning(
            "doctor: %s: %s%s%s",
            finding.severity.value,
            finding.title,
            ids if finding.ids else "",
            f". {finding.advice}" if finding in prepared.findings else "",
        )
        if finding.severity is Severity.error and _is_fatal(finding, prepared):
            fatal.append(finding)
    if fatal and not accept:
        raise DataError(
            f"the doctor found {len(fatal)} error(s) in the data:\n"
            + "\n".join(f"  {one.check}: {one.title}. {one.advice}" for one in fatal)
            + f"\n  All findings are in {to / DOCTOR}. Mend the data, or accept it as it is with "
            "--accept-data."
            + (f"\n  {CARD_TAIL}" if any("card" in one.advice for one in fatal) else "")
        )
    counts = np.bincount(store.index.split, minlength=4)
    logger.info(
        "data: %d structures, %.0f atoms on average; %s; %d to train, %d to validate, %d to test "
        "(%s); doctor: %d errors, %d warnings",
        len(store),
        float(store.index.num_atoms.mean()),
        label_words(store.card.label_counts),
        counts[TRAIN],
        counts[VAL],
        counts[TEST],
        prepared.how or "nothing is held out",
        diagnosis.count(Severity.error),
        diagnosis.count(Severity.warning),
    )
    return diagnosis


def label_words(counts: Mapping[Label, int]) -> str:
    """How many structures have each label, in words."""
    stress = counts.get("stress", 0)
    return (
        f"{counts.get('energy', 0):,} with an energy, {counts.get('forces', 0):,} with forces"
        + (f", {stress:,} with a stress, which isn't trained on" if stress else "")
    )


def _examined(prepared: Prepared) -> Diagnosis:
    """The doctor's findings and those on labels; how we split ourselves is no fault."""
    found = examine({"data": prepared.store}, verify=False).findings
    if prepared.is_ours:
        found = tuple(
            replace(one, severity=Severity.note) if one.check == "splits.systems" else one
            for one in found
        )
    order = list(Severity)
    both = (*found, *prepared.findings)
    return Diagnosis(tuple(sorted(both, key=lambda one: order.index(one.severity))))


def _is_fatal(finding: Finding, prepared: Prepared) -> bool:
    if finding.check == "splits.copies" and prepared.is_given:
        return True
    return not finding.check.startswith(WARNED_ONLY)
