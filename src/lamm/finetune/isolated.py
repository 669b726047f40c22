"""Structures without neighbours, which say nothing of how atoms interact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lamm.data.cards import CardHeader
from lamm.data.doctor import Finding, Severity
from lamm.data.store import Store, StoreWriter
from lamm.errors import DataError
from lamm.finetune.sources import Source
from lamm.graph.counting import count_edges
from lamm.graph.neighbors import GraphConfig

NEIGHBORHOOD = GraphConfig(cutoff=6.0, max_neighbors=None)
"""Å beyond which an atom's own images count as far away."""
MOST_NAMED = 3


def is_isolated(store: Store) -> NDArray[np.bool_]:
    """(n,) whether a structure has no neighbours: atoms far apart, or one far from its images."""
    index = store.index
    alone: NDArray[np.bool_] = index.num_edges == 0  # within the card's cutoff, which is larger
    for row in np.flatnonzero(~alone & (index.num_atoms == 1)):
        one = store[int(row)]
        alone[row] = count_edges(one.positions, one.cell, one.pbc, NEIGHBORHOOD) == 0
    return alone


def without_isolated(
    source: Source, folder: Path, header: CardHeader
) -> tuple[Source, list[Finding]]:
    """The source without its isolated atoms, and a word about them.

    Data sets list them for their energies. Linear references are fitted to structures instead; one
    isolated atom among a handful of validation structures would be all of the error.

    Args:
        source: structures that the user named.
        folder: where a store of the others goes, if some are left out.
        header: what is known of them.

    Raises:
        DataError: there is nothing else.
    """
    alone = is_isolated(source.store)
    if not alone.any():
        return source, []
    if alone.all():
        raise DataError(
            f"{source.path}: in none of {len(alone)} structures has an atom a neighbour within "
            f"{NEIGHBORHOOD.cutoff:g} Å, so that there is nothing to learn.\n"
            "  Check the unit of length."
        )
    rows = np.flatnonzero(alone)
    some = list(source.store.structures(rows[:MOST_NAMED]))
    with StoreWriter(folder, header) as writer:
        for row in np.flatnonzero(~alone):
            writer.add(source.store[int(row)])
    finding = Finding(
        check="structures.isolated",
        severity=Severity.warning,
        store=source.path.name,
        title=f"{source.path.name}: {len(rows)} structures of isolated atoms are left out",
        meaning="Their energies say nothing of how atoms interact.",
        advice="References are fitted to the other structures' energies.",
        count=len(rows),
        ids=tuple(one.id or str(row) for one, row in zip(some, rows, strict=False)),
    )
    return Source(source.path, Store.open(folder)), [finding]
