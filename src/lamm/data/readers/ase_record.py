"""What ASE knows of a structure, and how a `Structure` of ours is made of it.

Files and databases of ASE keep labels in several places: results of a calculator, ``info``,
per-atom arrays, key-value pairs, and ``data``. `AseRecord` has all of them under one roof.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    element_numbers,
    label_value,
    read_labels,
    wanted_labels,
)
from lamm.data.readers.extxyz import USUAL_KEYS
from lamm.data.readers.layouts import check_unit
from lamm.data.splits import split_named
from lamm.errors import DataError
from lamm.structure import Structure

if TYPE_CHECKING:
    from ase import Atoms

_HOLDING: Final = ("FixAtoms", "FixCartesian", "FixScaled", "FixedPlane", "FixedLine")
"""Constraints that hold atoms still, along some axis at least; others keep a distance or so."""
_OWN_ARRAYS: Final = ("numbers", "positions")


class AseRecord(NamedTuple):
    """A structure as ASE has it, in the units of the source."""

    numbers: NDArray[Any]
    positions: NDArray[np.float64]
    """(N, 3)"""
    cell: NDArray[np.float64]
    """(3, 3), rows are the lattice vectors."""
    pbc: NDArray[np.bool_]
    """(3,)"""
    held: NDArray[np.bool_] | None
    """(N,) atoms that a constraint holds."""
    values: Mapping[str, Any]
    """Everything else by its name."""
    unique_id: str | None = None
    """Name of a database's row."""


class Metadata(NamedTuple):
    """What a database of SchNetPack says of itself."""

    units: Mapping[str, str]
    """Unit of each quantity; that of lengths under ``positions``."""
    references: Mapping[str, NDArray[np.float64]]
    """Energies by atomic number that were taken off each energy."""


NO_METADATA: Final = Metadata({}, {})


def merged(*places: Mapping[str, Any]) -> dict[str, Any]:
    """All values by name; where two places have one name, the first counts."""
    values: dict[str, Any] = {}
    for place in places:
        for key, value in place.items():
            if value is not None:
                values.setdefault(str(key), value)
    return values


def record_of_atoms(atoms: Atoms, results: Mapping[str, Any] | None = None) -> AseRecord:
    """The record of an `ase.Atoms`; forces are as the calculator gave them, not constrained.

    Args:
        atoms: the atoms.
        results: what a calculator gave; those of the atoms' own where left out.

    Raises:
        DataError: sites are shared or partly empty.
    """
    refuse_disorder(atoms)
    if results is None:
        results = getattr(atoms.calc, "results", {})
    info = dict(atoms.info)
    nested = [info.pop(key) for key in ("key_value_pairs", "data") if _is_mapping(info.get(key))]
    arrays = {key: array for key, array in atoms.arrays.items() if key not in _OWN_ARRAYS}
    return AseRecord(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        held=held(
            [one.todict() for one in atoms.constraints if hasattr(one, "todict")], len(atoms)
        ),
        values=merged(results, info, arrays, *nested),
    )


def refuse_disorder(atoms: Atoms) -> None:
    """Refuse a crystal with sites that are shared or partly empty, as some CIFs have.

    Raises:
        DataError: it has one; ASE would have put its most frequent element there.
    """
    for species in atoms.info.get("occupancy", {}).values():
        if len(species) != 1 or any(abs(share - 1) > 1e-6 for share in species.values()):
            raise DataError(
                f"a site is occupied by {species}, expected one element that is always there.\n"
                "  Such a crystal is an average; make an ordered one of it first."
            )


def held(constraints: Iterable[Mapping[str, Any]], num_atoms: int) -> NDArray[np.bool_] | None:
    """(N,) atoms that constraints hold, which are as ASE writes them; None where there are none.

    Raises:
        DataError: a constraint names atoms that there are not.
    """
    mask = np.zeros(num_atoms, dtype=bool)
    for constraint in constraints:
        if str(constraint.get("name")).rpartition(".")[2] not in _HOLDING:
            continue
        named = constraint.get("kwargs", {})
        indices = named.get("indices", named.get("a"))
        try:
            mask[np.atleast_1d(np.asarray(indices, dtype=np.int64))] = True
        except (IndexError, TypeError, ValueError):
            raise DataError(
                f"constraint {dict(constraint)} does not fit {num_atoms} atoms."
            ) from None
    return mask if mask.any() else None


