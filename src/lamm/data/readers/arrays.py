"""Groups of arrays to structures, by a layout and a card: what HDF5 and npz have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from lamm.data.cards import CardHeader
from lamm.data.readers.blocks import (
    LABELS,
    Array,
    Block,
    Shape,
    as_cells,
    as_floats,
    as_numbers,
    as_texts,
    shape_of,
    take,
)
from lamm.data.readers.common import IGNORED, KeysFound, SkippedRecord, checked, choose_key
from lamm.data.readers.format import OnError
from lamm.data.readers.layouts import Layout, check_unit
from lamm.errors import DataError
from lamm.structure import Structure

BLOCK_ATOMS: Final = 2**18
"""Atoms that are read at once: 12 MB of positions and forces in float64."""
QUANTITIES: Final = ("atomic_numbers", "positions", *LABELS, "cell", "pbc", "fixed", "id", "split")
_GROUPS_SEEN: Final = 3
"""Groups of a file that are listed, to tell what else there is."""


class ArrayGroup(Protocol):
    """Arrays by name: a group of an HDF5 file, an npz file."""

    title: str
    """What messages call it."""

    def names(self) -> list[str]:
        """Names of the arrays in it."""
        ...

    def array(self, name: str) -> Array:
        """An array, from which nothing is read yet.

        Raises:
            KeyError: there is none of that name.
        """
        ...

    def unit(self, name: str) -> str | None:
        """The unit that the source itself says an array has."""
        ...


class Naming(NamedTuple):
    """What the structures of a group are called, where each has no name of its own."""

    id: str
    origin: str
    separator: str = "/"


class ArrayReader:
    """Makes structures of groups of arrays; one for each file.

    Args:
        path: the file, for messages.
        layout: what the arrays are called.
        header: promised labels, units, names of keys.
        on_error: whether a structure that can't be used stops reading.
        found: is told what the labels are called, and what the first groups have.
    """

    def __init__(
        self, path: Path, layout: Layout, header: CardHeader, on_error: OnError, found: KeysFound
    ) -> None:
        self.path = path
        self.layout = layout
        self.header = header
        self.on_error = on_error
        self.found = found
        self.factors = header.units.factors()
        self.candidates: dict[str, tuple[str, ...]] = {}
        self.promised: set[str] = set()
        for quantity in QUANTITIES:
            names, promised = _candidates(quantity, layout, header)
            self.candidates[quantity] = names
            if promised and names:
                self.promised.add(quantity)
        wanted = {quantity: names for quantity, names in self.candidates.items() if names}
        self._is_settled = self.promised == set(wanted) and all(
            len(names) == 1 for names in wanted.values()
        )
        """With one name for each quantity nothing has to be chosen, and no group to be listed."""
        self._listed = 0

    def size(self, group: ArrayGroup) -> int:
        """How many structures a group has; one that can't be made sense of is one bad record."""
        try:
            return _shape(self._open(group, ("atomic_numbers", "positions"))).structures
        except DataError:
            return 1

    def structures(
        self,
        group: ArrayGroup,
        naming: Naming,
        split: str | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Structure | SkippedRecord]:
        """The structures of a group from number `start` to before number `stop`.

        Args:
            group: the arrays.
            naming: id and origin of the group.
            split: the split of all of its structures, where that is known.
            start: number of the first structure.
            stop: number of the first that is left out.

        Raises:
            DataError: a structure can't be used (with ``on_error="stop"``).
        """
        try:
            arrays = self._open(group, QUANTITIES)
            shape = _shape(arrays)
            if self.layout.one_per_group and shape.structures != 1:
                raise DataError(
                    f"{shape.structures} structures, and the layout says `one_per_group: true`."
                )
        except DataError as error:
            end = 1 if self.layout.one_per_group else self.size(group)
            rows = range(start, end if stop is None else min(stop, end))
            yield from self._refused(group, naming, rows, end == 1, error)
            return
        stop = shape.structures if stop is None else min(stop, shape.structures)
        size = max(BLOCK_ATOMS // max(shape.atoms, 1), 1)
        for first in range(start - start % size, stop, size):
            rows = range(max(first, start), min(first + size, stop))
            try:
                block = self._block(arrays, shape, rows, split)
            except DataError as error:
                yield from self._refused(group, naming, rows, shape.is_one, error)
            else:
                yield from self._of_block(block, group, naming, rows, shape)

    def _of_block(
        self, block: Block, group: ArrayGroup, naming: Naming, rows: range, shape: Shape
    ) -> Iterator[Structure | SkippedRecord]:
        names = self._names(block, naming, rows, shape)
        if block.is_sound():
            yield from block.structures(names)
            return
        for row, (name, origin) in enumerate(names):
            if absent := self._absent(block, row):
                yield SkippedRecord(origin, absent)
                continue
            where = group.title if shape.is_one else f"{group.title}, structure {rows[row]}"
            build = partial(_build, block, name)
            yield from checked(self.path, [(where, origin, row)], build, self.on_error)

    def _names(
        self, block: Block, naming: Naming, rows: range, shape: Shape
    ) -> Iterator[tuple[str, str]]:
        """Id and origin of each structure of a block."""
        ends = [""] if shape.is_one else [f"{naming.separator}{number}" for number in rows]
        origins = (naming.origin + end for end in ends)
        ids: Iterable[str] = (naming.id + end for end in ends)
        if block.ids is not None:
            is_shared = len(block.ids) == 1 and shape.structures > 1
            ids = (f"{block.ids[0]}/{number}" for number in rows) if is_shared else block.ids
        return zip(ids, origins, strict=True)

    def _absent(self, block: Block, row: int) -> str | None:
        """Why a structure is left out for want of labels that its source marks as absent."""
        if not block.nan_is_absent:
            return None
        has = {
            label: block.label(label, row) is not None
            for label in LABELS
            if getattr(block, label) is not None
        }
        gone = [label for label, present in has.items() if not present]
        if gone and (self.header.labels is not None or len(gone) == len(has)):
            return f"the source has no {' and no '.join(gone)} of it (NaN)"
        return None

    def _refused(
        self, group: ArrayGroup, naming: Naming, rows: range, is_one: bool, error: DataError
    ) -> Iterator[SkippedRecord]:
        """What a fault of a whole group comes to: all of these structures are bad."""
        if self.on_error == "stop":
            raise DataError(f"{self.path}, {group.title}: {error}") from error
        for number in rows:
            end = "" if is_one else f"{naming.separator}{number}"
            yield SkippedRecord(naming.origin + end, str(error))

    def left_out(self, naming: Naming, rows: range, reason: str) -> Iterator[SkippedRecord]:
        """Structures of a group that nobody wants."""
        for number in rows:
            end = "" if self.layout.one_per_group else f"{naming.separator}{number}"
            yield SkippedRecord(naming.origin + end, reason)

    def _open(self, group: ArrayGroup, quantities: tuple[str, ...]) -> dict[str, Array]:
        """The arrays of a group by quantity.

        Raises:
            DataError: one is missing, or could be several.
        """
        is_known = self._listed == _GROUPS_SEEN
        if self._is_settled and is_known:
            try:
                return {
                    quantity: group.array(self.candidates[quantity][0])
                    for quantity in quantities
                    if self.candidates[quantity]
                }
            except KeyError:
                pass  # the names that the group does have say what is wrong
        names = group.names()
        arrays: dict[str, Array] = {}
        for quantity in quantities:
            opened = self._opened(group, quantity, names)
            choice = self._choose(quantity, opened, names)
            if choice is None:
                continue
            arrays[quantity] = opened[choice]
            if not is_known:
                check_unit(quantity, choice, group.unit(choice), self.header)
            if quantity in LABELS:
                self.found.note(quantity, choice)
        if quantities is QUANTITIES and not is_known:
            self._listed += 1
            self.found.see(names)
        return arrays

    def _opened(self, group: ArrayGroup, quantity: str, names: list[str]) -> dict[str, Array]:
        """Arrays of a group that a quantity could be."""
        opened = {}
        for name in self.candidates[quantity]:
            # Arrays elsewhere and attributes are not among the names of the group.
            if name in names or "/" in name or name.startswith("@"):
                with suppress(KeyError):
                    opened[name] = group.array(name)
        return opened

    def _choose(self, quantity: str, opened: dict[str, Array], names: list[str]) -> str | None:
        """One of the arrays that could be a quantity.

        Raises:
            DataError: there are several, or none where there should be one.
        """
        wanted, promised = self.candidates[quantity], quantity in self.promised
        if quantity in LABELS:
            named = wanted[0] if len(wanted) == 1 else None
            present = {*opened, *names}
            return choose_key(quantity, named, wanted, present, promised) if wanted else None
        if len(opened) > 1:
            listed = "', '".join(opened)
            raise DataError(
                f"'{listed}' could all be the {quantity}.\n  Say which it is in the card: "
                f"`reader: {{layout: {{{quantity}: {next(iter(opened))}}}}}`."
            )
        if not opened and promised:
            listed = "', '".join(wanted)
            raise DataError(
                f"no '{listed}', expected the {quantity.replace('_', ' ')}; the group has: "
                f"{', '.join(sorted(names)) or 'no arrays'}.\n  Name the right array in the card: "
                f"`reader: {{layout: {{{quantity}: NAME}}}}`."
            )
        return next(iter(opened), None)

    def _block(
        self, arrays: dict[str, Array], shape: Shape, rows: range, split: str | None
    ) -> Block:
        """Read the arrays of some structures, in our units.

        Raises:
            DataError: an array doesn't fit the others, or isn't of numbers.
        """
        places = slice(rows.start, rows.stop)
        values = {key: take(key, array, shape, places) for key, array in arrays.items()}
        floats: dict[str, Any] = {
            key: as_floats(key, values[key], self.factors["length" if key == "positions" else key])
            for key in ("positions", *LABELS)
            if key in values
        }
        vectors = (len(rows), shape.atoms, 3)
        if "forces" in floats:
            floats["forces"] = floats["forces"].reshape(vectors)
        if "energy" in floats:
            floats["energy"] = floats["energy"].reshape(-1)
        floats["positions"] = floats["positions"].reshape(vectors)
        numbers = values["atomic_numbers"].reshape(-1, shape.atoms)
        return Block(
            numbers=as_numbers(numbers, self.layout.elements, self.layout.padding),
            **floats,
            cell=as_cells(values["cell"], self.factors["length"]) if "cell" in values else None,
            pbc=values.get("pbc"),
            fixed=values["fixed"].reshape(-1, shape.atoms) if "fixed" in values else None,
            ids=as_texts(values["id"]) if "id" in values else None,
            splits=as_texts(values["split"]) if "split" in values else None,
            split=split,
            is_padding_marked=bool(self.layout.elements),
            nan_is_absent=self.layout.missing == "nan",
        )


def _candidates(quantity: str, layout: Layout, header: CardHeader) -> tuple[tuple[str, ...], bool]:
    """Names that a quantity may have, and whether every group must have one of them."""
    key: str | None = getattr(header.keys, quantity, None)
    if key == IGNORED and quantity not in LABELS:
        return (), False
    names: tuple[str, ...] = (key,) if key is not None else getattr(layout, quantity)
    if quantity in LABELS and header.labels is not None:
        return (names or (quantity,), True) if quantity in header.labels else ((), False)
    needed = quantity in ("atomic_numbers", "positions")
    return names, needed or key is not None or quantity in layout.model_fields_set


def _shape(arrays: dict[str, Array]) -> Shape:
    return shape_of(tuple(arrays["atomic_numbers"].shape), tuple(arrays["positions"].shape))


def _build(block: Block, name: str, row: int, origin: str) -> Structure:
    return block.structure(row, name, origin)
