"""`GraphBatch`: structures as one graph, with their labels; the one input of every model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lamm.errors import DataError
from lamm.graph.neighbors import GraphConfig, neighbor_edges, paired_edges
from lamm.structure import Structure

EdgeKind = Literal["absent", "directed", "paired"]
Values = NDArray[Any] | Tensor | Sequence[Any]
"""Numbers as an array, a tensor or nested lists."""


@dataclass(slots=True)
class GraphBatch:
    """Atoms of B structures in a row, the edges between them, labels and label masks.

    Edges are sorted by target and never join two structures. A label that a structure lacks is zero
    and its mask False. With B = 0 every array is empty: the share of a rank without work.
    """

    atomic_numbers: Int[Tensor, " atoms"]
    positions: Float[Tensor, "atoms 3"]
    """Å; their precision is that of `cell_offsets`, `cell`, `forces` and `stress` too."""
    cell: Float[Tensor, "structures 3 3"]
    """Å, rows are the lattice vectors."""
    pbc: Bool[Tensor, "structures 3"]
    edge_index: Int[Tensor, "2 edges"]
    """Source j and target i of each edge, as indices into the atoms of the batch."""
    cell_offsets: Float[Tensor, "edges 3"]
    """How many times each lattice vector is added to the position of the source."""
    structure_index: Int[Tensor, " atoms"]
    """The structure of each atom, ascending from 0."""
    num_atoms: Int[Tensor, " structures"]
    energy: Float[Tensor, " structures"]
    """eV, always float64."""
    forces: Float[Tensor, "atoms 3"]
    """eV/Å."""
    stress: Float[Tensor, "structures 6"]
    """eV/Å³, Voigt order xx yy zz yz xz xy."""
    has_energy: Bool[Tensor, " structures"]
    has_forces: Bool[Tensor, " structures"]
    has_stress: Bool[Tensor, " structures"]
    free: Bool[Tensor, " atoms"]
    """Atoms that the source didn't hold still: only their forces are labels."""
    subset_index: Int[Tensor, " structures"]
    """The subset of each structure, which is its output column."""
    ids: Int[Tensor, " structures"]
    """Joint ids, -1 where there are none."""
    edge_kind: EdgeKind = "directed"
    """``absent``: no edges were looked for yet; ``paired``: every edge has its reverse."""

    @property
    def num_structures(self) -> int:
        """B."""
        return len(self.num_atoms)

    @property
    def num_edges(self) -> int:
        """E."""
        return self.edge_index.shape[1]

    @classmethod
    def from_structures(
        cls,
        structures: Sequence[Structure],
        graph_config: GraphConfig,
        *,
        dtype: torch.dtype = torch.float32,
        subset_index: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> "GraphBatch":
        """Build the graphs of some structures and put them into one batch.

        Args:
            structures: any number of them, none included.
            graph_config: which atoms are neighbours.
            dtype: precision of all real numbers but the energies, which stay float64.
            subset_index: (B,) the subset of each structure; 0 where not given.
            ids: (B,) joint ids; -1 where not given.
        """
        graphs = [
            neighbor_edges(
                np.asarray(one.positions, dtype=np.float64), one.cell, one.pbc, graph_config
            )
            for one in structures
        ]
        num_atoms = np.array([one.num_atoms for one in structures], dtype=np.int64)
        first = np.cumsum(num_atoms) - num_atoms
        edge_index = [index + start for (index, _), start in zip(graphs, first, strict=True)]
        free = [
            np.ones(one.num_atoms, dtype=bool) if one.fixed is None else ~one.fixed
            for one in structures
        ]
        forces = [
            np.zeros((one.num_atoms, 3)) if one.forces is None else one.forces for one in structures
        ]
        has_forces = [
            one.has_forces and bool(mask.any()) for one, mask in zip(structures, free, strict=True)
        ]
        stress = [np.zeros(6) if one.stress is None else one.stress for one in structures]
        size = len(structures)

        def real(arrays: Sequence[NDArray[Any]], *shape: int) -> Tensor:
            joined = np.concatenate(arrays) if arrays else np.zeros((0, *shape))
            return torch.from_numpy(joined.reshape(-1, *shape)).to(dtype)

        def flags(values: Sequence[bool]) -> Tensor:
            return torch.tensor(values, dtype=torch.bool)

        def joined(arrays: Sequence[NDArray[Any]], kind: type[np.generic]) -> Tensor:
            return torch.from_numpy(np.concatenate([np.empty(0, kind), *arrays]).astype(kind))

        return cls(
            atomic_numbers=joined([one.atomic_numbers for one in structures], np.int64),
            positions=real([one.positions for one in structures], 3),
            cell=real([one.cell for one in structures], 3, 3),
            pbc=torch.from_numpy(np.array([one.pbc for one in structures], bool).reshape(size, 3)),
            edge_index=torch.from_numpy(
                np.concatenate([np.empty((2, 0), dtype=np.int64), *edge_index], axis=1)
            ),
            cell_offsets=real([offsets for _, offsets in graphs], 3),
            structure_index=torch.from_numpy(np.repeat(np.arange(size), num_atoms)),
            num_atoms=torch.from_numpy(num_atoms),
            energy=torch.tensor([one.energy or 0.0 for one in structures], dtype=torch.float64),
            forces=real(forces, 3),
            stress=real(stress, 6),
            has_energy=flags([one.has_energy for one in structures]),
            has_forces=flags(has_forces),
            has_stress=flags([one.stress is not None for one in structures]),
            free=joined(free, np.bool_),
            subset_index=(
                torch.zeros(size, dtype=torch.int64)
                if subset_index is None
                else subset_index.long()
            ),
            ids=torch.full((size,), -1) if ids is None else ids.long(),
            edge_kind="paired" if graph_config.symmetric else "directed",
        )

    @classmethod
    def from_arrays(
        cls,
        atomic_numbers: Values,
        positions: Values,
        cell: Values,
        pbc: Values,
        edge_index: Values | None = None,
        cell_offsets: Values | None = None,
        *,
        graph_config: GraphConfig | None = None,
        dtype: torch.dtype | None = None,
    ) -> "GraphBatch":
        """One structure as a batch, with edges that are given or looked for.

        Args:
            atomic_numbers: (N,).
            positions: (N, 3) in Å.
            cell: (3, 3) rows are the lattice vectors, in Å.
            pbc: (3,) whether each of them repeats.
            edge_index: (2, E) source and target of each edge, in any order. A model that wants
                every edge with its reverse pairs them by its own rule.
            cell_offsets: (E, 3), zeros where not given.
            graph_config: where no edges are given, how to look for them. Without this too, the
                model looks for them by its own configuration.
            dtype: precision of the batch; that of the positions where not given.

        Raises:
            DataError: `edge_index` and `cell_offsets` don't fit together or name atoms that aren't
                there.
        """
        numbers, points, box, periodic = map(_array, (atomic_numbers, positions, cell, pbc))
        if dtype is None:
            floating = np.issubdtype(points.dtype, np.floating)
            dtype = torch.from_numpy(np.empty(0, points.dtype if floating else float)).dtype
        structure = Structure(
            atomic_numbers=numbers.astype(np.uint8),
            positions=points.astype(np.float64).reshape(-1, 3),
            cell=box.astype(np.float64).reshape(3, 3),
            pbc=np.broadcast_to(periodic.astype(bool).reshape(-1), (3,)),
        )
        if edge_index is None and graph_config is not None:
            return cls.from_structures([structure], graph_config, dtype=dtype)
        # A cutoff at which there is nothing: the edges come from elsewhere.
        batch = cls.from_structures([structure], GraphConfig(cutoff=1e-3), dtype=dtype)
        if edge_index is None:
            batch.edge_kind = "absent"
            return batch
        index = _array(edge_index).astype(np.int64)
        offsets = np.zeros((index.shape[-1], 3)) if cell_offsets is None else _array(cell_offsets)
        return batch._with_edges(index, offsets, "directed")

    def with_edges_for(self, graph_config: GraphConfig) -> "GraphBatch":
        """The same batch with edges as `graph_config` wants them, or itself where they are so.

        Edges are looked for where there are none yet, and paired where they have to be and aren't.
        Both happen on the CPU; a batch from `from_structures` for the same model needs neither.
        """
        if self.edge_kind == "absent":
            return self._with_new_edges(graph_config)
        if self.edge_kind == "paired" or not graph_config.symmetric:
            return self
        offsets = self.cell_offsets.detach().cpu().double().round().numpy()
        index, offsets = paired_edges(
            self.edge_index.cpu().numpy(), offsets.astype(np.int64), graph_config.ties
        )
        return self._with_edges(index, offsets, "paired")

    def _with_new_edges(self, graph_config: GraphConfig) -> "GraphBatch":
        positions = self.positions.detach().cpu().double().numpy()
        cell, pbc = self.cell.detach().cpu().double().numpy(), self.pbc.cpu().numpy()
        last = np.cumsum(self.num_atoms.cpu().numpy())
        indices, offsets = [np.empty((2, 0), dtype=np.int64)], [np.empty((0, 3), dtype=np.int32)]
        for b, stop in enumerate(last):
            start = stop - int(self.num_atoms[b])
            index, offset = neighbor_edges(positions[start:stop], cell[b], pbc[b], graph_config)
            indices.append(index + start)
            offsets.append(offset)
        kind: EdgeKind = "paired" if graph_config.symmetric else "directed"
        return self._with_edges(np.concatenate(indices, axis=1), np.concatenate(offsets), kind)

    def _with_edges(
        self, edge_index: NDArray[np.int64], cell_offsets: NDArray[Any], kind: EdgeKind
    ) -> "GraphBatch":
        num_atoms = len(self.atomic_numbers)
        if edge_index.ndim != 2 or cell_offsets.shape != (edge_index.shape[1], 3):
            raise DataError(
                f"edge_index has shape {edge_index.shape} and cell_offsets {cell_offsets.shape}, "
                "expected (2, E) and (E, 3). Give both for the same edges."
            )
        if edge_index.size and not (edge_index.min() >= 0 and edge_index.max() < num_atoms):
            raise DataError(
                f"edge_index runs from {edge_index.min()} to {edge_index.max()}, expected atoms 0 "
                f"to {num_atoms - 1}. Number the atoms from 0."
            )
        order = np.argsort(edge_index[1], kind="stable")
        device = self.positions.device
        return replace(
            self,
            edge_index=torch.from_numpy(edge_index[:, order]).to(device),
            cell_offsets=torch.from_numpy(cell_offsets[order]).to(self.positions),
            edge_kind=kind,
        )

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> "GraphBatch":
        """The same batch on another device or in another precision; energies stay float64."""

        def move(name: str, tensor: Tensor) -> Tensor:
            real = tensor.is_floating_point() and name != "energy"
            return tensor.to(device, dtype if real else None, non_blocking)

        return self._map(move)

    def copy(self) -> "GraphBatch":
        """The same batch in memory of its own."""
        return self._map(lambda _, tensor: tensor.clone())

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> "GraphBatch":
        values: dict[str, Any] = {
            field.name: change(field.name, value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **values)


def _array(values: Values) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def edge_vectors(batch: GraphBatch) -> Float[Tensor, "edges 3"]:
    """r_j + cell_offsets @ cell - r_i of each edge in Å, differentiable in positions and cell."""
    source, target = batch.edge_index[0], batch.edge_index[1]
    cell = batch.cell.index_select(0, batch.structure_index.index_select(0, target))  # (E, 3, 3)
    shift = (batch.cell_offsets[:, :, None] * cell).sum(dim=1)  # (E, 3)
    ends = batch.positions.index_select(0, source) - batch.positions.index_select(0, target)
    return ends + shift