def ase_structure(
    record: AseRecord,
    header: CardHeader,
    origin: str,
    found: KeysFound,
    factors: Mapping[str, float],
    metadata: Metadata = NO_METADATA,
) -> Structure:
    """The structure of a record, in eV and Å.

    Args:
        record: the atoms and all that is known of them.
        header: labels that are promised, keys, units.
        origin: what it is called where it doesn't say so itself.
        found: is told what it calls the labels.
        factors: those of the card's units.
        metadata: units to compare the card's with, and references to add to the energy.

    Raises:
        DataError: it can't become a structure.
        ConfigError: the card's units are not the source's.
    """
    found.see(record.values)
    values = _labels(record, header, found, factors, metadata)
    if "positions" in metadata.units:
        check_unit("positions", "positions", metadata.units["positions"], header)
    return Structure(
        atomic_numbers=element_numbers(record.numbers),
        positions=record.positions * factors["length"],
        cell=record.cell * factors["length"],
        pbc=record.pbc,
        energy=values.get("energy"),
        forces=values.get("forces"),
        stress=values.get("stress"),
        fixed=_fixed(record, header.keys.fixed),
        id=_id(record, header.keys.id) or origin,
        origin=origin,
        split=split_of(record.values, header.keys.split),
    )


def _labels(
    record: AseRecord,
    header: CardHeader,
    found: KeysFound,
    factors: Mapping[str, float],
    metadata: Metadata,
) -> dict[str, Any]:
    """The labels that the record has or must have, in eV and Å."""

    def value_of(label: str, key: str) -> Any:
        value = label_value(label, key, record.values[key])
        if key in metadata.units:
            check_unit(label, key, metadata.units[key], header)
        if label == "energy" and metadata.references:
            value += _references(record.numbers, key, metadata.references)
        return value

    return read_labels(
        wanted_labels(header), header, found, factors, USUAL_KEYS, record.values, value_of
    )


def _references(
    numbers: NDArray[Any], key: str, references: Mapping[str, NDArray[np.float64]]
) -> float:
    """What the reference energies of all atoms come to, in the unit of the energy."""
    if key not in references:
        raise DataError(
            f"the metadata has no atomrefs of '{key}', but of {', '.join(references)}.\n"
            "  Leave `add_atomrefs` out of `reader` in the card if the energies are totals."
        )
    table = references[key]
    # The list has a zero for elements that it knows nothing of.
    unknown = [int(one) for one in np.unique(numbers) if one >= len(table) or table[one] == 0]
    if unknown:
        raise DataError(f"the metadata has no atomref of '{key}' for element {unknown[0]}.")
    return float(table[numbers].sum())


def _fixed(record: AseRecord, key: str | None) -> NDArray[np.bool_] | None:
    if key is None or key == IGNORED:
        return record.held if key is None else None
    values = np.asarray(_named(record.values, key, "fixed"))
    if values.ndim != 1 or values.dtype.kind not in "bi":
        raise DataError(
            f"'{key}' has shape {values.shape} of {values.dtype}, expected true or false per atom."
        )
    return values.astype(bool) if values.any() else None


def _id(record: AseRecord, key: str | None) -> str | None:
    if key == IGNORED:
        return None
    if key is not None:
        return str(_named(record.values, key, "id"))
    own = record.values.get("id", record.unique_id)
    return None if own is None else str(own)


def split_of(values: Mapping[str, Any], key: str | None) -> str | None:
    """The split that a record says it is of, under the card's key or else under ``split``.

    Raises:
        DataError: it has no such key, or the value is no split.
    """
    if key == IGNORED or (key is None and "split" not in values):
        return None
    wanted = key or "split"
    return split_named(f"'{wanted}'", str(_named(values, wanted, "split")))


def _named(values: Mapping[str, Any], key: str, quantity: str) -> Any:
    if key not in values:
        raise DataError(
            f"no '{key}', which the card names under `keys.{quantity}`; the record has: "
            f"{', '.join(sorted(values)) or 'nothing'}."
        )
    return values[key]


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
