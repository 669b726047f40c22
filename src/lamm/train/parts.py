"""A GPU batch cut into parts: fewer structures at a time need less memory.

Eq. (5) is a sum over structures whose denominators the plan knows, so the gradients of the parts
add up to those of the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from lamm.graph.batch import GraphBatch


def graph_size(batch: GraphBatch) -> int:
    """Atoms and edges of a batch, to which the memory of a step is nearly proportional."""
    return batch.atomic_numbers.shape[0] + batch.num_edges


def structure_sizes(batch: GraphBatch) -> list[int]:
    """Atoms and edges of each structure; waits for the device."""
    of_edge = batch.structure_index[batch.edge_index[1]]
    edges = torch.bincount(of_edge, minlength=batch.num_structures)
    return [int(size) for size in (batch.num_atoms + edges).tolist()]


def select(batch: GraphBatch, chosen: Sequence[int]) -> GraphBatch:
    """Some structures of a batch, in its order, as a batch of their own.

    Args:
        batch: atoms, edges and labels.
        chosen: numbers of the structures, ascending; none gives an empty batch.
    """
    device = batch.num_atoms.device
    wanted = torch.zeros(batch.num_structures, dtype=torch.bool, device=device)
    wanted[torch.as_tensor(list(chosen), dtype=torch.int64, device=device)] = True
    atom = wanted[batch.structure_index]  # (N,)
    edge = atom[batch.edge_index[1]]  # (E,), no edge joins two structures
    new_atom, new_structure = atom.cumsum(0) - 1, wanted.cumsum(0) - 1
    return replace(
        batch,
        atomic_numbers=batch.atomic_numbers[atom],
        positions=batch.positions[atom],
        cell=batch.cell[wanted],
        pbc=batch.pbc[wanted],
        edge_index=new_atom[batch.edge_index[:, edge]],
        cell_offsets=batch.cell_offsets[edge],
        structure_index=new_structure[batch.structure_index[atom]],
        num_atoms=batch.num_atoms[wanted],
        energy=batch.energy[wanted],
        forces=batch.forces[atom],
        stress=batch.stress[wanted],
        has_energy=batch.has_energy[wanted],
        has_forces=batch.has_forces[wanted],
        has_stress=batch.has_stress[wanted],
        free=batch.free[atom],
        subset_index=batch.subset_index[wanted],
        ids=batch.ids[wanted],
    )


def cut(sizes: Sequence[int], budget: int | None) -> list[list[int]]:
    """Numbers of the structures of each part: as many in a row as fit, one too large alone.

    Args:
        sizes: atoms and edges of each structure.
        budget: the same of a part at most; one part where there is no budget.
    """
    parts: list[list[int]] = []
    filled = 0
    for number, size in enumerate(sizes):
        if not parts or (budget is not None and filled + size > budget):
            parts.append([])
            filled = 0
        parts[-1].append(number)
        filled += size
    return parts


def split_batch(
    batch: GraphBatch, budget: int | None, without: Collection[int] = ()
) -> list[GraphBatch]:
    """Cut a GPU batch into parts within a budget; at least one part, which may be empty.

    The batch is given back as it is, and the device isn't waited for, where nothing has to change.

    Args:
        batch: what the plan gave this rank.
        budget: largest `graph_size` of a part, None for no limit.
        without: joint ids of structures to leave out.
    """
    if not without and (budget is None or graph_size(batch) <= budget):
        return [batch]
    ids = batch.ids.tolist() if without else []
    kept = [n for n in range(batch.num_structures) if not without or ids[n] not in without]
    sizes = structure_sizes(batch)
    parts = cut([sizes[n] for n in kept], budget)
    if len(kept) == batch.num_structures and len(parts) <= 1:
        return [batch]
    return [select(batch, [kept[n] for n in part]) for part in parts or [[]]]
