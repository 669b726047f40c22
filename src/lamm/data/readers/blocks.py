"""A block of structures of equal size, as arrays: shapes, units, checks, and then structures.

What HDF5 and npz files have is an array for many structures. Reading and checking one structure
after the other would cost more than all the rest of an ingestion's work on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from ase.data import atomic_numbers as NUMBERS
from ase.data import chemical_symbols as SYMBOLS
from numpy.typing import NDArray

from lamm.data.readers.common import element_numbers, label_value
from lamm.data.splits import split_named
from lamm.errors import DataError, nearest_names
from lamm.structure import MAX_ATOMIC_NUMBER, Structure

Array: TypeAlias = Any
"""What has `shape`, `dtype` and slices: a dataset of h5py, an array of numpy."""

LABELS: Final = ("energy", "forces", "stress")
_PER_GROUP: Final = ("atomic_numbers", "cell", "pbc", "fixed", "id", "split")
"""Quantities that the structures of a group may share."""
_NO_CELL, _NO_PBC = np.zeros((3, 3)), np.zeros(3, dtype=bool)
_NO_CELL.flags.writeable = _NO_PBC.flags.writeable = False
_ALL: Any = slice(None)


class Shape(NamedTuple):
    """How many structures a group has, and of what size."""

    structures: int
    atoms: int
    """With padding."""
    is_one: bool
    """Whether the arrays are those of one structure, without a leading dimension."""


def shape_of(numbers: tuple[int, ...], positions: tuple[int, ...]) -> Shape:
    """How many structures there are, by the shapes of atomic numbers and positions.

    Raises:
        DataError: they don't fit together.
    """
    if len(numbers) == 2 and numbers[1] == 1 and positions[-2:] == (numbers[0], 3):
        numbers = numbers[:1]  # a column
    atoms = numbers[-1] if numbers else 1
    if len(numbers) <= 2:
        if positions in ((atoms, 3), (3 * atoms,)) and len(numbers) < 2:
            return Shape(1, atoms, is_one=True)
        if positions[1:] in ((atoms, 3), (3 * atoms,)) and (
            len(numbers) < 2 or numbers[0] == positions[0]
        ):
            return Shape(positions[0], atoms, is_one=False)
    raise DataError(
        f"atomic numbers of shape {numbers} and positions of shape {positions} don't fit together; "
        "expected (N,) or (S, N), and (N, 3) or (S, N, 3), for S structures of N atoms."
    )


def take(quantity: str, array: Array, shape: Shape, rows: slice) -> NDArray[Any]:
    """Read a quantity of some structures: (n, ...), or (1, ...) where all share it.

    Raises:
        DataError: the shape isn't one that the quantity can have.
    """
    one = _shapes_of_one(quantity, shape.atoms)
    found = tuple(array.shape)
    if found in one and (shape.is_one or quantity in _PER_GROUP):
        return np.asarray(array[()])[None]  # h5py: all of it
    if found[:1] == (shape.structures,) and found[1:] in one:
        return np.asarray(array[rows])
    count = "" if shape.is_one else f"{shape.structures} structures of "
    expected = " or ".join(
        str(form) for form in (one if shape.is_one else [(shape.structures, *form) for form in one])
    )
    raise DataError(
        f"the {quantity.replace('_', ' ')} array has shape {found}, expected {expected} for "
        f"{count}{shape.atoms} atoms."
    )


def _shapes_of_one(quantity: str, atoms: int) -> tuple[tuple[int, ...], ...]:
    """The shapes that the quantity of one structure may have."""
    if quantity in ("positions", "forces"):
        return ((atoms, 3), (3 * atoms,))
    if quantity in ("atomic_numbers", "fixed"):
        return ((atoms,), (atoms, 1), ()) if atoms == 1 else ((atoms,), (atoms, 1))
    if quantity == "stress":
        return ((3, 3), (9,), (6,))
    if quantity == "cell":
        return ((3, 3), (9,), (3,))
    return ((3,), (), (1,)) if quantity == "pbc" else ((), (1,))


def as_floats(quantity: str, values: NDArray[Any], factor: float) -> NDArray[np.floating[Any]]:
    """Numbers in our unit; float32 stays float32, and what is no float becomes float64.

    Raises:
        DataError: not numbers.
    """
    if values.dtype.kind not in "fiu":
        raise DataError(f"the {quantity} array is of {values.dtype}, expected numbers.")
    precise = values.dtype.kind != "f" or values.dtype.itemsize == 8 or quantity == "energy"
    floats: NDArray[np.floating[Any]] = values.astype(
        np.float64 if precise else np.float32, copy=False
    )
    return floats if factor == 1.0 else np.multiply(floats, factor, dtype=floats.dtype)


def as_numbers(values: NDArray[Any], elements: tuple[str, ...], padding: int) -> NDArray[Any]:
    """Atomic numbers, 0 for padding: uint8 where all are elements, else as they were found.

    Args:
        values: numbers, or symbols.
        elements: symbols that the values count through; empty where they are atomic numbers.
        padding: what stands for an atom that only fills up.

    Raises:
        DataError: a symbol or an index of none.
    """
    if values.dtype.kind in "SUO":
        names, inverse = np.unique(values.astype("U"), return_inverse=True)
        numbers = [_number_of(name.strip()) for name in names.tolist()]
        return np.array(numbers, dtype=np.uint8)[inverse].reshape(values.shape)
    if values.dtype.kind not in "fiu":
        raise DataError(f"the atomic numbers are of {values.dtype}, expected numbers or symbols.")
    if elements:
        if values.size and (values.max() >= len(elements) or (values % 1).any()):
            raise DataError(
                f"element number {values.max()}, but the layout's `elements` has "
                f"{len(elements)}: {', '.join(elements)} (counted from 0)."
            )
        table = np.array([*(_number_of(symbol) for symbol in elements), 0], dtype=np.uint8)
        return table[np.where(values < 0, len(elements), values).astype(np.int64)]
    if padding != 0:
        values = np.where(values == padding, 0, values)
    known = (values >= 0) & (values <= MAX_ATOMIC_NUMBER) & (values % 1 == 0)
    return values.astype(np.uint8, copy=False) if known.all() else values


def _number_of(symbol: str) -> int:
    """The atomic number of a symbol; 0 for none, which is padding."""
    if not symbol:
        return 0
    if symbol not in NUMBERS or NUMBERS[symbol] == 0:
        raise DataError(f"unknown element '{symbol}'. {nearest_names(symbol, SYMBOLS[1:])}")
    return int(NUMBERS[symbol])


def as_cells(values: NDArray[Any], factor: float) -> NDArray[np.float64]:
    """(n, 3, 3) lattice vectors in Å of matrices, flattened ones, or lengths of boxes."""
    cells = as_floats("cell", values, factor).astype(np.float64, copy=False)
    if cells.shape[1:] == (3,):
        return np.asarray(cells[:, :, None] * np.eye(3))
    return cells.reshape(-1, 3, 3)


def as_texts(values: NDArray[Any]) -> list[str]:
    """Names of bytes, text or numbers."""
    flat = values.reshape(len(values), -1)[:, 0].tolist()
    return [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in flat]


@dataclass(frozen=True)
class Block:
    """n structures of up to N atoms in eV and Å; arrays are (n, ...), or (1, ...) where shared."""

    numbers: NDArray[Any]
    """Atomic numbers, by `as_numbers`."""
    positions: NDArray[np.floating[Any]]
    """(n, N, 3)"""
    energy: NDArray[np.floating[Any]] | None = None
    forces: NDArray[np.floating[Any]] | None = None
    stress: NDArray[np.floating[Any]] | None = None
    """Of 6 or 9 components."""
    cell: NDArray[np.float64] | None = None
    pbc: NDArray[Any] | None = None
    """(n, 3) or (n, 1)"""
    fixed: NDArray[Any] | None = None
    ids: list[str] | None = None
    splits: list[str] | None = None
    """As the source spells them."""
    split: str | None = None
    """Of all structures, where there is no array of splits."""
    is_padding_marked: bool = False
    """Whether what is padding is beyond doubt; 0 may also be an index of an element."""
    nan_is_absent: bool = False
    """Whether a label of NaN is one that the source doesn't have."""

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def is_full(self) -> bool:
        """Whether no atom is padding."""
        return bool(self.numbers.all())

    def is_sound(self) -> bool:
        """Whether every structure is known to be right, so that none needs a look of its own."""
        if any(one is not None for one in (self.stress, self.cell, self.fixed, self.splits)):
            return False
        if self.numbers.dtype != np.uint8 or not self.numbers.any(axis=1).all():
            return False
        if not self.is_full and not self._is_padding(slice(None)):
            return False
        arrays = (self.positions, self.energy, self.forces)
        return all(bool(np.isfinite(array).all()) for array in arrays if array is not None)

    def label(self, label: str, row: int) -> Any:
        """A label of a structure, or None where it has none."""
        values = getattr(self, label)
        if values is None or (self.nan_is_absent and bool(np.isnan(values[row]).all())):
            return None
        return values[row]

    def structures(self, names: Iterable[tuple[str, str]]) -> Iterator[Structure]:
        """All structures of a sound block; for millions of them every step counts.

        Args:
            names: id and origin of each.
        """
        if not self.is_full:
            for row, (structure_id, origin) in enumerate(names):
                yield self.structure(row, structure_id, origin)
            return
        n = len(self)
        numbers = np.broadcast_to(self.numbers, (n, self.numbers.shape[1]))
        energies = [None] * n if self.energy is None else self.energy.tolist()
        forces = [None] * n if self.forces is None else self.forces
        rows = zip(numbers, self.positions, energies, forces, names, strict=True)
        for number, positions, energy, force, (structure_id, origin) in rows:
            yield Structure(
                atomic_numbers=number,
                positions=positions,
                cell=_NO_CELL,
                pbc=_NO_PBC,
                energy=energy,
                forces=force,
                id=structure_id,
                origin=origin,
                split=self.split,
            )

    def structure(self, row: int, structure_id: str, origin: str) -> Structure:
        """A structure, of views of the arrays.

        Raises:
            DataError: its atomic numbers, padding, stress, pbc or split can't be made sense of.
        """
        numbers, real = _of(self.numbers, row), _ALL
        if not self.is_full:
            if not self._is_padding(row):
                raise DataError(
                    "an atom of atomic number 0 has a position, so it isn't padding.\n  If these "
                    "are indices of elements, say which: `reader: {layout: {elements: [H, C, "
                    "...]}}` in the card."
                )
            real = numbers != 0
            numbers = numbers[real]
        if numbers.dtype != np.uint8:
            numbers = element_numbers(numbers)
        energy, forces = self.label("energy", row), self.label("forces", row)
        stress = self.label("stress", row)
        fixed = None if self.fixed is None else _of(self.fixed, row).astype(bool)[real]
        cell, pbc = (_NO_CELL, _NO_PBC) if self.cell is None else self._cell_and_pbc(row)
        return Structure(
            atomic_numbers=numbers,
            positions=self.positions[row][real],
            cell=cell,
            pbc=pbc,
            energy=None if energy is None else float(energy),
            forces=None if forces is None else forces[real],
            stress=None if stress is None else label_value("stress", "stress", stress),
            fixed=fixed if fixed is not None and fixed.any() else None,
            id=structure_id,
            origin=origin,
            split=self.split if self.splits is None else _split(_of(self.splits, row)),
        )

    def _cell_and_pbc(self, row: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Lattice vectors, and along which of them the structure repeats."""
        assert self.cell is not None
        cell = _of(self.cell, row)
        if self.pbc is None:
            return cell, np.asarray(cell.any(axis=1))
        return cell, np.broadcast_to(_of(self.pbc, row), 3).astype(bool)

    def _is_padding(self, row: int | slice) -> bool:
        """Whether the atoms without an element all lie at one point, as padding does."""
        if self.is_padding_marked:
            return True
        numbers = np.broadcast_to(self.numbers, self.positions.shape[:2])[row]
        filling = self.positions[row][numbers == 0]
        if not filling.size:
            return True
        return bool((np.isnan(filling) | (filling == filling.flat[0])).all())


def _of(values: Any, row: int) -> Any:
    """The value of a structure, which may be that of all."""
    return values[0] if len(values) == 1 else values[row]


def _split(text: str) -> str | None:
    """A split as the store spells it; None where the source leaves it empty."""
    if not text:
        return None
    advice = "Name another array under `keys.split` in the card, or `none` to ignore it."
    return split_named("the split", text, advice)
