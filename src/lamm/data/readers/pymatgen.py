"""JSON lists of pymatgen structures with their labels, as of mlearn and the Materials Project.

An entry holds the dictionary of a pymatgen ``Structure`` or ``Molecule`` and, anywhere beside it,
the labels; a dotted key such as ``outputs.energy`` leads to one. pymatgen itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray
from pydantic import Field

from lamm.data.cards import CardHeader
from lamm.data.readers.ase_record import split_of
from lamm.data.readers.common import (
    IGNORED,
    KeysFound,
    SkippedRecord,
    checked,
    element_numbers,
    label_value,
    open_text,
    read_labels,
    reader_options,
    reading,
    wanted_labels,
)
from lamm.errors import DataError
from lamm.schema import Frozen
from lamm.structure import Structure

SUFFIXES: Final = tuple(f".json{compressed}" for compressed in ("", ".xz", ".gz", ".bz2"))
_PLACES = ("", "outputs.", "output.", "data.")
USUAL_KEYS: Final = {
    label: tuple(place + name for place in _PLACES for name in names)
    for label, names in {
        "energy": ("energy", "uncorrected_total_energy"),
        "forces": ("forces", "force"),
        "stress": ("stress",),
    }.items()
}
_SELECTIVE: Final = "selective_dynamics"
"""Property of a site in POSCAR's sense: true along the axes that it may move along."""
_VASP_STRESS = "virial_stress"
"""What mlearn and its like call the six numbers that VASP prints."""
_VASP_TO_VOIGT: Final = (0, 1, 2, 4, 5, 3)
"""Where xx yy zz yz xz xy are in VASP's order, which is xx yy zz xy yz xz."""
_DEPTH = 3
"""Dictionaries within dictionaries that keys are looked for in."""


class PymatgenOptions(Frozen):
    """Options of the format."""

    structure: str = Field(default="structure", min_length=1)
    """Dotted key of the structure's dictionary in an entry."""
    entries: str = ""
    """Dotted key of the entries in the file; the file itself where left out."""
    stress_order: Literal["voigt", "vasp"] | None = None
    """Order of a stress of six numbers: xx yy zz yz xz xy, or VASP's xx yy zz xy yz xz. Where left
    out, ``virial_stress`` is in VASP's and any other in the first."""


def read_pymatgen(
    path: str | Path,
    header: CardHeader,
    *,
    on_error: Literal["stop", "skip"] = "stop",
    name: str | None = None,
    found: KeysFound | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Structure | SkippedRecord]:
    """Read structures from a JSON file, in eV and Å; see `Reader` in `format.py`.

    The entries are a list, or a dictionary whose keys name them. Stress is read as the card says,
    and looked for under ``stress`` alone: ``virial_stress`` is as VASP prints it, in kbar with the
    sign of a pressure, and wants `units: {stress: kbar, stress_sign: -1}` beside its key.
    """
    path, found = Path(path), found or KeysFound()
    name = name or path.name
    options = reader_options(header, PymatgenOptions)
    records = (
        (f"entry {number}", f"{name}:{number}", (key, entry))
        for number, (key, entry) in islice(enumerate(_entries(path, options)), start, stop)
    )

    def build(record: tuple[str | None, Any], origin: str) -> Structure:
        return _structure(*record, header, options, origin, found)

    yield from checked(path, records, build, on_error)


def _entries(path: Path, options: PymatgenOptions) -> Iterator[tuple[str | None, Any]]:
    """The name, where there is one, and the content of each entry."""
    with reading(path), open_text(path) as file:
        try:
            content = json.load(file)
        except (json.JSONDecodeError, RecursionError) as error:  # too deep, or no JSON at all
            raise DataError(f"{path}: not valid JSON ({error}).") from error
    if options.entries:
        content = at(content, options.entries)
    if isinstance(content, list):
        yield from ((None, entry) for entry in content)
    elif isinstance(content, dict) and at(content, options.structure) is None:
        yield from content.items()
    elif isinstance(content, dict):
        yield None, content
    else:
        raise DataError(
            f"{path}: found {type(content).__name__}, expected a list or dictionary of entries.\n"
            "  Say where they are with `reader: {entries: KEY}` in the card."
        )


def at(entry: Any, dotted: str) -> Any:
    """What a dotted key leads to; None where it leads nowhere."""
    for part in dotted.split("."):
        entry = entry.get(part) if isinstance(entry, Mapping) else None
    return entry


def dotted_keys(entry: Any, depth: int = _DEPTH, prefix: str = "") -> Iterator[str]:
    """Names in an entry, those of dictionaries within it with a dot; not the structure's own."""
    if not isinstance(entry, Mapping) or depth == 0 or "sites" in entry:
        return
    for key, value in entry.items():
        yield prefix + str(key)
        yield from dotted_keys(value, depth - 1, f"{prefix}{key}.")


