"""Table 2: what the subsets of a joint data set are, as numbers and as text.

Numbers come from the stores' cards and indices. A structure is read in one case only: where a limit
on the number of atoms leaves some out, the elements of the others are looked up in the shards.

    overview = stores_overview([Store.open("stores/oc20"), Store.open("stores/qm7x")])
    overview.num_sampled, markdown_table(overview)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from lamm.data.cards import DatasetCard, element_symbols
from lamm.data.columns import Columns, read_batch
from lamm.data.sampling import temperature_sizes
from lamm.data.splits import SPLIT_CODES
from lamm.data.store import Store
from lamm.errors import StoreError
from lamm.structure import MAX_ATOMIC_NUMBER

if TYPE_CHECKING:
    from lamm.data.joint import JointDataset, Subset

LETTERS = {"energy": "E", "forces": "F", "stress": "S", "noise": "N"}
TASKS = {"S2EF-Total": "S2EF-T", "IS2RE-Total": "IS2RE-T", "denoising": "Denoising"}
"""How Table 2 writes the tasks; the others as they are."""
COLUMNS = (
    "Subset",
    "Domain",
    "Task",
    "DFT functional",
    "Periodic",
    "Labels",
    "# avg. atoms",
    "Elements",
    "# samples",
    "# samples w/ TS",
)
NUMERIC = (6, 7, 8, 9)
"""Columns of numbers, which stand to the right."""
_EXACT_BELOW = 10_000
_MARK, _NOT_DFT = "*", "†"


@dataclass(frozen=True)
class SubsetOverview:
    """A row of Table 2."""

    name: str
    domain: str
    task: str
    """As the card spells it; ``denoising`` wherever the subset is trained so."""
    functional: str
    is_dft: bool | None
    periodic: bool | None
    """None where some structures are periodic and some are not."""
    labels: tuple[str, ...]
    """Of energy, forces, stress; noise alone for the denoising task."""
    average_atoms: float
    elements: tuple[str, ...]
    num_structures: int
    """Of all splits, without those that `max_atoms` leaves out; the two above are theirs."""
    num_train: int
    """N_i: structures that an epoch without temperature sampling uses once each."""
    num_sampled: int
    """N_i': uses per epoch with temperature sampling."""
    max_atoms: int | None = None
    """The limit in force, of the store's card or of the configuration."""
    num_left_out: int = 0
    """Structures of the store that the configuration's limit leaves out."""


@dataclass(frozen=True)
class Overview:
    """Table 2."""

    subsets: tuple[SubsetOverview, ...]
    temperature: float

    @property
    def elements(self) -> tuple[str, ...]:
        """Elements of at least one subset, by atomic number."""
        symbols = {symbol for subset in self.subsets for symbol in subset.elements}
        return tuple(sorted(symbols, key=lambda symbol: atomic_numbers[symbol]))

    def total(self, entry: str) -> int:
        """Sum of ``num_structures``, ``num_train`` or ``num_sampled`` over the subsets."""
        return sum(getattr(subset, entry) for subset in self.subsets)


def make_overview(
    subsets: Sequence[SubsetOverview], temperature: float, weights: Sequence[float] | None = None
) -> Overview:
    """The table of subsets whose `num_sampled` is still to be found (Sec. 3.1).

    Args:
        subsets: rows; what they have as `num_sampled` is ignored.
        temperature: T of the temperature sampling.
        weights: factor on the uses of each subset; 1 where left out.
    """
    sizes = [subset.num_train for subset in subsets]
    sampled = temperature_sizes(sizes, temperature, weights).tolist()
    rows = (replace(one, num_sampled=uses) for one, uses in zip(subsets, sampled, strict=True))
    return Overview(tuple(rows), temperature)


def stores_overview(stores: Sequence[Store], temperature: float = 2.0) -> Overview:
    """Table 2 of whole stores, from their cards, with the splits that the cards count."""
    return make_overview([_store_row(store.card) for store in stores], temperature)


def joint_overview(joint: JointDataset, temperature: float | None = None) -> Overview:
    """Table 2 of a joint data set: with its splits, limits, labels and noise.

    Args:
        joint: the subsets.
        temperature: T of the temperature sampling; the configuration's where left out.

    Raises:
        StoreError: a shard that has to be read is missing or damaged.
    """
    chosen = joint.config.sampling.temperature if temperature is None else temperature
    limits = [joint.config.subsets[name].max_atoms for name in joint.names]
    rows = [_subset_row(subset, limit) for subset, limit in zip(joint.subsets, limits, strict=True)]
    return make_overview(rows, chosen, joint.sampling_weights)


