"""Labels that the source has and the store hasn't, records without any, ids, skipped records."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from lamm.data.cards import DatasetCard
from lamm.data.doctor.findings import Finding, Severity, row_ids
from lamm.data.store import Store

_FORCES = re.compile(
    r"(force|gradient|(^|[_.\-])(frc|for|grad|dedx|f)s?$|(pbe0|dft|tot|vdw|mbd)for$)", re.IGNORECASE
)
_STRESS = re.compile(r"(stress|virial)", re.IGNORECASE)
_ENERGY = re.compile(
    r"(energ(y|ies)|^e(pbe|dft|mbd|tot|hf|ccsd|b3lyp)|(^|[_.\-])(u0|etot|e0?)$|^y(_relaxed|_init)?$)",
    re.IGNORECASE,
)
_NO_VALUE = re.compile(
    r"(unit|weight|sigma|uncertaint|error|scale|convention|config|mask|type)", re.I
)
_KINDS = {"forces": _FORCES, "stress": _STRESS, "energy": _ENERGY}


def label_like(key: str) -> str | None:
    """The label that a name in a source could be, or None.

    ``energy``, ``forces`` or ``stress``; names of units, weights and the like are none.
    """
    if _NO_VALUE.search(key):
        return None
    return next((label for label, pattern in _KINDS.items() if pattern.search(key)), None)


def label_findings(name: str, store: Store) -> Iterator[Finding]:
    """What card and index say of labels."""
    yield from _unused(name, store.card)
    yield from _unlabelled(name, store)
    yield from _ids(name, store)
    card = store.card
    if card.num_skipped > 0.01 * (card.num_structures + card.num_skipped):
        first = card.skipped[0].reason.partition("\n")[0] if card.skipped else "unknown"
        yield Finding(
            check="labels.skipped",
            severity=Severity.warning,
            store=name,
            title=f"{card.num_skipped:,} records were skipped when the store was written",
            meaning=f"The first because: {first}",
            advice="`lamm data info` lists the reasons.",
            count=card.num_skipped,
            ids=tuple(one.record for one in card.skipped),
        )


def _unused(name: str, card: DatasetCard) -> Iterator[Finding]:
    """Keys of the source that look like labels and weren't taken."""
    used = {key for found in card.keys_found.values() for key in re.split(r"[,\s]+", found)}
    used |= set(card.keys_found.values())
    unused: dict[str, list[str]] = {}
    for key in card.keys_seen:
        kind = label_like(key) if key not in used else None
        if kind is not None:
            unused.setdefault(kind, []).append(key)
    denoising = card.task == "denoising" or not any(card.label_counts.values())
    is_relaxed = card.task in ("IS2RE", "IS2RE-Total")
    for label, keys in unused.items():
        has = card.label_counts.get(label, 0) > 0  # type: ignore[call-overload]
        on_purpose = card.labels_chosen or (is_relaxed and label != "energy")
        if has or on_purpose:
            severity = Severity.note
        elif label == "stress" or denoising:
            severity = Severity.warning
        else:
            severity = Severity.error
        listed = ", ".join(f"'{key}'" for key in keys[:8])
        if has:
            title = f"the source also has {listed}; {label} is '{card.keys_found.get(label, '?')}'"
            meaning = "Another theory, another convention, or a part of the energy."
            advice = f"Set `keys.{label}` in the card, if another one is meant."
        elif on_purpose:
            title = f"there is no {label} label, and the source has {listed}"
            meaning = "The card leaves it out: it names other labels, or energies after relaxation."
            advice = f"If it is meant to be a label, add '{label}' to `labels` in the card."
        else:
            title = f"there is no {label} label, and the source has {listed}"
            meaning = "A label under an unusual name was left behind, and nothing else says so."
            advice = f"Set `keys: {{{label}: {keys[0]}}}` in the card and ingest again."
        yield Finding(f"labels.unused_{label}", severity, name, title, meaning, advice)


def _unlabelled(name: str, store: Store) -> Iterator[Finding]:
    without = np.flatnonzero(store.index.labels == 0)
    if not len(without) or (len(without) == len(store) and store.card.task == "denoising"):
        return
    yield Finding(
        check="labels.none",
        severity=Severity.warning,
        store=name,
        title=f"{len(without):,} of {len(store):,} structures have no label",
        meaning="Without the denoising task nothing is learnt from them.",
        advice="Name the labels' keys in the card, leave the records out, or denoise the subset.",
        count=len(without),
        ids=row_ids(store, without),
    )


def _ids(name: str, store: Store) -> Iterator[Finding]:
    words = store.index.id_hash
    order = np.argsort(words, kind="stable")
    again = np.sort(order[1:][words[order[1:]] == words[order[:-1]]])
    if len(again):
        yield Finding(
            check="labels.ids",
            severity=Severity.error,
            store=name,
            title=f"{len(again):,} structures have an id that another one has",
            meaning="Splits and noise follow from the id.",
            advice="Name a key under `keys.id` that differs from record to record.",
            count=len(again),
            ids=row_ids(store, again),
        )