def _structure(
    key: str | None,
    entry: Any,
    header: CardHeader,
    options: PymatgenOptions,
    origin: str,
    found: KeysFound,
) -> Structure:
    present = list(dotted_keys(entry))
    found.see(present)
    described = at(entry, options.structure)
    if not isinstance(described, Mapping) or "sites" not in described:
        raise DataError(
            f"no structure at '{options.structure}'; the entry has: "
            f"{', '.join(present) or 'nothing'}.\n  Name it with `reader: {{structure: KEY}}`."
        )
    factors = header.units.factors()
    values = _labels(entry, header, options, present, found)
    sites, lattice = described["sites"], described.get("lattice")
    if not isinstance(sites, list) or not all(isinstance(site, dict) for site in sites):
        raise DataError("the structure's 'sites' are no list of dictionaries.")
    matrix = _matrix(lattice)
    return Structure(
        atomic_numbers=element_numbers(_elements(sites)),
        positions=_positions(sites, matrix) * factors["length"],
        cell=matrix * factors["length"],
        pbc=_pbc(lattice),
        energy=values.get("energy"),
        forces=values.get("forces"),
        stress=values.get("stress"),
        fixed=_fixed(sites, header.keys.fixed),
        id=_id(entry, header.keys.id, key) or origin,
        origin=origin,
        split=split_of({name: at(entry, name) for name in present}, header.keys.split),
    )


def _labels(
    entry: Any,
    header: CardHeader,
    options: PymatgenOptions,
    present: list[str],
    found: KeysFound,
) -> dict[str, Any]:
    """The labels that the entry has or must have, in eV and Å."""
    # An empty value is no label.
    filled = [name for name in present if at(entry, name) is not None]

    def value_of(label: str, key: str) -> Any:
        value = label_value(label, key, at(entry, key))
        if label == "stress" and _is_vasp_order(key, at(entry, key), options):
            value = value[list(_VASP_TO_VOIGT)]
        return value

    return read_labels(
        wanted_labels(header), header, found, header.units.factors(), USUAL_KEYS, filled, value_of
    )


def _is_vasp_order(key: str, stress: Any, options: PymatgenOptions) -> bool:
    """Whether a stress is six numbers in VASP's order; nine have an order of their own."""
    if np.size(stress) != len(_VASP_TO_VOIGT):
        return False
    if options.stress_order is None:
        return key.rpartition(".")[2] == _VASP_STRESS
    return options.stress_order == "vasp"


def _elements(sites: list[dict[str, Any]]) -> NDArray[np.int64]:
    """(N,) elements; a site that several species share can't be an atom."""
    numbers = []
    for place, site in enumerate(sites):
        species = site.get("species")
        one = species[0] if isinstance(species, list) and len(species) == 1 else None
        if not isinstance(one, dict) or one.get("occu") != 1:
            raise DataError(f"site {place}: found {species}, expected one fully occupied element.")
        symbol = str(one.get("element"))
        if symbol not in atomic_numbers:
            raise DataError(f"site {place}: unknown element '{symbol}'.")
        numbers.append(atomic_numbers[symbol])
    return np.array(numbers, dtype=np.int64)


def _positions(sites: list[dict[str, Any]], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) Cartesian positions; pymatgen can leave them out beside the fractional ones."""
    is_cartesian = all("xyz" in site for site in sites)
    rows = [site.get("xyz" if is_cartesian else "abc") for site in sites]
    try:
        positions = np.array(rows, dtype=np.float64).reshape(len(sites), 3)
    except (TypeError, ValueError):
        raise DataError("the sites have no positions: neither 'xyz' nor 'abc'.") from None
    return positions if is_cartesian else positions @ matrix


def _fixed(sites: list[dict[str, Any]], key: str | None) -> NDArray[np.bool_] | None:
    """(N,) atoms held along some axis by ``selective_dynamics``, or true in the card's property."""
    if key == IGNORED:
        return None
    values = [at(site, f"properties.{key or _SELECTIVE}") for site in sites]
    if key is not None and any(value is None for value in values):
        raise DataError(f"sites without the property '{key}', which `keys.fixed` names.")
    held: NDArray[np.bool_] = np.array(
        [
            value is not None and bool(value if key is not None else not np.all(value))
            for value in values
        ],
        dtype=bool,
    )
    return held if held.any() else None


def _matrix(lattice: Any) -> NDArray[np.float64]:
    if lattice is None:
        return np.zeros((3, 3))
    try:
        return np.array(lattice["matrix"], dtype=np.float64).reshape(3, 3)
    except (KeyError, TypeError, ValueError):
        raise DataError("the lattice has no 'matrix' of nine numbers.") from None


def _pbc(lattice: Any) -> NDArray[np.bool_]:
    """A molecule has no lattice; a crystal repeats along all of it unless its lattice says less."""
    if lattice is None:
        return np.zeros(3, dtype=bool)
    return np.array(lattice.get("pbc", (True, True, True)), dtype=bool)


def _id(entry: Any, key: str | None, name: str | None) -> str | None:
    if key == IGNORED:
        return None
    if key is None:
        return name
    value = at(entry, key)
    if value is None:
        raise DataError(f"no '{key}', which the card names under `keys.id`.")
    return str(value)
