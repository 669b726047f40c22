"""The columns of a store: structures to Arrow arrays and back, without a copy on the way back.

======================  ======================  ==================================================
column                  Arrow type              holds
======================  ======================  ==================================================
``id`` ``origin``       string                  name; file and record that it came from
``atomic_numbers``      list<uint8>             (N,)
``positions``           list<float32 or 64>     (N, 3) flattened, Å
``cell``                fixed list<float64>[9]  (3, 3) flattened, Å, rows are the lattice vectors
``pbc``                 uint8                   bit k: lattice vector k repeats
``energy``              float64, nullable       eV
``forces``              list<float32>, nullable (N, 3) flattened, eV/Å
``stress``              f. l. <float64>[6], n.  eV/Å³, xx yy zz yz xz xy, ASE's sign
``fixed``               list<bool>, nullable    (N,) atoms held still: their forces are no label
``split``               uint8, nullable         1 train, 2 val, 3 test: what the source says
======================  ======================  ==================================================

Beside them the index has, per structure, ``num_atoms``, ``num_edges`` (within the card's cutoff),
``labels`` (bit mask), ``shard``, ``row``, ``split`` (0 none) and ``id_hash``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.splits import SPLIT_CODES, hash_id
from lamm.data.stored import StoredStructure
from lamm.data.views import Lists, Masks, flat_values, matrices, nulls_of
from lamm.errors import DataError
from lamm.structure import SPLITS, Structure

ENERGY, FORCES, STRESS = 1, 2, 4
"""Bits of the label mask. FORCES is set where at least one atom is free to move."""

EdgeCounter: TypeAlias = Callable[[Sequence[Structure]], NDArray[np.int64]]

INDEX_SCHEMA = pa.schema(
    [
        ("num_atoms", pa.int32()),
        ("num_edges", pa.int32()),
        ("labels", pa.uint8()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("split", pa.uint8()),
        ("id_hash", pa.uint64()),
    ]
)
COUNTED = ("num_edges", "labels", "id_hash")
"""Index columns that an encoded batch carries beside the store's."""

_new, _set = object.__new__, object.__setattr__
_PBC_BITS = np.array([1, 2, 4], dtype=np.uint8)
_PBC = [np.array([bool(mask >> k & 1) for k in range(3)]) for mask in range(8)]
for _mask in _PBC:
    _mask.flags.writeable = False


def store_schema(position_dtype: str) -> pa.Schema:
    """Columns of a shard, for positions in ``float32`` or ``float64``."""
    real = pa.float32() if position_dtype == "float32" else pa.float64()
    return pa.schema(
        [
            ("id", pa.string()),
            ("atomic_numbers", pa.list_(pa.uint8())),
            ("positions", pa.list_(real)),
            ("cell", pa.list_(pa.float64(), 9)),
            ("pbc", pa.uint8()),
            ("energy", pa.float64()),
            ("forces", pa.list_(pa.float32())),
            ("stress", pa.list_(pa.float64(), 6)),
            ("fixed", pa.list_(pa.bool_())),
            ("origin", pa.string()),
            ("split", pa.uint8()),
        ]
    )


def position_precision(schema: pa.Schema) -> str:
    """``float32`` or ``float64``: how positions are stored in batches of a schema."""
    return "float32" if schema.field("positions").type.value_type == pa.float32() else "float64"


def edge_counter(header: CardHeader) -> EdgeCounter:
    """What counts the edges of structures as the index of a store has them."""
    from lamm.graph.counting import count_edges_of_many
    from lamm.graph.neighbors import GraphConfig

    config = GraphConfig(cutoff=header.edge_cutoff, max_neighbors=header.edge_max_neighbors)
    return lambda structures: count_edges_of_many(
        [one.positions for one in structures],
        [one.cell for one in structures],
        np.array([one.pbc for one in structures]),
        config,
    )


def accept_precision(dtype: str | None, header: CardHeader, found: str, where: str) -> str:
    """Precision of a store's positions, after one more record.

    Args:
        dtype: precision so far, if there is one.
        header: may say which precision the store has, whatever the source's.
        found: dtype of the record's positions.
        where: the record.

    Returns:
        ``float32`` or ``float64``: that of the header, else that of the first record.

    Raises:
        DataError: the record is more precise than the store, and nobody said that this is meant.
    """
    found = "float32" if found == "float32" else "float64"
    if dtype == "float32" and found == "float64" and header.position_dtype is None:
        raise DataError(
            f"{where}: positions in float64, and in float32 in the records before.\n"
            "  Set `position_dtype` in the card to say which the store has."
        )
    return dtype or found


