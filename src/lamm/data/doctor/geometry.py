"""Atoms on top of each other, numbers that aren't finite, odd cells and sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lamm.data.doctor.blocks import Block
from lamm.data.doctor.distances import closest_distances
from lamm.data.doctor.findings import Finding, Rows, Severity, row_ids
from lamm.data.doctor.survey import Survey
from lamm.data.store import Store

TOO_CLOSE = 0.5
"""Å; the shortest bond, H2, is 0.74 and 0.6 in hot or compressed structures."""
TINY_VOLUME = 1.5
"""Å³ per atom; hydrogen at several hundred GPa has 1.5, diamond 5.7."""
HUGE_VOLUME = 2000.0
"""Å³ per atom of a structure that repeats along all three directions: nearly all is vacuum."""
MANY_TIMES = 50
"""An atom count this many times the median is odd."""


class GeometryFaults:
    """Collects what is odd about positions and cells, block after block."""

    def __init__(self) -> None:
        self.close, self.not_finite = Rows(), Rows()
        self.tiny, self.left_handed, self.vacuum = Rows(), Rows(), Rows()

    def look(self, block: Block) -> None:
        """Take a block in."""
        fine = np.isfinite(block.positions).all(axis=1) & np.isfinite(block.forces).all(axis=1)
        broken = block.sum(np.asarray(~fine, dtype=np.int64)) > 0
        broken |= ~np.isfinite(block.cell).all(axis=(1, 2)) | ~np.isfinite(block.energy)
        broken |= ~np.isfinite(block.stress).all(axis=1)
        self.not_finite.add(block.rows[broken])
        with np.errstate(invalid="ignore"):
            closest = closest_distances(block, TOO_CLOSE)
            close = (closest < TOO_CLOSE) & ~broken
        if close.any():
            self.close.add(block.rows[close], -float(closest[close].min()))
        whole = block.pbc.all(axis=1) & ~broken
        volume = np.linalg.det(np.nan_to_num(block.cell))
        per_atom = np.abs(volume) / block.sizes
        self.tiny.add(block.rows[whole & (per_atom < TINY_VOLUME)])
        self.left_handed.add(block.rows[whole & (volume < 0)])
        self.vacuum.add(block.rows[whole & (per_atom > HUGE_VOLUME)])

    def findings(self, survey: Survey) -> Iterator[Finding]:
        """What was found."""
        closest = -(self.close.worst or 0.0)
        faults = (
            (
                "geometry.not_finite",
                Severity.error,
                self.not_finite,
                "structures have a number that is not finite",
                "One of them makes the loss NaN, and all weights with it.",
                "Ingest the source again: LaMM refuses such records and names them.",
            ),
            (
                "geometry.too_close",
                Severity.error,
                self.close,
                f"structures have atoms closer than {TOO_CLOSE} Å, the closest {closest:.3g} Å",
                "Two records of one atom, a cell that doesn't belong to the positions, or lengths "
                "in another unit.",
                "Leave these records out, or mend cell and `units.length`.",
            ),
            (
                "geometry.tiny_cell",
                Severity.warning,
                self.tiny,
                f"cells have less than {TINY_VOLUME} Å³ per atom",
                "Nothing is that dense on earth: a cell of another structure, or another unit.",
                "Compare these records with their source.",
            ),
            (
                "geometry.left_handed",
                Severity.note,
                self.left_handed,
                "cells are left-handed",
                "Nothing depends on it here; some programs refuse such cells.",
                "Nothing to do.",
            ),
            (
                "geometry.vacuum",
                Severity.note,
                self.vacuum,
                f"periodic cells have more than {HUGE_VOLUME:.0f} Å³ per atom",
                "Molecules in a box: the box is treated as repeating.",
                "Write them without periodicity, if the box has no meaning.",
            ),
        )
        for check, severity, rows, title, meaning, advice in faults:
            if rows.count:
                yield Finding(
                    check,
                    severity,
                    survey.name,
                    f"{rows.count:,} {title}",
                    meaning,
                    advice,
                    rows.count,
                    rows.ids(survey.store),
                )
        yield from _sizes(survey.name, survey.store)


def _sizes(name: str, store: Store) -> Iterator[Finding]:
    sizes = store.index.num_atoms
    usual = float(np.median(sizes))
    odd = np.flatnonzero(sizes > MANY_TIMES * usual)
    if len(odd):
        yield Finding(
            check="geometry.sizes",
            severity=Severity.note,
            store=name,
            title=f"{len(odd):,} structures have over {MANY_TIMES} times the median of "
            f"{usual:.0f} atoms, the largest {int(sizes.max()):,}",
            meaning="A structure too large for the budget of a step runs alone.",
            advice="Set `max_atoms` for the subset, if they aren't wanted.",
            count=len(odd),
            ids=row_ids(store, odd),
        )
