"""Which energy of a record of OC20, OC22 or ODAC23 is the label, and of which convention it is.

Such records may have the energy of the structure (`y`), of the first one (`y_init`) and of the
relaxed one (`y_relaxed`), adsorption energies or total ones, under the same names. A wrong choice
would look like any other number, so what the card doesn't decide is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.readers.torch_pickle import load_file
from lamm.errors import ConfigError, DataError

RELAXED: Final = "y_relaxed"
USUAL_KEYS: Final = {
    "energy": ("y", "energy"),
    "forces": ("force", "forces"),
    "stress": ("stress",),
}
"""What the labels are called where the card names none."""


def check_task(header: CardHeader, references: str | None) -> None:
    """Whether the card asks for labels that belong together.

    Raises:
        ConfigError: they don't.
    """
    keys, task = header.keys, header.task
    if task in ("S2EF", "S2EF-Total") and keys.energy == RELAXED:
        raise ConfigError(
            f"'{RELAXED}' is the energy after relaxation, and the card's task is {task}.\n"
            "  Write `task: IS2RE` (or `IS2RE-Total`), or name another key under `keys.energy`."
        )
    asked = {"forces": keys.forces, "stress": keys.stress}
    for label, key in asked.items():
        if is_relaxed(header) and (key is not None or label in (header.labels or ())):
            raise ConfigError(
                f"the card asks for '{label}' beside the energy after relaxation: those in the "
                "records belong to the first structure.\n"
                f"  Leave '{label}' out of `labels` and `keys`, or write `task: S2EF`."
            )
    if keys.energy == "raw_y" and task in ("S2EF", "IS2RE"):
        raise ConfigError(
            f"'raw_y' is a total energy (ODAC23), and the card's task is {task}.\n"
            f"  Write `task: {task}-Total`, or leave `keys.energy` out for the adsorption energy."
        )
    if references is not None and task is not None and not task.endswith("-Total"):
        raise ConfigError(
            f"`reader.references` makes total energies, and the card's task is {task}.\n"
            f"  Write `task: {task}-Total`, or leave `references` out."
        )


def is_relaxed(header: CardHeader) -> bool:
    """Whether the card asks for energies after relaxation, to which no forces belong."""
    return header.task in ("IS2RE", "IS2RE-Total") or header.keys.energy == RELAXED


def energy_keys(record: Mapping[str, Any], header: CardHeader) -> tuple[str, ...]:
    """Where the energy is looked for, if the card names no key.

    A key in the card goes first, then the task: IS2RE takes `y_relaxed`, S2EF `y` or `energy`.
    Where the card says no task, whichever the record has; a record with both, or with `y_relaxed`
    beside forces, needs one.

    Raises:
        DataError: the record's labels are of another kind than the task, or the task isn't said.
    """
    task = header.task
    if header.keys.energy is not None:
        keys: tuple[str, ...] = (header.keys.energy,)
        _check_convention(record, (), task)
        return keys
    has_relaxed = RELAXED in record
    others = [key for key in USUAL_KEYS["energy"] if key in record]
    forces = [key for key in (*USUAL_KEYS["forces"], header.keys.forces) if key in record]
    if task in ("IS2RE", "IS2RE-Total"):
        if others and not has_relaxed:
            raise DataError(
                f"no '{RELAXED}', which the task {task} is about; the record has '{others[0]}'.\n"
                "  Write `task: S2EF` in the card, or name the energy under `keys.energy`."
            )
        keys = (RELAXED,)
    elif task in ("S2EF", "S2EF-Total"):
        if has_relaxed and not others:
            raise DataError(
                f"no energy of the structure itself, only '{RELAXED}' after relaxation, and the "
                f"card's task is {task}.\n  Write `task: IS2RE` (or `IS2RE-Total`) in the card."
            )
        keys = USUAL_KEYS["energy"]
    elif has_relaxed and (others or forces):
        raise DataError(
            f"'{RELAXED}' is the energy after relaxation, and there is '{[*others, *forces][0]}' "
            "too, which is of the structure itself.\n  Write in the card which is meant: "
            "`task: IS2RE` (or `IS2RE-Total`), `task: S2EF` (or `S2EF-Total`), or `labels: []`."
        )
    else:
        keys = (RELAXED,) if has_relaxed else USUAL_KEYS["energy"]
    _check_convention(record, keys, task)
    return keys


def _check_convention(record: Mapping[str, Any], keys: Sequence[str], task: str | None) -> None:
    """Adsorption and total energies look alike; two sources mark which theirs are."""
    if "raw_y" in record and "y" in keys and task not in ("S2EF", "IS2RE"):
        raise DataError(
            "'y' is an adsorption energy where there is 'raw_y', the total energy (ODAC23).\n"
            "  Write `task: S2EF` in the card for 'y', or `task: S2EF-Total` and "
            "`keys: {energy: raw_y}`."
        )
    if task in ("S2EF", "IS2RE") and _marked(record, "oc22"):
        raise DataError(
            f"'oc22' says that the energy is a total one, and the card's task is {task}.\n"
            f"  Write `task: {task}-Total` in the card."
        )


def _marked(record: Mapping[str, Any], key: str) -> bool:
    return key in record and bool(numbers_of(key, record[key]).any())


def reference_energy(record: Mapping[str, Any], references: Mapping[str, float]) -> float:
    """What the adsorption energy of a record lacks to the total one, in the source's unit."""
    if _marked(record, "oc22"):
        raise DataError(
            "'oc22' says that the energy is a total one already. Leave `reader.references` out."
        )
    sid = text_of(record, "sid")
    name = sid if sid is None or sid in references else f"random{sid}"
    if name is None or name not in references:
        raise DataError(
            f"no reference energy for '{name}' among the {len(references)} of `reader.references`."
        )
    value = numbers_of(f"the reference of {name}", references[name])
    if value.size != 1 or not np.isfinite(value).all():
        raise DataError(f"the reference energy of '{name}' is {value.tolist()}, not one number.")
    return float(value.item())


def reference_energies(path: str) -> Mapping[str, float]:
    """Reference energies by name, read once for all sources.

    Raises:
        DataError: the file can't be read or holds something else.
    """
    return _load_references(path, _stamp(Path(path)))


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells a file that was changed from the one before."""
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None


@lru_cache(maxsize=2)
def _load_references(path: str, stamp: tuple[int, int] | None) -> Mapping[str, float]:
    """Reference energies by name, read once for all sources."""
    table = load_file(path)
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise DataError(
            f"{path}: holds a {type(table).__name__}, expected a dict of reference energies with "
            "names such as 'random123' (`reader.references` in the card)."
        )
    return table


def numbers_of(key: str, value: Any) -> NDArray[Any]:
    """Numbers of a record as an array; a list of them counts, a list of lists doesn't.

    A pickle of a few bytes can hold lists of lists of lists that no memory could hold as an array.
    """
    several = isinstance(value, (list, tuple))
    if all(isinstance(one, (int, float)) for one in (value if several else [value])):
        try:
            value = np.asarray(value, dtype=np.float64)
        except OverflowError:
            raise DataError(f"'{key}' has a number that is too large.") from None
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "biuf":
        raise DataError(f"'{key}' is a {type(value).__name__}, expected a tensor of numbers.")
    return np.asarray(value)


def text_of(record: Mapping[str, Any], key: str) -> str | None:
    """A name or number of a record as text; None where there is none."""
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value
    number = numbers_of(key, value)
    if number.size != 1 or not np.isfinite(number).all() or number.item() % 1:
        raise DataError(f"'{key}' is {number.tolist()}, expected one name or whole number.")
    return str(int(number.item()))