def _store_row(card: DatasetCard) -> SubsetOverview:
    return SubsetOverview(
        name=card.name,
        domain=card.domain,
        task=card.task,
        functional=card.functional,
        is_dft=card.is_dft,
        periodic=card.periodic,
        labels=("noise",) if card.task == "denoising" else tuple(card.labels),
        average_atoms=card.num_atoms.mean,
        elements=card.elements,
        num_structures=card.num_structures,
        num_train=card.num_train,
        num_sampled=0,
        max_atoms=card.max_atoms,
    )


def _subset_row(subset: Subset, limit: int | None) -> SubsetOverview:
    card = subset.store.card
    used = (("energy", subset.has_energy), ("forces", subset.has_forces))
    labels = tuple(label for label, having in used if having.any())
    kept = kept_rows(subset)
    limits = [one for one in (card.max_atoms, limit) if one is not None]
    return replace(
        _store_row(card),
        name=subset.name,
        task="denoising" if subset.denoising else card.task,
        labels=("noise",) if subset.denoising else labels,
        average_atoms=float(subset.store.index.num_atoms[kept].mean()),
        elements=subset_elements(subset),
        num_structures=int(np.count_nonzero(kept)),
        num_train=_count_train(subset),
        max_atoms=min(limits, default=None),
        num_left_out=int(np.count_nonzero(~kept)),
    )


def _count_train(subset: Subset) -> int:
    """How many rows `Subset.rows` would list, without listing a hundred million."""
    count = int(np.count_nonzero(subset.split == SPLIT_CODES["train"]))
    limit = subset.limits["train"]
    return count if limit is None else min(count, limit)


def kept_rows(subset: Subset) -> NDArray[np.bool_]:
    """(S,) which structures of the store a subset's limit on the number of atoms keeps."""
    kept: NDArray[np.bool_] = subset.split > 0
    return kept


def subset_sizes(subset: Subset) -> NDArray[np.int32]:
    """Numbers of atoms of the structures that a subset keeps, of all splits (Fig. 4)."""
    return subset.store.index.num_atoms[kept_rows(subset)]


def subset_elements(subset: Subset) -> tuple[str, ...]:
    """Chemical symbols of the structures that a subset keeps, of all splits (Fig. 2).

    They are the card's, unless a limit leaves structures out: then the shards are read until every
    element of the card was met.

    Raises:
        StoreError: a shard that has to be read is missing or damaged.
    """
    store, kept = subset.store, kept_rows(subset)
    if kept.all():
        return store.card.elements
    index, met = store.index, np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=bool)
    for number, record in enumerate(store.card.shards):
        inside = index.shard == number
        chosen = np.zeros(record.rows, dtype=bool)
        chosen[index.row[inside & kept]] = True
        try:
            columns = Columns(read_batch(store.path / record.name))
        except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
            raise StoreError(
                f"{store.path / record.name}: can't be read ({error}).\n"
                "  Copy the store again, or ingest its source again."
            ) from error
        met[columns.atomic_numbers[np.repeat(chosen, columns.num_atoms)]] = True
        if np.count_nonzero(met) == len(store.card.elements):
            break
    return element_symbols(np.flatnonzero(met))


# ---- as text -----------------------------------------------------------------------------------


def short_count(count: int) -> str:
    """A number as Table 2 has it, 134M or 8.2M or 460k; whole below ten thousand."""
    if count < _EXACT_BELOW:
        return f"{count:,}"
    size, units = float(count), iter("kMGT")
    unit = ""
    while size >= 999.5:
        size, unit = size / 1000, next(units)
    return f"{size:.1f}{unit}" if size < 9.95 else f"{size:.0f}{unit}"


def table_cells(overview: Overview) -> list[tuple[str, ...]]:
    """The cells of Table 2 as the paper writes them, a row per subset; several have a total."""
    cells = [_row_cells(subset) for subset in overview.subsets]
    if len(cells) > 1:
        counts = (short_count(overview.total(entry)) for entry in ("num_train", "num_sampled"))
        cells.append(("Total", *[""] * 6, str(len(overview.elements)), *counts))
    return cells


