"""QMugs' ``summary.csv``: energies and flags of two million conformers, in little memory."""

from __future__ import annotations

import logging
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, csv

from lamm.data.cards import Texts
from lamm.data.readers.common import IGNORED, reading
from lamm.errors import ConfigError, DataError
from lamm.schema import Frozen

SUMMARY: Final = "summary.csv"
_log = logging.getLogger(__name__)


class QMugsOptions(Frozen):
    """What the card may say to the reader of QMugs."""

    summary: str | None = None
    """Path of the summary; ``summary.csv`` beside or in the source where left out; ``none``."""
    leave_out: Texts = ()
    """Columns of the summary that are true or false, such as ``nonunique_smiles`` or
    ``significant_negative_wavenumbers``: conformers with true are left out."""


class SummaryRow(NamedTuple):
    """What the summary says of a conformer."""

    energy: float
    """In the unit of the summary; NaN where it has none."""
    left_out_by: str
    """Name of a flag that is to be left out and is true; empty without."""


class Summary(NamedTuple):
    """The summary's rows, sorted by conformer."""

    ids: NDArray[np.bytes_]
    """``CHEMBL123/conf_00``."""
    energies: NDArray[np.float64]
    flags: dict[str, NDArray[np.bool_]]

    def places(self, ids: NDArray[np.bytes_]) -> NDArray[np.intp]:
        """Rows of conformers; -1 where there is none."""
        places = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[places] == ids, places, -1)

    def place(self, conformer: str) -> int:
        """The row of a conformer; -1 where there is none."""
        name = conformer.encode()
        place = bisect_left(self.ids, name)  # searchsorted copies all ids for a longer name
        return place if place < len(self.ids) and self.ids[place] == name else -1

    def row(self, conformer: str) -> SummaryRow | None:
        """What there is on a conformer."""
        place = self.place(conformer)
        if place < 0:
            return None
        flagged = next((name for name, flag in self.flags.items() if flag[place]), "")
        return SummaryRow(float(self.energies[place]), flagged)

    def absent(self, places: NDArray[np.intp]) -> list[str]:
        """Conformers of all rows but these; -1 stands for none."""
        rest = np.ones(len(self.ids), dtype=bool)
        rest[places[places >= 0]] = False
        listed: list[str] = self.ids[rest].astype(str).tolist()
        return listed


def open_summary(source: Path, options: QMugsOptions, energy: str) -> Summary | None:
    """The summary of a source, where there is one; read once per process.

    Args:
        source: the tar or folder.
        options: what the card says.
        energy: data field of the energy; the summary's column has ``_`` for its ``:``.

    Raises:
        ConfigError: columns are to be left out and there is no summary.
        DataError: the summary isn't there, can't be read, or lacks a column.
    """
    path = None
    if options.summary is None:
        near = (source / SUMMARY, source.parent / SUMMARY)
        path = next((one for one in near if one.is_file()), None)
    elif options.summary != IGNORED:
        path = Path(options.summary)
    if path is None:
        if options.leave_out:
            raise ConfigError(
                f"{source}: `reader.leave_out` names columns of the summary, and there is no "
                f"{SUMMARY} beside it.\n  Name it with `reader: {{summary: PATH}}`."
            )
        _log.info("%s: no %s: energies are taken from the structures alone", source, SUMMARY)
        return None
    with reading(path):
        return _read(path, path.stat().st_mtime_ns, energy.replace(":", "_"), options.leave_out)


@lru_cache(maxsize=1)
def _read(path: Path, changed: int, energy: str, flags: tuple[str, ...]) -> Summary:
    columns = ["chembl_id", "conf_id", energy, *flags]
    types = dict.fromkeys(columns[:2], pa.string()) | {energy: pa.float64()}
    types |= dict.fromkeys(flags, pa.bool_())
    convert = csv.ConvertOptions(include_columns=columns, column_types=types)
    try:
        # SMILES may be quoted; nothing in a summary spans lines.
        table = csv.read_csv(path, convert_options=convert)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise DataError(
            f"{path}: not a summary of QMugs with the columns {', '.join(columns)} ({error}).\n"
            "  Name the right one with `reader: {summary: PATH}`, or `none`; or another energy, "
            "such as `keys: {energy: GFN2:TOTAL_ENERGY}`."
        ) from error
    joined = compute.binary_join_element_wise(table["chembl_id"], table["conf_id"], "/")
    ids = np.array(joined.to_pylist(), dtype=bytes)
    order = np.argsort(ids, kind="stable")
    return Summary(
        ids[order],
        table[energy].to_numpy()[order],
        {name: table[name].fill_null(False).to_numpy()[order] for name in flags},
    )
