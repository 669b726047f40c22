"""The user's structures as stores: any file that `lamm evaluate` reads, and what it doesn't use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lamm.data.cards import CardHeader
from lamm.data.doctor import Finding, Severity
from lamm.data.ingest import ingest, merged_header
from lamm.data.readers.common import KeysFound
from lamm.data.readers.extxyz import SUFFIXES, USUAL_KEYS, extxyz_records
from lamm.data.readers.extxyz_record import Frame
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError

CARD_TAIL = (
    "A card is a YAML file that says what is known of the data, such as units and keys. "
    "--card FILE names one for the files of --data, --val and --test."
)
_NO_LABELS = {"Lattice", "pbc", "numbers", "positions", "symbols", "cell", "id", "unique_id"}
_NEUTRAL = {"charge": 0, "total_charge": 0, "spin": 0, "multiplicity": 1, "spin_multiplicity": 1}
"""What a whole structure has, and the value that says nothing of it."""
IGNORED_INPUT = "labels.ignored"
"""The check that finds such values."""
_EXTXYZ = ("xyz", "extxyz")


class Source(NamedTuple):
    """Structures that the user named."""

    path: Path
    """As it was named."""
    store: Store
    """There, or made of the file there."""

    @property
    def is_file(self) -> bool:
        """Whether there is a file that can be looked at again."""
        return self.path.is_file()


def open_source(path: Path, folder: Path, card: CardHeader | None = None) -> Source:
    """The store at a path, or one made in `folder` of the file there.

    Args:
        path: store, extended XYZ, or a file of another format that ASE reads.
        folder: where the store of a file goes.
        card: what the user knows of a file; stores have their own.

    Raises:
        ConfigError: there is nothing.
        DataError: the file can't be used.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file or store.")
    if path.is_dir():
        return Source(path, Store.open(path))
    header = merged_header(
        {"name": plain_name(path.stem), "task": "S2EF-Total"}, card or CardHeader()
    )
    try:
        ingest(format_of(path), [path], folder, header)
    except DataError as error:
        text = str(error).replace(str(folder), str(path))
        if "card" in text:
            text += f"\n  {CARD_TAIL}"
        raise type(error)(text) from error
    return Source(path, Store.open(folder))


def format_of(path: Path) -> str:
    """The format that reads a file: extended XYZ's own, by name or content, or that of ASE."""
    from ase.io.formats import UnknownFileTypeError, filetype

    if path.name.lower().endswith(SUFFIXES):
        return "extxyz"
    try:
        return "extxyz" if filetype(str(path.absolute())) in _EXTXYZ else "ase"
    except (UnknownFileTypeError, OSError):
        return "ase"  # whose reader says what is wrong


def plain_name(name: str) -> str:
    """A name that can be a key: without dots."""
    return name.replace(".", "_") or "data"


def check_labels(source: Source) -> list[Finding]:
    """What is trained on and what isn't: labels under other names, charges and spins.

    Raises:
        DataError: no structure has an energy or forces.
    """
    if source.store.card.task == "denoising":
        return []  # as its card says
    return [*_missing_label(source), *_ignored(source)]


def _missing_label(source: Source) -> Iterator[Finding]:
    """One of energy and forces that no structure has, unless the card left it out."""
    card = source.store.card
    missing = [name for name in ("energy", "forces") if not card.label_counts.get(name)]
    unused = unused_numbers(source)
    listed = ", ".join(f"'{key}'" for key in unused)
    if len(missing) == 2:
        usual = "; ".join(f"{name}: {', '.join(USUAL_KEYS[name])}" for name in missing)
        raise DataError(
            f"{source.path}: none of {len(source.store)} structures has an energy or forces under "
            f"a usual name ({usual}).\n"
            + (
                f"  Numbers under other names: {listed}.\n  Name the right ones in a card, such as "
                f"`keys: {{energy: {unused[0]}}}`. {CARD_TAIL}"
                if unused
                else "  There are no other numbers. Name a file with labels; structures without "
                "any can be denoised beside it by --unlabelled."
            )
        )
    if not missing or card.labels_chosen:
        return
    (label,) = missing
    advice = "Check that this is meant."
    if unused:
        advice = (
            f"If one of them is the label, name it in a card (--card), as `keys: {{{label}: "
            f"{unused[0]}}}`."
        )
    yield Finding(
        check="labels.missing",
        severity=Severity.warning,
        store=source.path.name,
        title=f"{source.path.name}: no structure has {_WORDS[label]}"
        + (f"; numbers that aren't used: {listed}" if unused else ""),
        meaning="Energies mean nothing then." if label == "energy" else "Forces aren't trained.",
        advice=advice,
    )


_WORDS = {"energy": "an energy", "forces": "forces"}


def unused_numbers(source: Source) -> list[str]:
    """Names of the numbers in the source that are neither labels nor atoms, by its first record."""
    card = source.store.card
    used = _NO_LABELS.union(
        _NEUTRAL, *(re.split(r"[,\s]+", key) for key in card.keys_found.values())
    )
    if source.is_file:
        first = next(_values(source.path), {})
        return [key for key in first if key not in used and _is_number(first[key])]
    return [key for key in card.keys_seen if key not in used]


def _ignored(source: Source) -> Iterator[Finding]:
    """Charge and spin, which the model isn't told."""
    seen = [key for key in _NEUTRAL if key in source.store.card.keys_seen]
    if not seen or not source.is_file:
        return
    found: dict[str, set[float]] = {key: set() for key in seen}
    for values in _values(source.path):
        for key in seen:
            if key in values and np.ndim(values[key]) == 0 and _is_number(values[key]):
                found[key].add(float(values[key]))
    for key, numbers in found.items():
        if not numbers - {_NEUTRAL[key]}:
            continue
        low, high = min(numbers), max(numbers)
        said = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        yield Finding(
            check=IGNORED_INPUT,
            severity=Severity.warning,
            store=source.path.name,
            title=f"{source.path.name}: '{key}' is {said}, and the model isn't told",
            meaning="Structures that differ in it alone are one and the same to the model.",
            advice="Train one model for each value.",
        )


def _values(path: Path) -> Iterator[Mapping[str, Any]]:
    """Everything that each record of a file has, by name."""
    if format_of(path) == "extxyz":
        for record in extxyz_records(path, KeysFound()):
            yield Frame(record.comment, record.rows)
        return
    from ase.io import iread

    from lamm.data.readers.ase_record import record_of_atoms

    for atoms in iread(path, ":"):
        yield record_of_atoms(atoms).values


def _is_number(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "iuf"