def _row_cells(subset: SubsetOverview) -> tuple[str, ...]:
    functional = subset.functional.split(",")[0].strip()
    if not functional:
        functional = "N/A" if "noise" in subset.labels else "–"
    return (
        subset.name + (_MARK if subset.max_atoms is not None else ""),
        subset.domain or "–",
        TASKS.get(subset.task, subset.task),
        functional + (_NOT_DFT if _is_not_dft(subset) else ""),
        {True: "✓", False: "✗", None: "mixed"}[subset.periodic],
        ", ".join(LETTERS[label] for label in subset.labels) or "–",
        f"{subset.average_atoms:.{0 if subset.average_atoms >= 9.95 else 1}f}",
        str(len(subset.elements)),
        short_count(subset.num_train),
        short_count(subset.num_sampled),
    )


def _is_not_dft(subset: SubsetOverview) -> bool:
    """Whether labels are used that are known to be no DFT; noise is a label of its own."""
    return subset.is_dft is False and "noise" not in subset.labels


def table_notes(overview: Overview) -> list[str]:
    """What stands below Table 2: its letters, and what its marks mean."""
    used = {label for subset in overview.subsets for label in subset.labels}
    letters = ", ".join(
        f"{letter}: {'pseudo-forces' if label == 'noise' else label}"
        for label, letter in LETTERS.items()
        if label in used
    )
    tasks = {subset.task for subset in overview.subsets}
    totals = "".join(f" {TASKS[t]}: {t}." for t in TASKS if t in tasks and t.endswith("Total"))
    notes = [
        (f"Labels: {letters}." if letters else "No labels.") + totals,
        "Samples: training structures. TS: temperature sampling with "
        f"T = {overview.temperature:g}.",
    ]
    limits: dict[int, list[str]] = {}
    for subset in overview.subsets:
        if subset.max_atoms is not None:
            limits.setdefault(subset.max_atoms, []).append(subset.name)
    notes += [
        f"{_MARK} Structures of more than {limit:,} atoms are excluded from {_listed(names)}."
        for limit, names in sorted(limits.items())
    ]
    if any(_is_not_dft(subset) for subset in overview.subsets):
        notes.append(f"{_NOT_DFT} The labels are not DFT; the store's card says what they are.")
    return notes


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def markdown_table(overview: Overview) -> str:
    """Table 2 in Markdown, its notes below."""
    head = [name.replace("#", r"\#") for name in COLUMNS]
    rule = ["---:" if number in NUMERIC else "---" for number in range(len(COLUMNS))]
    rows = [[_markdown(cell) for cell in row] for row in table_cells(overview)]
    if len(rows) > 1:
        rows[-1] = [f"**{cell}**" if cell else "" for cell in rows[-1]]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    return "\n".join([*lines, "", *(f"{_markdown(note)}  " for note in table_notes(overview)), ""])


def _markdown(text: str) -> str:
    for letter in "\\|*_#<":
        text = text.replace(letter, f"\\{letter}")
    return text


# ---- as numbers --------------------------------------------------------------------------------


def table_rows(overview: Overview) -> list[dict[str, Any]]:
    """Table 2 for a CSV file: exact numbers, a row per subset and the total."""
    rows: list[dict[str, Any]] = []
    for subset in overview.subsets:
        row = asdict(subset)
        row["labels"] = " ".join(subset.labels)
        row["num_elements"] = len(subset.elements)
        row["elements"] = " ".join(subset.elements)
        rows.append(row)
    total: Mapping[str, Any] = {
        **dict.fromkeys(rows[0]),
        "name": "Total",
        "num_elements": len(overview.elements),
        "elements": " ".join(overview.elements),
        **{e: overview.total(e) for e in ("num_structures", "num_train", "num_sampled")},
        "num_left_out": overview.total("num_left_out"),
    }
    return [*rows, dict(total)]


def table_json(overview: Overview) -> dict[str, Any]:
    """Table 2 for a JSON file: exact numbers, the total, and the notes."""
    return {
        "temperature": overview.temperature,
        "subsets": [{**asdict(one), "num_elements": len(one.elements)} for one in overview.subsets],
        "total": {
            "num_elements": len(overview.elements),
            "elements": list(overview.elements),
            **{e: overview.total(e) for e in ("num_structures", "num_train", "num_sampled")},
        },
        "notes": table_notes(overview),
    }