def label_mask(structure: Structure) -> int:
    """Bits of the labels that a structure has; forces on fixed atoms alone are none."""
    mask = ENERGY if structure.energy is not None else 0
    if structure.forces is not None and (structure.fixed is None or not structure.fixed.all()):
        mask |= FORCES
    return mask | (STRESS if structure.stress is not None else 0)


def encode(
    structures: Sequence[Structure], position_dtype: str, count_edges: EdgeCounter
) -> pa.RecordBatch:
    """Structures as one record batch: the columns of a shard, and those of `COUNTED`.

    Args:
        structures: checked structures, each with an id.
        position_dtype: ``float32`` or ``float64``.
        count_edges: gives `num_edges` of each structure.
    """
    sizes = np.array([one.num_atoms for one in structures], dtype=np.int64)
    schema = store_schema(position_dtype)
    columns: dict[str, Any] = {
        "id": pa.array([one.id for one in structures], pa.string()),
        "atomic_numbers": _lists([one.atomic_numbers for one in structures], sizes, pa.uint8()),
        "positions": _lists(
            [one.positions for one in structures],
            3 * sizes,
            schema.field("positions").type.value_type,
        ),
        "cell": _fixed_lists([one.cell for one in structures], 9),
        "pbc": pa.array(np.array([one.pbc for one in structures]) @ _PBC_BITS),
        "energy": pa.array([one.energy for one in structures], pa.float64()),
        "forces": _lists([one.forces for one in structures], 3 * sizes, pa.float32()),
        "stress": _fixed_lists([one.stress for one in structures], 6),
        "fixed": _lists([one.fixed for one in structures], sizes, pa.bool_()),
        "origin": pa.array([one.origin for one in structures], pa.string()),
        "split": pa.array([SPLIT_CODES.get(one.split or "") for one in structures], pa.uint8()),
        "num_edges": pa.array(count_edges(structures).astype(np.int32)),
        "labels": pa.array([label_mask(one) for one in structures], pa.uint8()),
        "id_hash": pa.array([hash_id(one.id) for one in structures], pa.uint64()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _lists(
    arrays: Sequence[NDArray[Any] | None], sizes: NDArray[np.int64], kind: pa.DataType
) -> pa.ListArray:
    """Arrays of any shape as one list column; None becomes null."""
    absent = np.array([array is None for array in arrays])
    offsets = np.concatenate(([0], np.cumsum(np.where(absent, 0, sizes)))).astype(np.int32)
    flat = [array.reshape(-1) for array in arrays if array is not None]
    dtype = kind.to_pandas_dtype()
    values = np.concatenate(flat).astype(dtype) if flat else np.zeros(0, dtype=dtype)
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()),
        pa.array(values, kind),
        mask=pa.array(absent) if absent.any() else None,
    )


def _fixed_lists(arrays: Sequence[NDArray[Any] | None], size: int) -> pa.FixedSizeListArray:
    """Arrays of `size` numbers each as one column; None becomes null."""
    absent = np.array([array is None for array in arrays])
    values = np.zeros((len(arrays), size))
    for row, array in enumerate(arrays):
        if array is not None:
            values[row] = array.reshape(-1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), size, mask=pa.array(absent) if absent.any() else None
    )


