"""Whether validation and test structures are new to a model: elements, copies, trajectories."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lamm.data.cards import element_symbols
from lamm.data.doctor.blocks import Block, read_blocks
from lamm.data.doctor.duplicates import Copies
from lamm.data.doctor.findings import Finding, Rows, Severity
from lamm.data.doctor.survey import Survey
from lamm.data.references import NUM_ELEMENTS
from lamm.data.splits import NONE, TEST, TRAIN, VAL, assign_splits
from lamm.data.store import Store

MAX_HELD_OUT = 3000
"""Held-out structures whose ids are compared with those of training structures."""
_PER_SYSTEM = 20
_LEAST_ATOMS = 3
"""Two atoms in one order are no sign of a common trajectory."""
_FRAME = re.compile(r"[^0-9A-Za-z]*(?:frame|conf|step|snapshot|f)?[^0-9A-Za-z]*\d+$", re.IGNORECASE)
_NAMES = {TRAIN: "training", VAL: "validation", TEST: "test"}


class SplitElements:
    """Collects which elements each split has, block after block."""

    def __init__(self, store: Store, val_fraction: float, test_fraction: float) -> None:
        index = store.index
        self.split = assign_splits(index.id_hash, index.split, val_fraction, test_fraction)
        self.by_source = bool((index.split != NONE).any())
        self.present = np.zeros((4, NUM_ELEMENTS), dtype=bool)

    def look(self, block: Block) -> None:
        """Take a block in."""
        codes = self.split[block.rows][block.owner]
        self.present[codes, block.numbers] = True


def split_findings(survey: Survey, elements: SplitElements) -> Iterator[Finding]:
    """What the splits of one store lack or share."""
    counts = np.bincount(elements.split, minlength=4)
    if not counts[TRAIN] or not counts[VAL]:
        code = TRAIN if not counts[TRAIN] else VAL
        yield Finding(
            check="splits.empty",
            severity=Severity.error if code == TRAIN else Severity.note,
            store=survey.name,
            title=f"no structure is for {_NAMES[code]}",
            meaning="Nothing is learnt from this store."
            if code == TRAIN
            else "No error can be given for this store during training.",
            advice="`keys: {split: none}` in the card ignores the source's splits; a larger "
            "`val_fraction` takes more for validation.",
        )
    yield from _new_elements(survey, elements)
    yield from _shared_systems(survey, elements)


def _new_elements(survey: Survey, elements: SplitElements) -> Iterator[Finding]:
    for code in (VAL, TEST):
        new = elements.present[code] & ~elements.present[TRAIN]
        if not new.any() or not elements.present[TRAIN].any():
            continue
        rows = Rows()
        for block in read_blocks(survey.store):
            has = block.sum(new[block.numbers].astype(np.int64)) > 0
            rows.add(block.rows[has & (elements.split[block.rows] == code)])
        symbols = ", ".join(element_symbols(np.flatnonzero(new)))
        chance = not elements.by_source
        yield Finding(
            check="splits.elements",
            severity=Severity.note if chance else Severity.warning,
            store=survey.name,
            title=f"{rows.count:,} {_NAMES[code]} structures have elements that training lacks: "
            f"{symbols}",
            meaning="Their reference energies are unknown, and so are the elements to the model"
            + ("; the hash of the ids fell that way." if chance else "."),
            advice="Leave them out of the error, or move structures with them into training.",
            count=rows.count,
            ids=rows.ids(survey.store),
        )


def _shared_systems(survey: Survey, elements: SplitElements) -> Iterator[Finding]:
    """Held-out structures of a trajectory that training has other frames of."""
    store, kept = survey.store, survey.kept
    split = elements.split[kept.row]
    large = store.index.num_atoms[kept.row] >= _LEAST_ATOMS
    held = np.flatnonzero(((split == VAL) | (split == TEST)) & large)
    train = np.flatnonzero((split == TRAIN) & large)
    if not len(held) or not len(train):
        return
    train = train[np.argsort(kept.order[train], kind="stable")]
    words = kept.order[train]
    looked = held[:: max(1, -(-len(held) // MAX_HELD_OUT))]
    rows = Rows()
    for place in looked:
        begin, end = (int(np.searchsorted(words, kept.order[place], s)) for s in ("left", "right"))
        if begin == end:
            continue
        some = np.linspace(begin, end - 1, min(_PER_SYSTEM, end - begin)).astype(np.int64)
        own = system_of(store, int(kept.row[place]))
        if any(system_of(store, int(kept.row[train[other]])) == own for other in some):
            rows.add([int(kept.row[place])])
    if not rows.count:
        return
    share = rows.count / len(looked)
    chance = not elements.by_source
    yield Finding(
        check="splits.systems",
        severity=Severity.note if chance else Severity.warning,
        store=survey.name,
        title=f"{100 * share:.0f} % of the held-out structures are frames of a system that is "
        "trained on too (same atoms in the same order, same name but for the number)",
        meaning="Their errors say how well frames are interpolated, not how new systems fare"
        + ("; the split is by the hash of the id, not by system." if chance else "."),
        advice="Split by system at the source and name the key under `keys.split`, if new systems "
        "are what counts.",
        count=rows.count,
        ids=rows.ids(store),
        numbers={"share": share},
    )


def system_of(store: Store, row: int) -> str:
    """The id of a structure without the number of the frame."""
    return _FRAME.sub("", store[row].id)


def leak_findings(
    surveys: Sequence[Survey],
    elements: Sequence[SplitElements],
    copies: Copies,
) -> Iterator[Finding]:
    """Copies of a training structure among the held-out ones of the same store."""
    starts = np.cumsum([0, *(len(survey.store) for survey in surveys)])
    for number, (survey, of_store) in enumerate(zip(surveys, elements, strict=True)):
        begin, end = int(starts[number]), int(starts[number + 1])
        inside = (copies.first >= begin) & (copies.second < end)
        places = np.column_stack((copies.first, copies.second))[inside] - begin
        codes = of_store.split[places] if len(places) else np.zeros((0, 2), dtype=np.uint8)
        leaks: NDArray[np.int64] = places[(codes == TRAIN).sum(axis=1) == 1]
        if not len(leaks):
            continue
        rows = Rows()
        rows.add(leaks.reshape(-1))
        yield Finding(
            check="splits.copies",
            severity=Severity.error,
            store=survey.name,
            title=f"{len(leaks):,} held-out structures are copies of training structures",
            meaning="Their errors are those of training.",
            advice="Remove one of each pair (ids are listed pair by pair), or put both into one "
            "split.",
            count=len(leaks),
            ids=rows.ids(survey.store),
        )