class Columns:
    """A record batch of a store as numpy views, row by row or flat.

    Nothing of the batch is copied, so a mapped shard costs no memory but the pages that are read.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        """Raise `pyarrow.ArrowInvalid` where columns have different numbers of atoms."""
        self.batch = batch
        self.num_rows: int = batch.num_rows
        self._id, self._origin = batch.column("id"), batch.column("origin")
        self._numbers = Lists(batch.column("atomic_numbers"))
        self._positions = Lists(batch.column("positions"), 3)
        self._forces = Lists(batch.column("forces"), 3)
        self._fixed = Masks(batch.column("fixed"))
        self._cell = matrices(batch.column("cell"), (3, 3))
        self._stress = matrices(batch.column("stress"), (6,))
        self._stress_nulls = nulls_of(batch.column("stress"))
        self._pbc = flat_values(batch.column("pbc"), np.uint8).data
        self._energy = flat_values(batch.column("energy"), np.float64).data
        self._energy_nulls = nulls_of(batch.column("energy"))
        self._split = flat_values(batch.column("split"), np.uint8).data
        self._split_nulls = nulls_of(batch.column("split"))
        self._check_lengths()

    def _check_lengths(self) -> None:
        """Positions and forces are sliced by the offsets of the atomic numbers."""
        atoms = len(self._numbers.values)
        for name, column in (("positions", self._positions), ("forces", self._forces)):
            if column.nulls is None and len(column.values) != atoms:
                raise pa.ArrowInvalid(
                    f"{name} of {len(column.values)} atoms, atomic_numbers of {atoms}"
                )

    def name(self, row: int) -> tuple[str, str]:
        """Id and origin of a row."""
        return self._id[row].as_py(), self._origin[row].as_py()

    def structure(self, row: int) -> Structure:
        """A row as a structure whose arrays are views of the batch."""
        starts, forces = self._numbers.starts, self._forces
        atoms = slice(starts[row], starts[row + 1])
        no_energy = self._energy_nulls is not None and self._energy_nulls[row]
        structure = _new(StoredStructure)
        # All fields at once: one by one, as a frozen dataclass is made, takes a microsecond.
        _set(
            structure,
            "__dict__",
            {
                "_rows": self,
                "_row": row,
                "atomic_numbers": self._numbers.values[atoms],
                "positions": self._positions.values[atoms],
                "cell": self._cell[row],
                "pbc": _PBC[self._pbc[row] & 7],
                "energy": None if no_energy else self._energy[row],
                "forces": forces.values[atoms] if forces.nulls is None else forces[row],
            },
        )
        return structure

    def stress(self, row: int) -> NDArray[np.float64] | None:
        """(6,) in eV/Å³, None where there is none."""
        absent = self._stress_nulls is not None and self._stress_nulls[row]
        return None if absent else np.asarray(self._stress[row])

    def fixed(self, row: int) -> NDArray[np.bool_] | None:
        """(N,) atoms that were held still, None where the source says nothing."""
        return self._fixed[row]

    def split_name(self, row: int) -> str | None:
        """'train', 'val' or 'test' where the source says so."""
        if self._split_nulls is not None and self._split_nulls[row]:
            return None
        code = self._split[row]
        return SPLITS[code - 1] if code else None

    @property
    def num_atoms(self) -> NDArray[np.int32]:
        """(S,) atoms of each row."""
        return np.asarray(np.diff(self._numbers.offsets))

    @property
    def atomic_numbers(self) -> NDArray[np.uint8]:
        """(N,) of all rows, one after the other."""
        return self._numbers.values

    @property
    def periodic(self) -> NDArray[np.bool_]:
        """(S,) whether a row repeats along any direction."""
        return np.asarray(self._pbc) > 0

    @property
    def split(self) -> NDArray[np.uint8]:
        """(S,) what the source says: 0 none, 1 train, 2 val, 3 test."""
        return np.asarray(self.batch.column("split").fill_null(0).to_numpy())

    @property
    def energy(self) -> NDArray[np.float64]:
        """(S,) in eV; 0 where there is none."""
        return np.asarray(self.batch.column("energy").fill_null(0.0).to_numpy())

    def free_forces(self, rows: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(n, 3) forces on the free atoms of the rows that are chosen, in eV/Å."""
        sizes = self.num_atoms
        free = np.ones(int(sizes.sum()), dtype=bool)
        with_fixed = np.repeat(_present(self.batch.column("fixed")), sizes)
        free[with_fixed] = ~self._fixed.flat
        chosen = free & np.repeat(rows, sizes)
        if self._forces.nulls is not None:
            chosen = chosen[np.repeat(_present(self.batch.column("forces")), sizes)]
        return np.asarray(self._forces.values[chosen])


def _present(array: pa.Array) -> NDArray[np.bool_]:
    present: NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return present


def read_batch(path: Path) -> pa.RecordBatch:
    """Map an Arrow file of one record batch into memory; no file handle stays open.

    Raises:
        OSError: no such file.
        pyarrow.ArrowInvalid: not an Arrow file, or one that was cut short.
    """
    with pa.memory_map(str(path)) as source:
        buffer = source.read_buffer()
    reader = pa.ipc.open_file(pa.BufferReader(buffer))
    if reader.num_record_batches != 1:
        raise pa.ArrowInvalid(f"{reader.num_record_batches} record batches, expected 1")
    return reader.get_batch(0)


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write one record batch as an uncompressed Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
